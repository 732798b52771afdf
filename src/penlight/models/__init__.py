"""Trained networks: loading them, their layers, and reading them while they run."""

from penlight.models.layers import Layer, ReceptiveField
from penlight.models.model import Model
from penlight.models.probe import Probe
from penlight.models.sources import load_model

__all__ = ["Layer", "Model", "Probe", "ReceptiveField", "load_model"]
