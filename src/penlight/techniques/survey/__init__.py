"""What in the data excites each unit: one streaming pass, its merging, and the first layer's filters."""
