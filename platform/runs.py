"""One run in MLflow, as plain names and numbers: what its own pages compare. Knows nothing of what was run.

Runs of one experiment are compared: MLflow puts their parameters and metrics side by side, by name.

`record_run` writes a run that is done, with its children. For work that goes on for hours a run begins and ends apart
(`begin_run`, `end_run`), and others are put below it as they come (`add_run`); after a crash `runs_with` says what is
there. A run that is RUNNING or KILLED is not all there.
"""

import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .tracking import answering, artifacts_at, connect, ending, experiment_id, or_none

LONGEST = 500  # characters of a value: what older servers take
NAME_LENGTH = 250
PARENT = "mlflow.parentRunId"  # the tag by which MLflow nests runs
BATCH = 100  # parameters or metrics in a request: as many as MLflow takes of the first; far faster than one by one
PAGE = 1000  # runs in an answer
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a run says of itself; names as `legal` gives them.

    metrics: numbers at the end. series: further metrics, each as points (step, value). artifacts: texts or bytes by
    the names of their files. A value that is no finite number is left out: MLflow would store 0 or the largest float
    instead. A parameter's or tag's text is cut to LONGEST characters, which `…` shows. children: runs that MLflow
    shows below this one, in its experiment.
    """

    experiment: str
    name: str
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
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
            run_id = _write(client, uri, experiment_id(client, uri, run.experiment), run, {}, begun)
    return run_id


@dataclass(frozen=True)
class Known:
    """A run that a store has. whole: whether it is all there, be it FINISHED or FAILED."""

    run_id: str
    tags: Mapping[str, str]
    whole: bool


def begin_run(uri: str, run: Run) -> str:
    """Writes a run that goes on, without its children, and leaves it RUNNING; returns its id.

    Where that fails it is KILLED, as far as the store still answers. Raises as `record_run`.
    """
    with answering(f"could not begin the run {run.name!r}", uri):
        return _begin(connect(uri), uri, run, {})


def add_run(uri: str, run: Run, parent: str, failed: bool = False) -> str:
    """Writes a run that is done below another, given by its id, without its own children; returns its id.

    It is FINISHED, or FAILED where what it tells of has `failed`. Where it cannot be written whole it is KILLED, as
    far as the store still answers. Raises as `record_run`.
    """
    with answering(f"could not record the run {run.name!r}", uri):
        client = connect(uri)
        run_id = _begin(client, uri, run, {PARENT: parent})
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
    return run_id


def end_run(uri: str, run_id: str, run: Run, killed: bool = False) -> None:
    """Adds what `run` says to one that goes on, and ends it: FINISHED, or KILLED. Raises as `record_run`.

    Its name and tags stay. A metric that was there before counts as of now.
    """
    with answering(f"could not end the run {run_id}", uri):
        client = connect(uri)
        _log(client, run_id, run)
        _keep(client, uri, client.get_run(run_id), run.artifacts)
        client.set_terminated(run_id, "KILLED" if killed else "FINISHED")


def resume_run(uri: str, run_id: str) -> bool:
    """Makes a run that ended RUNNING again; False where it is not there or was deleted. Raises TrackingError."""
    with answering(f"could not go on with the run {run_id}", uri):
        client = connect(uri)
        found = or_none(lambda: client.get_run(run_id), "RESOURCE_DOES_NOT_EXIST")
        if found is None or found.info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
    return True


def runs_with(uri: str, experiment: str, tag: str, value: str) -> list[Known]:
    """The runs of an experiment with such a tag, those that were deleted left out. Raises TrackingError."""
    if "'" in value:
        raise ValueError(f"no search for {value!r}")  # never from outside: ids and checksums
    with answering(f"could not look for runs of {experiment!r}", uri):
        client = connect(uri)
        page, found, number = None, [], experiment_id(client, uri, experiment)
        while page is None or page.token:
            words = {"filter_string": f"tags.`{tag}` = '{value}'", "max_results": PAGE}
            page = client.search_runs([number], **words, page_token=page.token if page else None)
            found += [Known(r.info.run_id, r.data.tags, r.info.status in ("FINISHED", "FAILED")) for r in page]
    return found


def drop_run(uri: str, run_id: str) -> None:
    """Moves a run into MLflow's bin. Raises TrackingError."""
    with answering(f"could not delete the run {run_id}", uri):
        connect(uri).delete_run(run_id)


def _begin(client: Any, uri: str, run: Run, more_tags: Mapping[str, str]) -> str:
    """Writes a run that then is RUNNING, or KILLED where that raised."""
    tags = {name: _cut(value) for name, value in run.tags.items()}
    experiment = experiment_id(client, uri, run.experiment)
    made = client.create_run(experiment, run_name=_cut(run.name, NAME_LENGTH), tags={**tags, **more_tags})
    run_id: str = made.info.run_id
    try:
        _log(client, run_id, run)
        _keep(client, uri, made, run.artifacts)
    except BaseException:
        client.set_terminated(run_id, "KILLED")
        raise
    return run_id


def _write(client: Any, uri: str, experiment: str, run: Run, more_tags: Mapping[str, str], begun: ExitStack) -> str:
    """Writes a run and its children, all of which end when `begun` does; returns its id."""
    tags = {name: _cut(value) for name, value in run.tags.items()}
    made = client.create_run(experiment, run_name=_cut(run.name, NAME_LENGTH), tags={**tags, **more_tags})
    run_id: str = made.info.run_id
    begun.enter_context(ending(client, run_id))
    _log(client, run_id, run)
    _keep(client, uri, made, run.artifacts)
    for child in run.children:
        _write(client, uri, experiment, child, {PARENT: run_id}, begun)
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


def _keep(client: Any, uri: str, made: Any, artifacts: Mapping[str, str | bytes]) -> None:
    """Artifacts of a run, given as MLflow's entity, all of them at once."""
    if not artifacts:
        return
    with tempfile.TemporaryDirectory(prefix="everline-") as folder:
        for name, content in artifacts.items():
            Path(folder, name).write_bytes(content.encode() if isinstance(content, str) else content)
        artifacts_at(client, uri, made.info.artifact_uri).log_artifacts(folder)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(text: str, length: int = LONGEST) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
