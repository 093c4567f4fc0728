"""PaDiM on exact running moments: a Gaussian for each position of the grid, of all products or of each."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .detector import FeatureDetector, Learned, Scores, State, Traits
from .errors import ConfigError, StateError
from .gaussians import Averaged, Factors, Running
from .moments import Moments, under
from .params import param

_ONE = ("latest", "averaged")  # forms that keep the moments of the task being learned only


@dataclass(kw_only=True, eq=False)
class PaDiM(FeatureDetector):
    """Mahalanobis distance of each patch to the Gaussian of its position.

    Source: Defard et al. 2020, "PaDiM: a Patch Distribution Modeling Framework". The paper's: some channels,
    drawn at random, a mean and a covariance + 0.01 I for each position, the distance as the anomaly. Ours:
    the moments run (one pass, any order, equal bits), merge and can be taken away again; `floor`; `prior`.

    `form` says what becomes of one product (`begin_task`) when the next is learned. The rows of table 5.2 of the
    thesis on anomaly detection by continual learning (section 5.2) are here, and exact pooling, which it lacks:

    * pooled: the moments of all images that ever came, in whatever order.
    * latest: the moments of the task being learned; the first image of another one makes an end of those before
      (its "naive": what refitting does).
    * per-task: moments for each task, none ever changed by another ("less CL"). An image is of the task to which
      the sum of its distances over all positions is lowest, unless the caller says which; `Scores.tasks` tells.
    * averaged: Algorithm 5.1 as printed ("CL"): the mean over tasks of means and of covariances. The variance
      between tasks is in none of them; `pooled` has it and keeps half as much. Each return to a task counts as one
      more; the task being learned is part of the average with the weight of one.

    Cost at 28 x 28 and 100 channels: about 3 ms to learn and 4 ms to score an image; 0.2 s for
    the first score after learning, which factors all positions. State: 32 MB, whatever the stream's length; 64 MB
    for averaged; 32 MB for each task for per-task, as much again in memory for its factors once it has scored, and
    the time to score an image of an unknown task grows with their number too.

    The default `floor` is the one under which held-out normal images are likeliest, or nearly, on several sets.

    Does not work where parts are not aligned, such as boards with different layouts: a position then has
    no distribution of its own. Needs some tens of images; it starts from one.

    When not per-task: where tasks differ in their number of images, unless `prior` is set. With fewer images than
    channels a covariance is too narrow for images it has not seen, and a task of many images draws them all: of
    seven products, one of 300 images and six of 35, all six were missed (14 % of good images inferred right as a
    mean over products); with prior=10 all good images and 649 of 657 in all were right. Name the task where known.
    """

    name: ClassVar[str] = "padim"
    traits: ClassVar[Traits] = Traits()

    channels: int = param(
        100, "channels drawn at random from the backbone's (all where it has fewer)", low=1, high=2000,
        log=True, search=(20, 180),
    )  # fmt: skip
    shrinkage: float = param(
        0.01, "added to each variance, as published",
        low=0, high=100, open_low=True, log=True, search=(0.001, 1.0),
    )  # fmt: skip
    floor: float = param(
        0.03, "share of the mean variance of all positions that is added to each",
        low=0, high=1, log=True, search=(0.003, 0.3),
    )  # fmt: skip
    prior: float = param(
        0.0, "images that the covariance of all positions together counts for", low=0, high=1e6, search=(0.0, 50.0)
    )
    form: str = param(
        "pooled",
        "what to keep of tasks: moments of all together, of the latest, of each, or their average over tasks",
        choices=("pooled", "latest", "per-task", "averaged"),
    )

    @property
    def infers_tasks(self) -> bool:
        """Of the forms, per-task does."""
        return self.form == "per-task"

    def _reset(self) -> None:
        self._grid = (0, 0)  # until the first image fixes it
        self._picked = torch.empty(0, dtype=torch.int64)
        self._learning = -1  # whose moments latest and averaged have: a place in `tasks`
        self._held: list[Running] = []  # one for each task for per-task, else one
        self._average: Averaged | None = None  # of the tasks that are finished
        self._factors: dict[int, Factors] = {}  # made when scoring, by the place in `_held`

    def _learn(self, features: Tensor) -> Learned:
        if not self._held:
            self._open(features)
        patches = self._patches(features, "learn")
        place = self._turn(self.tasks.index(self.task))
        self._held[place].add(patches)
        self._factors.pop(place, None)
        return Learned(images=len(features), kept=len(self._held) * self._grid[0] * self._grid[1])

    def _score(self, features: Tensor) -> Scores:
        patches = self._patches(features, "score")
        if self.form != "per-task":
            return self._mapped(self._factored(0).distances(patches))
        each = torch.stack([self._factored(place).distances(patches) for place in range(len(self._held))])
        best = each.sum(2, dtype=torch.float64).argmin(0)  # (B,)
        return replace(self._mapped(each[best, torch.arange(len(best), device=best.device)]), tasks=best)

    def _score_as(self, features: Tensor, task: int) -> Scores:
        place = task if self.form == "per-task" else 0
        return self._mapped(self._factored(place).distances(self._patches(features, "score")))

    def merge(self, other: "PaDiM") -> None:
        """Takes in what another detector of the same parameters has learned, as if its images had come here.

        Raises StateError if it is another kind of detector or `form` is not pooled. Equal bits, whichever takes
        in the other.
        """
        if self._compatible(other):
            self._held[0].sums.merge(other._held[0].sums)
            self.images_learned += other.images_learned
            self.tasks += [task for task in other.tasks if task not in self.tasks]
            self._factors = {}

    def unlearn(self, other: "PaDiM") -> None:
        """Takes away what another detector has learned, as if its images had never come here.

        Raises StateError if it is another kind of detector, has learned more images than this one, or `form` is
        not pooled. Names of tasks stay.
        """
        if not self._compatible(other):
            return
        try:
            self._held[0].sums.subtract(other._held[0].sums)
        except ValueError as error:
            raise StateError(f"padim: {error}.") from error
        self.images_learned -= other.images_learned
        self._factors = {}

    def _open(self, features: Tensor) -> None:
        """Fixes channels and grid by the first image."""
        own = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(features.shape[1], generator=own)[: self.channels]
        self._picked = drawn.sort().values.to(features.device)
        self._grid = (features.shape[2], features.shape[3])
        if self.form == "averaged":
            self._average = Averaged.empty(self._grid[0] * self._grid[1], len(drawn), features.device)

    def _turn(self, task: int) -> int:
        """The place in `_held` to which images of this task go; ends the task before where only one is kept."""
        place = task if self.form == "per-task" else 0
        if place < len(self._held) and (self.form not in _ONE or task == self._learning):
            return place
        if self._average is not None and self._held:
            self._average = self._average.plus(self._held[0].sums)
        groups, picked = self._grid[0] * self._grid[1], self._picked
        self._held[place:] = [Running(Moments(groups, len(picked), picked.device))]
        self._learning = task
        return place

    def _factored(self, place: int) -> Factors:
        """The factors of what `_held` has there, averaged with the finished tasks where that is the form."""
        if place not in self._factors:
            sums = self._held[place].sums
            fit = sums if self._average is None else self._average.plus(sums)
            self._factors[place] = Factors(fit, self.shrinkage, self.floor, self.prior)
        return self._factors[place]

    def _mapped(self, distances: Tensor) -> Scores:
        """(B, h * w) -> scores."""
        return self._finish(distances.reshape(-1, *self._grid))

    def _patches(self, features: Tensor, verb: str) -> Tensor:
        """(B, C, h, w) -> the drawn channels by position, a copy (h * w, B, d)."""
        if tuple(features.shape[2:]) != self._grid or features.shape[1] <= int(self._picked.max()):
            raise ConfigError(
                f"padim: cannot {verb} features {tuple(features.shape[1:])}; it learned on a grid {self._grid} "
                f"with more than {int(self._picked.max())} channels."
            )
        return features[:, self._picked].flatten(2).permute(2, 0, 1)

    def _compatible(self, other: "PaDiM") -> bool:
        """Whether there is anything to combine with; opens this one like the other if it is still empty."""
        if not isinstance(other, PaDiM) or other.params != self.params:
            raise StateError("padim: only a padim with the same parameters can be merged or taken away.")
        if self.form != "pooled":
            raise StateError(
                f"padim: only form=pooled can be merged or unlearned, this is form={self.form}; learn the "
                "images one after the other instead."
            )
        if not other._held:
            return False
        if not self._held:
            self._grid, self._picked = other._grid, other._picked.clone()
            self._turn(0)
        if self._grid != other._grid or not torch.equal(self._picked, other._picked):
            raise StateError("padim: the other detector saw features of another shape.")
        return True

    def _pack(self) -> dict[str, Tensor]:
        if not self._held:
            return {}
        packed = {"grid": torch.tensor(self._grid), "channels": self._picked}
        for place, running in enumerate(self._held):
            packed |= {f"{self._prefix(place)}{name}": tensor for name, tensor in running.sums.tensors().items()}
        if self.form in _ONE:
            packed["learning"] = torch.tensor(self._learning)
        if self._average is not None:
            packed |= {f"average.{name}": tensor for name, tensor in self._average.tensors().items()}
        return packed

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        (height, width), self._picked = tensors["grid"].tolist(), tensors["channels"]
        self._grid = (height, width)
        for place in range(len(self.tasks) if self.form == "per-task" else 1):
            moments = Moments.of(under(tensors, self._prefix(place)))
            if moments.groups != height * width or self._picked.shape != (moments.dim,):
                raise ValueError(f"moments {tuple(moments.total.shape)} do not fit a {height} x {width} grid")
            self._held.append(Running(moments))
        if self.form in _ONE:
            self._learning = int(tensors["learning"])
            if not 0 <= self._learning < len(self.tasks):
                raise ValueError(f"the task being learned is {self._learning} of {len(self.tasks)}")
        if self.form == "averaged":
            self._average = Averaged.of(under(tensors, "average."), like=moments)

    def _prefix(self, place: int) -> str:
        """What the names of a task's tensors begin with."""
        return f"task.{place}." if self.form == "per-task" else ""


def merged(states: list[State]) -> State:
    """One state that has learned what all `states` have. Raises StateError if they do not fit together."""
    if not states:
        raise StateError("padim: nothing to merge.")
    whole = PaDiM(**states[0].meta.get("params", {}))
    for state in states:
        part = PaDiM(**states[0].meta.get("params", {}))
        part.load_state(state)
        whole.merge(part)
    return whole.state()
