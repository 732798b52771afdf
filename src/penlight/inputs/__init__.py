"""What a network takes in: the contract of its input, and data read to that contract. None of these modules imports torch."""

from penlight.inputs.contract import InputContract
from penlight.inputs.data import Batch, Data, batches, open_data
from penlight.inputs.image import read_picture
from penlight.inputs.one import Inputs, read_input

__all__ = ["Batch", "Data", "InputContract", "Inputs", "batches", "open_data", "read_input", "read_picture"]
