"""Adam as part of a state: named tensors in, named tensors out (Kingma and Ba, algorithm 1).

torch.optim.Adam with its L2 penalty (`weight_decay` in the gradient) gives the same steps, as a test shows; its state
hangs on the parameter objects, and its first use imports a compiler. All methods step with this one, and states saved
long ago go on with it bit for bit: the order of its roundings is part of what it is.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # as its authors give them


class Adam:
    """Steps the parameters that it is given, in place. `steps` counts; `lr` may be changed between two of them."""

    def __init__(self, params: Mapping[str, Tensor], lr: float, weight_decay: float = 0.0) -> None:
        self.params, self.lr, self.weight_decay = dict(params), lr, weight_decay
        self.steps = 0
        self.first = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.params.items()}

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor]) -> None:
        """One step; gradients in the order of `params`."""
        self.steps += 1
        (b1, b2), size = BETAS, self.lr / (1 - BETAS[0] ** self.steps)
        for (name, value), gradient in zip(self.params.items(), gradients, strict=True):
            slope = gradient + self.weight_decay * value if self.weight_decay else gradient
            first = self.first[name].lerp_(slope, 1 - b1)
            second = self.second[name].lerp_(slope.square(), 1 - b2)
            value.addcdiv_(first, (second / (1 - b2**self.steps)).sqrt_().add_(EPSILON), value=-size)

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The `first` and the `second` of each parameter: they themselves, to be read or filled."""
        return {"first": self.first, "second": self.second}

    def tensors(self) -> dict[str, Tensor]:
        """For a state: the moments and the count of steps, int64 (1,)."""
        moments = {f"{kind}.{name}": t for kind, found in self.moments.items() for name, t in found.items()}
        return {"steps": torch.tensor([self.steps]), **moments}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `tensors`. Raises KeyError or ValueError for missing or misshapen ones."""
        for kind, moments in self.moments.items():
            fill(moments, {name: tensors[f"{kind}.{name}"] for name in moments}, kind)
        self.steps = int(tensors["steps"])
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")


@torch.no_grad()
def fill(into: Mapping[str, Tensor], given: Mapping[str, Tensor], who: str) -> None:
    """Copies tensors into those of the same names. Raises KeyError or ValueError for missing or misshapen ones."""
    for name, mine in into.items():
        theirs = given[name]
        if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            want, got = f"{mine.dtype} {tuple(mine.shape)}", f"{theirs.dtype} {tuple(theirs.shape)}"
            raise ValueError(f"{who}: {name} must be {want}, got {got}")
        mine.copy_(theirs)
