"""The result record that every protocol writes: strict JSON, where null is a figure that does not exist (NaN).

{"protocol", "method", "params", "backbone", "size", "seed", "everline_version",
 "tasks": [{"task", "n_train", "n_test",
            "metrics": {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "pixel_f1"},
            "curve": [{"images", ...the same figures...}],
            "ms_per_image": {"backbone", "score", "learn"}, "state_bytes"}],
 "mean": {...the figures, each a plain mean over tasks, null if one task lacks it; "images_per_s", "state_bytes"}}

What only some protocols have stands behind these, and is left out where it is not:

of a task   "offline": the figures of the same detector not learning (drift: not under the drift; fewshot: after the
            shots). "parts": [{"name", "metrics", "offline"}], the figures of one drift, or of the whole stream.
            "defects": how many of the n_test images are. "admitted": {"normal", "defective"}, shares of the patches
            that a stream offered and the learner believed to be normal. With several seeds all figures are means
            over them, and "deviation" (the sample's, of each figure) and "runs": [{"seed", "metrics", "offline"}]
            are there.
of the run  "dataset": the name of the data set that all tasks are of. "options": the protocol's. "seeds". "offline":
            mean over tasks. "deviation": over seeds, of the mean over tasks. Of the protocol continual: see
            `continued.py`.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...methods.errors import DataError
from ..files import Whole
from .continued import Continued
from .rows import Row

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "pixel_f1")
TIMES = ("backbone", "score", "learn")
ADMITTED = ("normal", "defective")
OPTIONAL = ("offline", "parts", "defects", "admitted", "deviation", "runs")  # left out where there is nothing
MAX_BYTES = 64 * 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Figures of a part of a task's run, named; `offline`: those without learning, where there are such."""

    name: str
    metrics: Mapping[str, float]
    offline: Mapping[str, float] | None = None


@dataclass(frozen=True)
class SeedRun:
    """A task's figures with one seed."""

    seed: int
    metrics: Mapping[str, float]
    offline: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TaskResult:
    """One task's figures. `curve`: at each number of `images` learned, the same figures as `metrics`.

    `ms_per_image`: means, at batch 1. `state_bytes`: all tensors of the learned state.
    """

    task: str
    n_train: int
    n_test: int
    metrics: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    ms_per_image: Mapping[str, float]
    state_bytes: int
    offline: Mapping[str, float] | None = None
    parts: Sequence[Part] = field(default_factory=list)
    defects: int | None = None
    admitted: Mapping[str, float] | None = None
    deviation: Mapping[str, float] | None = None
    runs: Sequence[SeedRun] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """Images a second when each is embedded once, scored and learned."""
        total = sum(self.ms_per_image[name] for name in TIMES)
        return 1000 / total if total > 0 else math.nan


@dataclass(frozen=True)
class Result:
    """One run of a protocol with one method. `backbone` is None for a method without one."""

    protocol: str
    method: str
    params: Mapping[str, Any]
    backbone: str | None
    size: int
    seed: int
    tasks: Sequence[TaskResult]
    everline_version: str = field(default=__version__)
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = field(default_factory=list)
    dataset: str | None = None
    continued: Continued | None = None  # of the protocol continual

    @property
    def mean(self) -> dict[str, float]:
        """Means over tasks; NaN where one of them has no such figure: a mean over fewer would not compare."""
        columns = {name: [task.metrics[name] for task in self.tasks] for name in METRICS}
        columns["images_per_s"] = [task.images_per_s for task in self.tasks]
        columns["state_bytes"] = [task.state_bytes for task in self.tasks]
        return {name: sum(values) / len(values) if values else math.nan for name, values in columns.items()}

    @property
    def offline(self) -> dict[str, float] | None:
        """Means over tasks of the figures without learning; None where a task has none."""
        rows = [task.offline for task in self.tasks if task.offline is not None]
        return mean_figures(rows) if rows and len(rows) == len(self.tasks) else None

    @property
    def admitted(self) -> dict[str, float] | None:
        """Means over tasks of the shares of patches admitted; None where a task has none."""
        rows = [task.admitted for task in self.tasks if task.admitted is not None]
        return mean_figures(rows, ADMITTED) if rows and len(rows) == len(self.tasks) else None

    @property
    def parts(self) -> list[Part]:
        """Each part as means over tasks; all tasks have the same ones."""
        return [mean_part(same) for same in zip(*(task.parts for task in self.tasks), strict=True)]

    @property
    def deviation(self) -> dict[str, float] | None:
        """Deviation over seeds of the mean over tasks; None for a single seed."""
        by_seed = [
            [run.metrics for task in self.tasks for run in task.runs if run.seed == seed] for seed in self.seeds
        ]
        means = [mean_figures(rows) for rows in by_seed if len(rows) == len(self.tasks) > 0]
        return deviations(means) if len(means) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN as None, in the order that is written."""
        names = ("protocol", "method", "params", "backbone", "size", "seed", "everline_version", "tasks", "mean")
        more = ("dataset", "options", "seeds", "offline", "deviation")
        extra = {name: _plain(getattr(self, name)) for name in more if getattr(self, name)}
        continued = {} if self.continued is None else _plain(self.continued.to_json())
        return {name: _plain(getattr(self, name)) for name in names} | extra | continued

    def dumps(self) -> str:
        """Strict JSON text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, plain: Any, who: str = "result") -> "Result":
        """The reverse of `to_json`; `who` is named in errors. Raises DataError for anything else."""
        row = Row(plain, who)
        return cls(
            protocol=row.get("protocol", str),
            method=row.get("method", str),
            params=row.get("params", dict),
            backbone=row.get("backbone", (str, type(None))),
            size=row.get("size", int),
            seed=row.get("seed", int),
            everline_version=row.get("everline_version", str),
            tasks=[_task(one, f"{who}: tasks[{n}]") for n, one in enumerate(row.get("tasks", list))],
            options=row.get("options", dict) if "options" in row.plain else {},
            seeds=row.whole_numbers("seeds"),
            dataset=row.get("dataset", str) if "dataset" in row.plain else None,
            continued=Continued.from_json(row) if "continual" in row.plain else None,
        )


