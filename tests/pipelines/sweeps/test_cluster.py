"""A sweep on clusters of several nodes, one of which may die: the trials are those of one process without Ray."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from everline.methods.errors import ConfigError
from everline.pipelines.sweeps import place
from everline.pipelines.sweeps.features import feature_key
from everline.pipelines.sweeps.settings import SweepSettings

from ...conftest import typed

SMALL = ["--method", "coreset,padim", "--samples", 4, "--seeds", 2, "--set", "size=64", "coreset.memory=100"]
Start = Callable[..., "subprocess.Popen[str]"]
Trials = Callable[[Path], list[Any]]


class Nodes:
    """A cluster in a process of its own; see nodes.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.told = self._heard()

    def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._heard()

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended; see what it said"
        return json.loads(line)


@contextmanager
def nodes(*cpus: int) -> Iterator[Nodes]:
    command = [sys.executable, str(Path(__file__).with_name("nodes.py")), *map(str, cpus)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Nodes(process)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """Enough that a trial takes a while: it is to be caught at work."""
    return write_disc(tmp_path_factory.mktemp("data") / "bolt", 20, 8, 8)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, trials_in: Trials) -> list[Any]:
    out = tmp_path_factory.mktemp("here") / "out"
    assert typed("sweep", "--data", data, *SMALL, "--no-ray", "--out", out).code == 0
    found = trials_in(out)
    assert [one["item"]["phase"] for one in found].count("search") == 8
    return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Nodes]:
    with nodes(1, 1) as found:
        yield found


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """What it said to people."""
    _, err = process.communicate(timeout=800)
    assert process.returncode == code, err
    return err


def wait(process: "subprocess.Popen[str]", condition: Callable[[], Any]) -> Any:
    """What the condition gives, as soon as it holds, while the process runs."""
    until = time.monotonic() + 800
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return found


def frozen(process: "subprocess.Popen[str]", there: Nodes) -> dict[str, Any]:
    """Stops a process that runs trials in the midst of one: {"node", "pid"}.

    Tune starts no other trial before the last one has answered that it is there. One that had not, when it was
    stopped, is let go on; one whose trial had just ended is ended by its node all the same.
    """

    seen: set[int] = set()

    def caught() -> dict[str, Any] | None:
        alive = [one for one in there.ask("trials") if one["alive"]]
        known = [one for one in alive if one["pid"] in seen]  # a moment ago, too: it has answered by now
        seen.update(one["pid"] for one in alive)
        for one in known:
            with suppress(psutil.NoSuchProcess):
                (stopped := psutil.Process(one["pid"])).suspend()
                give_up = time.monotonic() + 15
                while stopped.status() == psutil.STATUS_STOPPED:
                    if any(other["alive"] and other["pid"] != one["pid"] for other in there.ask("trials")):
                        return dict(one)
                    if time.monotonic() > give_up:
                        stopped.resume()
                    time.sleep(0.05)
        return None

    found: dict[str, Any] = wait(process, caught)
    return found


@pytest.mark.slow
def test_two_nodes_have_the_trials_of_one_process(
    pair: Nodes, undisturbed: list[Any], data: Path, tmp_path: Path, start: Start, trials_in: Trials
) -> None:
    out = tmp_path / "out"
    process = start("--data", data, *SMALL, "--out", out, address=pair.told["address"])
    one = frozen(process, pair)  # or it might be done with all trials before the other has begun
    wait(process, lambda: len(trials_in(out)) >= 4)
    with suppress(psutil.NoSuchProcess):  # its end may have been on its way when it was stopped
        psutil.Process(one["pid"]).resume()
    ended(process)
    assert trials_in(out) == undisturbed
    assert {one["node"] for one in pair.ask("trials")} == {pair.told["head"], *pair.told["others"]}


@pytest.mark.slow
def test_a_gpu_that_no_node_has_is_an_error_at_once(pair: Nodes, data: Path, tmp_path: Path, start: Start) -> None:
    words = ["--data", data, *SMALL, "--gpus", 1, "--out", tmp_path / "out"]
    err = ended(start(*words, address=pair.told["address"]), code=2)
    assert "no machine has 1 CPUs and 1 GPUs for a trial; the cluster has: 1 CPUs, 0 GPUs; 1 CPUs, 0 GPUs." in err
    assert not list((tmp_path / "out").glob("trials/*"))


@pytest.mark.slow
def test_a_node_that_dies_takes_no_trial_with_it(
    undisturbed: list[Any], data: Path, tmp_path: Path, start: Start, trials_in: Trials
) -> None:
    out = tmp_path / "out"
    with nodes(0, 1, 1) as three:  # the head only leads
        process = start("--data", data, *SMALL, "--out", out, address=three.told["address"])
        one = frozen(process, three)  # its trial is not to end before its node does
        wait(process, lambda: len(trials_in(out)) >= 7)
        assert len(trials_in(out)) < len(undisturbed)
        three.ask("kill", one["node"], one["pid"])
        ended(process)
    assert trials_in(out) == undisturbed
    assert json.loads((out / "outcome.json").read_text("utf-8"))["finished"]


@pytest.mark.parametrize(("address", "own"), [("", True), ("10.0.0.1:6379", False)])
def test_no_cluster_is_joined_that_was_not_named(address: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(place, "connect", lambda own, cpus: asked.append(own))
    monkeypatch.setattr("everline.pipelines.sweeps.tuning.check_room", lambda cpus, gpus: None)
    with place.Place().joined():
        assert asked == [own]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that it is to lack")
def test_a_machine_without_a_gpu_can_ask_for_trials_on_one() -> None:
    settings = SweepSettings(methods=("coreset",), given={"device": "cuda"})
    trial = settings.trial("coreset", None, {})
    assert feature_key(trial) == feature_key(SweepSettings(methods=("coreset",)).some_trial)
    with pytest.raises(ConfigError, match="sees no GPU here"):
        _ = settings.placed(trial).detector
