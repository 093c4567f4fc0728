"""On a GPU: the same bits every time, as a line's replay after a crash needs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins; without it torch refuses below


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Meanwhile torch takes no kernel that adds in an order left to chance. Nothing to do on a CPU."""
    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
