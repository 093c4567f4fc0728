"""What the protocol continual adds to a result record.

{"matrix": {FIGURE: [[row per step, column per task]]}, "average_f1", "average_forgetting", "relative_gap",
 "memory_bytes": {"networks", "learned", "replay"},
 "continual": {"scenario", "sequential", "columns", "steps", "first", "f1", "training_s", "inference_ms",
               "measures": {FIGURE: {"average", "forgetting", ...}}, "deviation": {FIGURE: {...}},
               "chance": {FIGURE: [...]}, "inferred": [[row per step]], "single": {FIGURE: [...]},
               "joint": {FIGURE: [[...]]}, "runs": [{"seed", and all of the above}]}}

Columns are tasks in the order in which they were learned first; with several seeds in several orders, the first, the
second, ... task learned. "f1" says which F1 the three figures above are of: of pixels, or of images where no task has
masks. "single" and "joint" are those of a model for each task, and of models of all tasks so far, where these were
run. Figures of several seeds are means over them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...methods.errors import DataError
from .forgetting import MEASURES, Matrix, mean, measures
from .rows import Row

FIGURES = ("image_auroc", "image_f1", "image_ap", "pixel_auroc", "pixel_f1", "pixel_ap", "aupro")
BYTES = ("networks", "learned", "replay")

Matrices = Mapping[str, Matrix]  # by figure
Vectors = Mapping[str, Sequence[float]]  # by figure: a value for each task


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A sequence of T tasks in K steps, run with one seed, or the means over several `runs`.

    sequential: whether one model went through the steps. steps: names of the tasks of each. first: for each column the
    step that learned it first. matrix: (K, T) by figure. chance: what a constant score would reach.
    inferred: (K, T), share of a task's images that were taken for it, by a detector that finds that out.
    memory_bytes: of networks, of everything else learned, and of the images in the replay memory.
    """

    scenario: str
    sequential: bool
    columns: Sequence[str]
    steps: Sequence[Sequence[str]]
    first: Sequence[int]
    matrix: Matrices
    chance: Vectors
    memory_bytes: Mapping[str, float]
    training_s: float
    inference_ms: float
    inferred: Matrix = ()
    single: Vectors | None = None
    joint: Matrices | None = None
    seed: int | None = None
    runs: Sequence["Continued"] = field(default_factory=list)

    @cached_property
    def measures(self) -> dict[str, dict[str, float]]:
        """MEASURES by figure; of several runs, means over them."""
        if self.runs:
            return self._over_runs(lambda values: sum(values) / len(values))
        return {
            name: measures(
                self.matrix[name],
                self.first,
                self.chance[name],
                None if self.single is None else self.single[name],
                None if self.joint is None else self.joint[name],
                self.sequential,
            )
            for name in FIGURES
        }

    @cached_property
    def deviation(self) -> dict[str, dict[str, float]] | None:
        """The sample's standard deviation over runs of each measure; None for one run."""
        return self._over_runs(lambda values: float(np.std(values, ddof=1))) if len(self.runs) > 1 else None

    @property
    def f1(self) -> str:
        """The F1 that is spoken of: pixel_f1, or image_f1 where no task has masks."""
        return "image_f1" if math.isnan(self.measures["pixel_f1"]["average"]) else "pixel_f1"

    @property
    def bytes(self) -> float:
        """All of `memory_bytes`."""
        return sum(self.memory_bytes.values())

    def trend(self, name: str) -> list[float]:
        """For each step, the mean of a figure over the tasks learned by then: figure 5.4."""
        return [
            mean(value for value, first in zip(row, self.first, strict=True) if first <= step)
            for step, row in enumerate(self.matrix[name])
        ]

    def inference(self) -> float:
        """Share of images, mean over tasks, that were taken for what they are after the last step; NaN: not asked."""
        return mean(self.inferred[-1]) if self.inferred else math.nan

    def beside(self, single: "Continued | None", joint: "Continued | None") -> "Continued":
        """With what a model for each task, and joint models, reached in the same sequence; None changes nothing."""
        runs = [
            one.beside(
                None if single is None else (single.runs or [single])[n],
                None if joint is None else (joint.runs or [joint])[n],
            )
            for n, one in enumerate(self.runs)
        ]
        own = self.single if single is None else {name: single.matrix[name][-1] for name in FIGURES}
        return replace(self, single=own, joint=self.joint if joint is None else joint.matrix, runs=runs)

    def to_json(self) -> dict[str, Any]:
        """Plain values with NaN as it is."""
        own = self.measures[self.f1]
        names = ("scenario", "sequential", "columns", "steps", "first", "f1", "training_s", "inference_ms")
        inner: dict[str, Any] = {name: getattr(self, name) for name in names}
        inner |= {"measures": self.measures, "chance": self.chance}
        more = {name: getattr(self, name) for name in ("deviation", "inferred", "single", "joint", "seed")}
        inner |= {name: value for name, value in more.items() if value not in (None, (), [])}
        if self.runs:
            inner["runs"] = [one.to_json() for one in self.runs]
        return {
            "matrix": self.matrix,
            "average_f1": own["average"],
            "average_forgetting": own["forgetting"],
            "relative_gap": own["relative_gap"],
            "memory_bytes": self.memory_bytes,
            "continual": inner,
        }

    @classmethod
    def from_json(cls, row: Row) -> "Continued":
        """The reverse of `to_json`. Raises DataError for anything else."""
        inner = Row(row.get("continual", dict), f"{row.who}: continual")
        columns = inner.words("columns")
        steps = [Row({"steps": one}, inner.who).words("steps") for one in inner.get("steps", list)]
        shape = len(steps), len(columns)
        first, runs = inner.whole_numbers("first"), [cls.from_json(one) for one in inner.rows("runs")]
        if not steps or len(first) != len(columns) or not all(0 <= step < len(steps) for step in first):
            raise DataError(f"{inner.who}: 'first' must name one of the {len(steps)} steps for each column.")
        if any(one.runs for one in runs):
            raise DataError(f"{inner.who}: a run of several cannot be several runs.")
        return cls(
            scenario=inner.get("scenario", str),
            sequential=inner.flag("sequential"),
            columns=columns,
            steps=steps,
            first=first,
            matrix=_matrices(row, "matrix", shape),
            chance=_vectors(inner, "chance", shape[1]),
            memory_bytes=row.figures("memory_bytes", BYTES),
            training_s=inner.figure("training_s"),
            inference_ms=inner.figure("inference_ms"),
            inferred=inner.matrix("inferred", *shape) if "inferred" in inner.plain else (),
            single=_vectors(inner, "single", shape[1]) if "single" in inner.plain else None,
            joint=_matrices(inner, "joint", shape) if "joint" in inner.plain else None,
            seed=inner.get("seed", int) if "seed" in inner.plain else None,
            runs=runs,
        )

    def _over_runs(self, pooled: Any) -> dict[str, dict[str, float]]:
        return {n: {m: pooled([run.measures[n][m] for run in self.runs]) for m in MEASURES} for n in FIGURES}


