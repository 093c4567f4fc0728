"""One run in MLflow, as plain names and numbers: what its own pages compare. Knows nothing of what was run.

Runs of one experiment are compared: MLflow puts their parameters and metrics side by side, by name.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .tracking import answering, connect, ending, experiment_id

LONGEST = 500  # characters of a value: what older servers take
NAME_LENGTH = 250
PARENT = "mlflow.parentRunId"  # the tag by which MLflow nests runs
BATCH = 100  # parameters or metrics in a request: as many as MLflow takes of the first; far faster than one by one
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a run says of itself; names as `legal` gives them.

    metrics: numbers at the end. series: further metrics, each as points (step, value). artifacts: texts by the names
    of their files. A value that is no finite number is left out: MLflow would store 0 or the largest float instead.
    A parameter's or tag's text is cut to LONGEST characters, which `…` shows. children: runs that MLflow shows below
    this one, in its experiment.
    """

    experiment: str
    name: str
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    children: Sequence["Run"] = field(default_factory=list)

    def points(self) -> Iterator[tuple[str, int, float]]:
        """Every metric as (name, step, value), the finite ones; what has no steps is at step 0."""
        for name, value in self.metrics.items():
            if math.isfinite(value):
                yield name, 0, float(value)
        for name, series in self.series.items():
            yield from ((name, step, float(value)) for step, value in series if math.isfinite(value))


def legal(name: str) -> str:
    """A name, or a part of one between slashes, as MLflow takes it: what it does not becomes `_`; 100 characters."""
    return re.sub(r"[^\w.\- ]|^\.", "_", name)[:100] or "_"


def record_run(uri: str, run: Run) -> str:
    """Writes a run into a store made with `prepare_tracking`; returns its id.

    It and its children are FINISHED when all of it is there; where that fails those that are there stay as FAILED, as
    far as the store still answers.
    Raises TrackingError, NoSpace, ConfigError (a wrong address).
    """
    with answering(f"could not record the run {run.name!r}", uri):
        client = connect(uri)
        with ExitStack() as begun:
            run_id = _write(client, experiment_id(client, uri, run.experiment), run, {}, begun)
    return run_id


def _write(client: Any, experiment: str, run: Run, more_tags: Mapping[str, str], begun: ExitStack) -> str:
    """Writes a run and its children, all of which end when `begun` does; returns its id."""
    tags = {name: _cut(value) for name, value in run.tags.items()}
    made = client.create_run(experiment, run_name=_cut(run.name, NAME_LENGTH), tags={**tags, **more_tags})
    run_id: str = made.info.run_id
    begun.enter_context(ending(client, run_id))
    _log(client, run_id, run)
    for name, text in run.artifacts.items():
        client.log_text(run_id, text, name)
    for child in run.children:
        _write(client, experiment, child, {PARENT: run_id}, begun)
    return run_id


def _log(client: Any, run_id: str, run: Run) -> None:
    """Parameters and metrics, in as few requests as MLflow allows."""
    import mlflow.entities as e

    now = int(time.time() * 1000)
    params = [e.Param(name, _cut(_text(value))) for name, value in run.params.items()]
    metrics = [e.Metric(name, value, now, step) for name, step, value in run.points()]
    for some in _batches(params):
        client.log_batch(run_id, params=some, synchronous=True)  # or a user's own setting could lose them unseen
    for more in _batches(metrics):
        client.log_batch(run_id, metrics=more, synchronous=True)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(text: str, length: int = LONGEST) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
