"""Adam as part of a state against torch's own."""

import pytest
import torch
from everline.methods.adam import Adam
from torch import Tensor


def start() -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(0)
    return {"a": torch.randn(3, 4, generator=own), "b": torch.randn(5, generator=own)}


def slopes(step: int) -> list[Tensor]:
    own = torch.Generator().manual_seed(step + 1)
    return [torch.randn(3, 4, generator=own), torch.randn(5, generator=own)]


def test_steps_are_torchs() -> None:
    mine = Adam(start(), lr=0.01, weight_decay=0.1)
    theirs = list(start().values())
    optimiser = torch.optim.Adam(theirs, lr=0.01, weight_decay=0.1)
    for step in range(20):
        mine.step(slopes(step))
        for value, slope in zip(theirs, slopes(step), strict=True):
            value.grad = slope
        optimiser.step()
    for value, want in zip(mine.params.values(), theirs, strict=True):
        torch.testing.assert_close(value, want)


@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_rounds_as_it_always_did(decay: float) -> None:
    """States of years ago go on bit for bit only while each of these operations rounds on its own."""
    adam, value = Adam(start(), 0.01, decay), start()["a"]
    first = second = torch.zeros(3, 4)
    for step in range(20):
        slope = slopes(step)[0] + decay * value
        first, second = first.lerp(slope, 1 - 0.9), second.lerp(slope.square(), 1 - 0.999)
        scale = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        value = value - 0.01 / (1 - 0.9 ** (step + 1)) * first / scale
        adam.step(slopes(step))
    assert torch.equal(adam.params["a"], value)
    assert torch.equal(adam.first["a"], first)
    assert torch.equal(adam.second["a"], second)


def test_goes_on_bit_for_bit() -> None:
    whole, half = (Adam(start(), lr=0.01) for _ in range(2))
    for step in range(4):
        whole.step(slopes(step))
        if step == 1:
            half = Adam({k: v.clone() for k, v in whole.params.items()}, lr=0.01)
            half.load({k: v.clone() for k, v in whole.tensors().items()})
        if step > 1:
            half.step(slopes(step))
    assert all(torch.equal(half.params[k], v) for k, v in whole.params.items())


def test_other_shapes_are_refused() -> None:
    adam = Adam(start(), lr=0.01)
    with pytest.raises(ValueError, match=r"first: a must be torch.float32 \(3, 4\)"):
        adam.load({**adam.tensors(), "first.a": torch.zeros(2)})
