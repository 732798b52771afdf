"""Specimens: small trained networks that ship with Penlight, each with its data and training script."""
