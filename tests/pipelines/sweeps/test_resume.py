"""A sweep whose process is killed or interrupted goes on, and comes to what it would have come to."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from everline.pipelines.data.datasets import Task
from everline.pipelines.sweeps.record import FAILED, TrialRecord, write_trial
from everline.pipelines.sweeps.settings import SweepSettings
from everline.pipelines.sweeps.sweep import Sweep
from everline.pipelines.sweeps.work import Job

from ...conftest import typed

WORDS = ["--method", "coreset,padim", "--generation", 2, "--set", "size=64", "coreset.memory=100"]
Start = Callable[..., "subprocess.Popen[str]"]
Trials = Callable[[Path], list[Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    return write_disc(tmp_path_factory.mktemp("data") / "bolt", 8, 6, 6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, trials_in: Trials) -> list[Any]:
    """The trials of a sweep with five samples."""
    out = tmp_path_factory.mktemp("here") / "out"
    swept("--data", data, *WORDS, "--samples", 5, "--no-ray", "--out", out)
    return trials_in(out)


def swept(*words: object, code: int = 0) -> str:
    """A sweep in this process; what it said to people."""
    said = typed("sweep", *words)
    assert said.code == code, said.err
    return said.err


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What it said to people."""
    _, err = process.communicate(timeout=800)
    assert process.returncode == code, err
    return err


def records(out: Path) -> dict[str, int]:
    """When each was written."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob("trials/*.json")}


def wait(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Until there are so many records."""
    until = time.monotonic() + 800
    while len(records(out)) < count:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


def killed(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Kills the command alone, not what it has started: returned, but for two that seek Ray's head for a minute."""
    agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    others = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended by itself meanwhile
            if not agents.intersection(one.cmdline()):
                others.append(one)
    process.kill()
    process.communicate()
    return others


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--ray", "--no-ray"])
@pytest.mark.usefixtures("ray_session")  # for the last part
def test_killed_twice_it_has_the_trials_of_one_that_was_not(
    how: str, undisturbed: list[Any], data: Path, tmp_path: Path, start: Start, trials_in: Trials
) -> None:
    out = tmp_path / "out"
    moments = sorted(random.Random(how).sample(range(1, len(undisturbed) - 2), 2))
    words: list[Any] = ["--data", data, *WORDS, "--samples", 5]
    left, kept = [], {}
    for count in moments:
        process = start(*words, how, "--out", out)
        wait(process, out, count)
        left += killed(process)
        assert kept.items() <= records(out).items()
        kept, words = records(out), ["--resume"]
    swept("--resume", how, "--out", out)
    assert trials_in(out) == undisturbed
    assert kept.items() <= records(out).items() and len(kept) < len(undisturbed)
    numbers = [one["item"]["number"] for one in trials_in(out)]
    assert len(set(numbers)) == len(numbers)
    assert not psutil.wait_procs(left, timeout=30)[1], "processes of a killed sweep go on"
    assert not (out / ".tune").exists()


@pytest.mark.slow
def test_a_terminated_sweep_on_ray_leaves_what_was_done(
    data: Path, tmp_path: Path, start: Start, trials_in: Trials
) -> None:
    out = tmp_path / "out"
    process = start("--data", data, *WORDS, "--samples", 5, "--ray", "--out", out)
    wait(process, out, 2)
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    err = ended(process, code=130)
    assert f"everline sweep --resume --out {out}" in err and "Traceback" not in err
    outcome = json.loads((out / "outcome.json").read_text("utf-8"))
    assert not outcome["finished"] and len(outcome["trials"]) >= 2
    assert not psutil.wait_procs(started, timeout=30)[1], "processes of a terminated sweep go on"


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_more_samples_keep_what_there_is(
    undisturbed: list[Any], data: Path, tmp_path: Path, start: Start, trials_in: Trials
) -> None:
    out = tmp_path / "out"
    process = start("--data", data, *WORDS, "--samples", 2, "--out", out)
    wait(process, out, 1)
    process.send_signal(signal.SIGSTOP)  # or it might be done before the next one has begun
    assert "another process writes here" in swept("--resume", "--no-ray", "--out", out, code=1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes too
    process.send_signal(signal.SIGCONT)
    err = ended(process, code=130)
    assert f"everline sweep --resume --out {out}" in err and "Traceback" not in err
    outcome, kept = json.loads((out / "outcome.json").read_text("utf-8")), records(out)
    assert not outcome["finished"] and outcome["trials"] and (out / "report.html").is_file()
    swept("--resume", "--samples", 5, "--no-ray", "--out", out)
    assert kept.items() <= records(out).items()
    search = [[one for one in trials if one["item"]["phase"] == "search"] for trials in (trials_in(out), undisturbed)]
    assert search[0] == search[1]


def test_a_sweep_that_is_stopped_tells_of_what_it_has_not_heard_of(tmp_path: Path) -> None:
    settings = SweepSettings(methods=("padim", "subspace"), images={"bolt": "1"})
    one = Sweep(Job(settings, tmp_path, tmp_path), [Task("bolt", (), ())])
    item = one.conductor.next()
    assert item is not None
    write_trial(one.job.trials, TrialRecord(item, one.job.key(item), FAILED, error="late"))
    one.catch_up()
    assert [record.error for record in one.records] == ["late"]


def test_other_images_are_refused(
    data: Path, tmp_path: Path, write_disc: Callable[..., Path], trials_in: Trials
) -> None:
    own, out = write_disc(tmp_path / "bolt", 8, 6, 6), tmp_path / "out"
    swept("--data", own, *WORDS, "--no-ray", "--out", out)
    before = trials_in(out)
    (own / "train/good/100.png").write_bytes((own / "test/good/000.png").read_bytes())
    err = swept("--resume", "--samples", 2, "--no-ray", "--out", out, code=1)
    assert "begun with other images of bolt" in err and trials_in(out) == before