def mean_figures(rows: Sequence[Mapping[str, float]], names: Sequence[str] = METRICS) -> dict[str, float]:
    """The mean of each figure over at least one row; NaN where a row has none."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def mean_part(parts: Sequence[Part]) -> Part:
    """The same part of several seeds' runs, or of several tasks, as means over those that have its figures."""
    offline = [part.offline for part in parts if part.offline is not None]
    metrics = mean_figures([part.metrics for part in parts])
    return Part(parts[0].name, metrics, mean_figures(offline) if offline else None)


def deviations(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sample's standard deviation of each figure over at least two rows; NaN where a row has none."""
    return {name: float(np.std([row[name] for row in rows], ddof=1)) for name in METRICS}


def write_result(result: Result, path: Path) -> None:
    """Writes the record whole or not at all. Raises StoreError where the file cannot be written."""
    with Whole(path) as half:
        half.write_text(result.dumps(), "utf-8")


def read_result(path: Path) -> Result:
    """Reads a record. Raises DataError for a file that is missing, too large or no such record."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes; this is no result record.")
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a result record: {error}") from error
    return parse_result(text, str(path))


def parse_result(text: str, who: str) -> Result:
    """Reads a record's text; `who` is named in errors. Raises DataError for what is no such record."""
    try:
        plain = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{who}: not a result record: {error}") from error
    return Result.from_json(plain, who)


def append_arrays(file: Path, arrays: Mapping[str, NDArray]) -> None:
    """Adds arrays to an .npz (a zip of .npy members, for `numpy.load`): one task at a time is in memory."""
    with zipfile.ZipFile(file, "a" if file.stat().st_size else "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for name, array in arrays.items():
            with out.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _task(plain: Any, who: str) -> TaskResult:
    row = Row(plain, who)
    points = [Row(point, f"{who}: curve[{n}]") for n, point in enumerate(row.get("curve", list))]
    return TaskResult(
        task=row.get("task", str),
        n_train=row.get("n_train", int),
        n_test=row.get("n_test", int),
        metrics=row.figures("metrics", METRICS),
        curve=[{"images": p.get("images", int), **{m: p.figure(m) for m in METRICS}} for p in points],
        ms_per_image=row.figures("ms_per_image", TIMES),
        state_bytes=row.get("state_bytes", int),
        offline=row.some_figures("offline", METRICS),
        parts=[
            Part(p.get("name", str), p.figures("metrics", METRICS), p.some_figures("offline", METRICS))
            for p in row.rows("parts")
        ],
        defects=row.get("defects", int) if "defects" in row.plain else None,
        admitted=row.some_figures("admitted", ADMITTED),
        deviation=row.some_figures("deviation", METRICS),
        runs=[
            SeedRun(r.get("seed", int), r.figures("metrics", METRICS), r.some_figures("offline", METRICS))
            for r in row.rows("runs")
        ],
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if isinstance(value, TaskResult | Part | SeedRun):
        pairs = ((name, getattr(value, name)) for name in value.__dataclass_fields__)
        return {name: _plain(one) for name, one in pairs if name not in OPTIONAL or one not in (None, [])}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
