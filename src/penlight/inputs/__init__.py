"""What a network takes in: the contract of its input, and data read to that contract. None of these modules imports torch."""

from penlight.inputs.contract import InputContract
from penlight.inputs.data import Batch, Data, batches, open_data
from penlight.inputs.image import read_picture

__all__ = ["Batch", "Data", "InputContract", "batches", "open_data", "read_picture"]