def pooled_runs(runs: Sequence[Continued]) -> Continued:
    """Several seeds' runs as one: means, place by place. The only one as it is."""
    head = runs[0]
    if len(runs) == 1:
        return replace(head, seed=None)
    alike = all(one.columns == head.columns and one.steps == head.steps for one in runs)
    ordinals = [f"{n}." for n in range(1, len(head.columns) + 1)]
    return replace(
        head,
        columns=head.columns if alike else ordinals,
        steps=head.steps if alike else [[f"step {n}"] for n in range(1, len(head.steps) + 1)],
        matrix=_means([one.matrix for one in runs]),
        chance=_means([one.chance for one in runs]),
        memory_bytes={name: sum(one.memory_bytes[name] for one in runs) / len(runs) for name in BYTES},
        training_s=sum(one.training_s for one in runs) / len(runs),
        inference_ms=sum(one.inference_ms for one in runs) / len(runs),
        inferred=np.mean([one.inferred for one in runs], 0).tolist() if head.inferred else (),
        seed=None,
        runs=list(runs),
    )


def _means(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: np.mean([one[name] for one in each], 0).tolist() for name in FIGURES}


def _matrices(row: Row, name: str, shape: tuple[int, int]) -> dict[str, Matrix]:
    inner = Row(row.get(name, dict), f"{row.who}: {name}")
    return {figure: inner.matrix(figure, *shape) for figure in FIGURES}


def _vectors(row: Row, name: str, length: int) -> dict[str, list[float]]:
    inner = Row(row.get(name, dict), f"{row.who}: {name}")
    found = {figure: inner.numbers(figure) for figure in FIGURES}
    if any(len(values) != length for values in found.values()):
        raise DataError(f"{inner.who}: expected {length} values of each figure, one for each task.")
    return found
