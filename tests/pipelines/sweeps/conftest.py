"""Trials of a sweep made by hand, logs of lines as their writer makes them, sweeps in processes of their own."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from everline.pipelines.records.results import METRICS, Result, SeedRun, TaskResult
from everline.pipelines.sweeps.objectives import OBJECTIVES, measures
from everline.pipelines.sweeps.outcome import Outcome
from everline.pipelines.sweeps.record import COMPLETE, SEARCH, Item, TrialRecord
from everline.pipelines.sweeps.settings import SweepSettings
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record

NOTHING: Mapping[str, Any] = MappingProxyType({})
Made = Callable[..., Any]
Rows = Sequence[tuple[Any, ...]]


def task_result(task: str, auroc: float, size: int, ms: float, by_seed: tuple[float, ...], aupro: float) -> TaskResult:
    figures = dict.fromkeys(METRICS, math.nan) | {"image_auroc": auroc, "aupro": aupro, "pixel_f1": aupro / 2}
    curve = [{"images": n, **figures, "image_auroc": auroc - 0.1 / n} for n in (1, 2, 4)]
    times = {"backbone": ms / 2, "score": ms / 4, "learn": ms / 4}
    runs = [SeedRun(n, {**figures, "image_auroc": one}) for n, one in enumerate(by_seed)]
    return TaskResult(task, 4, 6, figures, curve, times, size, runs=runs)


@pytest.fixture(scope="session")
def trial() -> Made:
    """trial(number, configuration, auroc): a record; method, memory, task, params, size, ms, ... as they are named."""

    def made(
        number: int,
        configuration: int,
        auroc: float = 0.5,
        *,
        method: str = "coreset",
        memory: int | None = None,
        task: str = "bolt",
        phase: str = SEARCH,
        status: str = COMPLETE,
        params: Mapping[str, Any] = NOTHING,
        size: int = 1_000_000,
        ms: float = 20.0,
        by_seed: tuple[float, ...] = (),
        aupro: float = 0.25,
        objective: str = "auroc",
        **changed: Any,
    ) -> TrialRecord:
        item = Item(number, configuration, method, memory, dict(params), task, phase)
        one = task_result(task, auroc, size, ms, by_seed, aupro)
        known = {"size": 64, "seed": 0, "sigma": 4.0} | dict(params)
        result = Result("online", method, known, "b", 64, 0, [one], seeds=list(range(len(by_seed))))
        plain: dict[str, Any] = {"seconds": 1.5, "points": [(1, 4, auroc - 0.1), (2, 4, auroc - 0.05)]}
        if status == COMPLETE:
            plain["objective"] = OBJECTIVES[objective].of(measures(result))
        plain["result"] = None if status == "failed" else result
        return TrialRecord(item, f"{number:064x}", status, **(plain | changed))

    return made


@pytest.fixture(scope="session")
def asked() -> Made:
    """asked(**changed): the settings of a sweep of coreset and padim on one task."""

    def made(**changed: Any) -> SweepSettings:
        plain: dict[str, Any] = {"methods": ("coreset", "padim"), "images": {"bolt": "1"}}
        return SweepSettings(**(plain | changed))

    return made


@pytest.fixture(scope="session")
def outcome(asked: Made) -> Made:
    """outcome(*records, **settings): what came of them, in a sweep that ended by itself."""

    def made(*records: TrialRecord, finished: bool = True, **changed: Any) -> Outcome:
        return Outcome(asked(**changed), records, {"ratio": math.nan, "shards": 2}, 12.5, finished, len(records))

    return made


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., LogReader]:
    """write_log(images, rows, name="mono"): a log of these rows, and a reader of it.

    A row is ("good" | "bad" | "young" | "seen" | "confirmed", place of its image), where `seen` was inspected and
    not learned; ("ok" | "defect", number of a record) is an operator's word; ("repeat", number) a repeated image.
    """

    def write(images: Sequence[bytes], rows: Rows, name: str = "mono") -> LogReader:
        folder = tmp_path / "store" / name
        with LogWriter.open(folder) as writer:
            for n, (what, which) in enumerate(rows):
                writer.append([_record(what, which, images, n)])
        return LogReader(folder)

    return write


def _record(what: str, which: int, images: Sequence[bytes], n: int) -> Record:
    if what in ("ok", "defect"):
        return Record("feedback", f"feedback-{n}", data={"of": which, "label": what})
    if what == "repeat":
        return Record("repeat", f"r{n}", data={"of": which})
    verdict = {"bad": "reject", "young": "learning"}.get(what, "pass")
    return Record("image", f"i{n}", image=images[which], verdict=verdict, admitted=what in ("good", "young"))


@pytest.fixture(scope="module")
def start() -> "Iterator[Callable[..., subprocess.Popen[str]]]":
    """start(*words, address=""): `everline sweep` in a process of its own, on that cluster or its own."""
    # A shell that starts the tests in the background has them ignore Ctrl-C, and their children too.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from everline.pipelines.main import main; main()"
    started: list[subprocess.Popen[str]] = []

    def begun(*words: object, address: str = "") -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", code, "sweep", *map(str, words)]
        env = {**os.environ, "RAY_ADDRESS": address}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=env, text=True, stderr=pipe, stdout=pipe, start_new_session=True))
        return started[-1]

    yield begun
    for one in started:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


@pytest.fixture(scope="session")
def trials_in() -> Callable[[Path], list[Any]]:
    """trials_in(OUT): the records in a sweep's folder, by number, without what a clock gave."""

    def found(out: Path) -> list[Any]:
        trials = [json.loads(file.read_text("utf-8")) for file in sorted((out / "trials").glob("*.json"))]
        for trial in trials:
            del trial["seconds"], trial["result"]["mean"]["images_per_s"]
            for task in trial["result"]["tasks"]:
                del task["ms_per_image"]
        return trials

    return found
