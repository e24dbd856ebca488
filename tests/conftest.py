"""Settings every test shares."""

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
