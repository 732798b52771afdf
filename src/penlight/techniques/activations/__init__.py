"""What every unit does with an input."""
