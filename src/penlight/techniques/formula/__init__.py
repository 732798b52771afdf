"""What does it compute, exactly? The network as an expression, or the affine rule that holds at one input."""
