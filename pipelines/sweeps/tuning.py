"""The door to Ray Tune: places a sweep's trials on a cluster, starts again what died with its machine.

Which trials there are, the conductor decides; what came of one, the worker writes. So Tune's own state is of no
importance here: after a kill of this process a new one asks the conductor again, and finds what is done on the disk.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ...methods.errors import ConfigError, StoreError
from .conductor import Conductor
from .record import FAILED, Item, TrialRecord, read_trial, write_trial
from .work import Job, run_item

QUIET = {  # of Tune: no files of its own, no table, no handler for Ctrl-C
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
AGAIN = 2  # times that a trial is started again whose process or machine died
Ended = Callable[[TrialRecord, bool], None]  # a record, and whether it was there before


def run_on_ray(conductor: Conductor, job: Job, ended: Ended, *, cpus: float, gpus: float, jobs: int | None) -> None:
    """Runs all trials on the cluster that this process has joined.

    cpus, gpus: what each of them takes, see `check_room`. jobs: how many at most at once; None: as there is room.
    ended: hears of every trial, from this thread. Raises StoreError where the nodes do not see the sweep's folder.
    """
    scratch = job.out / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)  # a killed sweep's
    with _quiet():
        from ray import tune

        def trial(config: Mapping[str, Any]) -> None:
            item = item_of(config["item"])

            def beat(images: int, of: int) -> None:
                tune.report({"images": images, "of": of})

            there = read_trial(job.trials, item, job.key(item))  # its process died between the record and the report
            record = there or run_item(job, item, beat)
            tune.report({"status": record.status})

        source = _source(conductor, job, ended)
        try:
            tune.Tuner(
                tune.with_resources(trial, {"CPU": cpus, "GPU": gpus}),
                tune_config=tune.TuneConfig(
                    search_alg=source, num_samples=-1, reuse_actors=True, max_concurrent_trials=jobs
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=AGAIN),
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if source.broken is not None:
        raise source.broken


def run_here(conductor: Conductor, job: Job, ended: Ended) -> None:
    """The same trials one after the other in this process, without Ray: to debug, and to measure against."""
    while not conductor.finished:
        item = conductor.next()
        if item is None:
            raise RuntimeError("a sweep waits for nothing")
        found = read_trial(job.trials, item, job.key(item))
        record = found or run_item(job, item)
        conductor.done(record)
        ended(record, found is not None)


def _source(conductor: Conductor, job: Job, ended: Ended) -> Any:
    """The conductor as Tune sees it: a searcher that suggests trials and hears of their ends."""
    from ray.tune.search import Searcher

    class Source(Searcher):
        broken: Exception | None = None

        def __init__(self) -> None:
            super().__init__()
            self.running: dict[str, Item] = {}

        def suggest(self, trial_id: str) -> Any:
            try:
                return self._suggest(trial_id)
            except Exception as error:  # noqa: BLE001 - Tune would wrap it in a traceback of its own
                self.broken = self.broken or error
                return Searcher.FINISHED

        def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            while self.broken is None and not conductor.finished:
                item = conductor.next()
                if item is None:
                    return None  # before others have ended
                found = read_trial(job.trials, item, job.key(item))
                if found is None:
                    self.running[trial_id] = item
                    return {"item": json.dumps(asdict(item))}
                conductor.done(found)
                ended(found, True)
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            item = self.running.pop(trial_id, None)
            if item is None:
                return
            try:
                record = read_trial(job.trials, item, job.key(item)) or _lost(job, item, error)
                conductor.done(record)
                ended(record, False)
            except Exception as broken:  # noqa: BLE001 - see above
                self.broken = self.broken or broken

        def __reduce__(self) -> Any:  # Tune saves its state; nothing of this one is ever read again
            return (dict, ())

    return Source()


def _lost(job: Job, item: Item, died: bool) -> TrialRecord:
    """The record of a trial that left none."""
    if not died:
        raise StoreError(
            f"{job.trials}: a trial has ended, and its record is not here. Every node must see --out under the same "
            "path, as it does the data: name a folder on shared storage."
        )
    error = f"its process died {AGAIN + 1} times (out of memory, or without the cluster's token?)"
    record = TrialRecord(item, job.key(item), FAILED, error=error)
    write_trial(job.trials, record)
    return record


def item_of(text: str) -> Item:
    """The reverse of what is handed to a worker."""
    plain = json.loads(text)
    return Item(**{**plain, "cutoffs": {int(at): value for at, value in plain["cutoffs"].items()}})


def check_room(cpus: float, gpus: float) -> None:
    """Raises ConfigError where no machine of the cluster could ever run a trial: Tune would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(f"no machine has {cpus:g} CPUs and {gpus:g} GPUs for a trial; the cluster has: {has}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune without files, tables and log lines of its own; what a trial has to say is in its record."""
    before = {name: os.environ.get(name) for name in QUIET}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air")]
    levels = [one.level for one in loggers]
    os.environ.update(QUIET)
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
