"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import zoo


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on a shared core can be slower than one; results do not depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def open_zoo():
    """Open one of the tiny networks as a model."""
    import penlight

    def opened(name, **kwargs):
        make, shape = zoo.NETWORKS[name]
        return penlight.load(zoo.seeded(make), example=torch.zeros(1, *shape), **kwargs)

    return opened
