"""`everline up`, `down`, `status`, `switch` and `feedback` as people use them; the loss of a head, and of a node."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from everline.platform.line import Line
from everline.platform.log import LogReader, line_folder, verify
from everline.platform.settings import read_fleet
from everline.platform.versions import Versions

from ...conftest import MAIN, Said, encoded, typed, until

Cluster = tuple[Callable[..., Any], dict[str, Any]]
HERE = Path(__file__).parent
LINE = {"method": "coreset", "false_reject_rate": 0.05, "probation": 1, "params": {"size": 64, "memory": 100}}
FORGETFUL = {**LINE, "false_reject_rate": 0.1, "publish_every": 25, "checkpoint_every": 5, "keep_images": 10}
HEAVY = bytes(400 * 2**10)  # behind an image, which is none the worse for it: fifty fill a shard


class User:
    """Somebody in a folder with a fleet file and images, who types commands."""

    def __init__(self, folder: Path, parts: list[bytes], say: Callable[..., Said]) -> None:
        self.folder, self._say = folder, say
        (folder / "images").mkdir()
        for index, data in enumerate(parts):
            (folder / "images" / f"{index:03d}.png").write_bytes(data)

    def write(self, **lines: dict[str, Any]) -> None:
        plain = {"store": "store", "tracking": f"sqlite:///{self.folder}/mlflow.db", "lines": lines}
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(plain))

    def types(self, *words: str, code: int = 0) -> Said:
        said = self._say(*words)
        assert said.code == code, (words, said)
        return said

    def states(self, code: int = 0) -> dict[str, Any]:
        return {row["line"]: row for row in self.types("status", "--json", "-", code=code).json}

    @property
    def log(self) -> Path:
        return line_folder(self.folder / "store", "mono")


@contextmanager
def elsewhere(folder: Path, parts: list[bytes], **env: str) -> Iterator[User]:
    """What is typed is carried out in a process of its own (typist.py), on another cluster than the other tests'."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | env
    with subprocess.Popen(
        [sys.executable, str(HERE / "typist.py")],
        cwd=folder,
        env=kept,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:

        def say(*words: str) -> Said:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(words), file=process.stdin, flush=True)
            return Said(**json.loads(process.stdout.readline()))

        yield User(folder, parts, say)


def of_ray(folder: str) -> list[psutil.Process]:
    """The processes of the clusters below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or []):
            found += [process, *process.children(recursive=True)]
    return found


def killed(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, 20)


@pytest.fixture
def user(tmp_path: Path, parts: list[bytes], tracking_uri: str) -> Iterator[User]:
    """On a machine where no Ray runs; what runs in the end is ended."""
    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as ray:
        try:
            with elsewhere(tmp_path, parts, RAY_TMPDIR=ray) as one:
                one.ray = ray  # type: ignore[attr-defined]
                yield one
        finally:
            killed(of_ray(ray))


@pytest.fixture
def joined(
    tmp_path: Path, parts: list[bytes], tracking_uri: str, ray_session: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[User]:
    """On a cluster that others have started."""
    monkeypatch.setenv("RAY_ADDRESS", ray_session)
    monkeypatch.chdir(tmp_path)
    one = User(tmp_path, parts, typed)
    yield one
    one.types("down")


@pytest.mark.slow
def test_what_runs_is_made_equal_to_what_the_file_says(user: Any) -> None:
    user.write(mono=LINE, poly=LINE)
    assert user.states(code=1)["mono"]["state"] == "down"
    assert "mono: start\npoly: start\n" in user.types("up", "--dry-run").err
    assert user.states(code=1)["mono"]["state"] == "down"

    first = user.types("up").err
    assert "mono: started\n" in first
    assert "started a Ray cluster" in first
    again = user.types("up", "fleet.yaml")
    assert "nothing changed" in again.err
    assert "mono: runs\n" in again.err
    told = json.loads(user.types("stream", "mono", "images", "--json", "-").out)
    assert told["acknowledged"] == 60

    faster, nowhere = {**LINE, "publish_every": 300}, {**LINE, "place": "nowhere"}
    user.write(mono=faster, other=nowhere)
    said = user.types("up", code=1).err
    assert "poly: stopped (it is not in the file)" in said
    assert "mono: started again (publish_every: 200 -> 300)" in said
    assert "other: could not be started: line other: no node has nowhere 0.001" in said
    states = user.states(code=1)
    assert (states["mono"]["state"], states["mono"]["images_learned"]) == ("running", told["status"]["images_learned"])
    assert states["other"]["state"] == "down"
    assert "no node has nowhere" in states["other"]["problem"]

    said = user.types("down").err
    assert "mono: stopped\n" in said
    assert "the Ray cluster has ended" in said
    assert not of_ray(user.ray)
    assert verify(user.log).ok
    assert "nothing changed" in user.types("down", "fleet.yaml").err


@pytest.mark.slow
def test_a_line_whose_store_was_changed_is_ended_where_it_was_and_started_where_it_is(joined: User) -> None:
    joined.write(mono=LINE)
    joined.types("up")
    file = joined.folder / "fleet.yaml"
    file.write_text(file.read_text().replace("store: store", "store: other"))
    old = joined.folder / "store"
    (lost, there) = joined.types("status", "--json", "-", code=1).json
    assert (lost["state"], there["state"]) == ("down", "running")
    assert there["problem"] == f"it writes to another store than the file says, {old}; `everline up` would end it"
    why = f"(it writes to another store than the file says, {old})"
    assert joined.types("up", "--dry-run").err == f"mono: stop {why}\nmono: start\n"
    assert joined.types("up").err == f"mono: stopped {why}\nmono: started\n"
    assert "nothing changed" in joined.types("up").err
    file.write_text(file.read_text().replace("mlflow.db", "another.db"))
    assert "mono: restart (tracking: sqlite:////" in joined.types("up", "--dry-run").err
    file.write_text(file.read_text().replace("store: other", "store: third"))
    assert joined.types("down").err.startswith(
        f"mono: stopped (it writes to another store than the file says, {old.with_name('other')})"
    )


@pytest.mark.slow
def test_an_operator_says_what_comes_and_what_it_was_though_the_image_is_gone(
    joined: User, parts: list[bytes], more_parts: list[bytes]
) -> None:
    def stream(name: str, images: list[bytes]) -> None:
        (joined.folder / name).mkdir()
        for n, data in enumerate(images):
            (joined.folder / name / f"{name}-{n:03d}.png").write_bytes(data + HEAVY)
        assert joined.types("stream", "mono", name, "--json", "-").json["acknowledged"] == len(images)

    def told(*words: str) -> Any:
        return joined.types(*words, "--json", "-").json

    def logged(number: int) -> Any:
        return next(iter(LogReader(joined.log).records(after=number - 1)))

    joined.write(mono=FORGETFUL)
    joined.types("up")
    assert told("switch", "mono", "disc") == {"line": "mono", "task": "disc", "record": 0}
    stream("early", parts[:38] + [encoded(n, defect=True) for n in range(5)])
    early = [one for one in LogReader(joined.log).records(images=False) if one.kind == "image"]
    rejected, passed = (next(one for one in early if one.verdict == verdict) for verdict in ("reject", "pass"))
    stream("late", parts[38:] + more_parts + [encoded(n) for n in range(100, 120)])
    until(lambda: joined.states()["mono"]["images_from"] > early[-1].seq)
    assert logged(rejected.seq).image is None and logged(passed.seq).image is None
    before = joined.states()["mono"]

    said = told("feedback", "mono", rejected.id, "ok", "--by", "ann")
    number = said["record"]
    assert said == {
        "line": "mono", "id": rejected.id, "record": number, "of": rejected.seq, "label": "ok", "changed": False
    }  # fmt: skip
    record = logged(number)
    assert (record.kind, record.task, record.image, record.admitted) == ("feedback", "disc", None, False)
    assert record.data == {"of": rejected.seq, "id": rejected.id, "label": "ok", "by": "ann"}
    assert told("feedback", "mono", rejected.id, "ok") == said  # nothing new, no record
    assert told("feedback", "mono", passed.id, "defect")["record"] == number + 1
    assert "record" in joined.types("feedback", "mono", passed.id, "ok").out
    assert "no image 'nobody'" in joined.types("feedback", "mono", "nobody", "ok", code=1).err
    after = joined.states()["mono"]
    assert after["images_learned"] == before["images_learned"] and after["state"] == "running"
    assert after["false_rejects"] != before["false_rejects"]  # it recalibrates all the same

    switched = told("switch", "mono", "cap")
    assert told("switch", "mono", "cap") == switched and logged(switched["record"]).data["task"] == "cap"
    stream("caps", [encoded(n) for n in range(200, 203)])
    last = [one for one in LogReader(joined.log).records(images=False) if one.kind == "image"][-3:]
    assert [(one.task, one.verdict) for one in last] == [("cap", "learning")] * 3

    there = joined.states()["mono"]
    joined.types("down", "mono")
    joined.types("up")
    back = joined.states()["mono"]
    same = ("images_learned", "false_rejects", "threshold", "version", "task", "inspected")
    assert [back[name] for name in same] == [there[name] for name in same]
    assert verify(joined.log).ok


@pytest.mark.slow
def test_after_the_loss_of_the_head_up_goes_on_where_it_was(user: Any) -> None:
    user.write(mono=LINE)
    user.types("up")
    learned = json.loads(user.types("stream", "mono", "images", "--json", "-").out)["status"]["images_learned"]
    killed(of_ray(user.ray))  # head, worker and line, as when the power goes
    assert user.states(code=1)["mono"]["state"] == "down"
    assert "mono: started\n" in user.types("up").err
    told = json.loads(user.types("stream", "mono", "images", "--json", "-").out)
    assert (told["duplicates"], told["admitted"], told["status"]["images_learned"]) == (60, 0, learned)
    user.types("down")
    assert (verify(user.log).unique, verify(user.log).ok) == (60, True)


@pytest.fixture(scope="module")
def nodes(sized: Callable[..., Any]) -> Iterator[Cluster]:
    """A head and nodes that take lines (sweeps/nodes.py), one more than are lost: ask("cut", NODE); what it said."""
    command = [sys.executable, str(HERE.parent / "sweeps" / "nodes.py"), *sized("011", "0111")]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:

        def ask(*words: object) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            print(*words, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline() or "null")

        assert process.stdout is not None
        yield ask, json.loads(process.stdout.readline())


@pytest.mark.slow
@pytest.mark.parametrize(
    "frozen", [pytest.param(False, id="dead", marks=pytest.mark.long), pytest.param(True, id="only thought dead")]
)
def test_a_lost_nodes_line_comes_up_on_another(
    nodes: Cluster,
    tmp_path: Path,
    parts: list[bytes],
    tracking_uri: str,
    frozen: bool,
) -> None:
    ask, told = nodes
    with elsewhere(tmp_path, parts, RAY_ADDRESS=told["address"]) as user:
        user.write(mono={**LINE, "place": "hall"})
        user.types("up")
        before = user.states()["mono"]
        (lost,) = (node for node in told["others"] if node.startswith(before["node"]))
        stream = subprocess.Popen(
            [*MAIN, "stream", "mono", "images", "--json", "out.json"],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": told["address"]},
        )
        until(lambda: len(LogReader(user.log)) >= 10, 400)
        if frozen:
            os.kill(before["pid"], signal.SIGSTOP)
            (user.log / "lock").unlink()  # between two machines it may not reach: only the epoch keeps them apart
            ask("cut", lost)
        else:
            ask("kill", lost, before["pid"])
        start, length = time.monotonic(), len(LogReader(user.log))
        until(lambda: len(LogReader(user.log)) > length, 400)
        sys.stdout.write(f"{time.monotonic() - start:.1f} s until the next record\n")  # pytest -rP shows it
        if frozen:
            os.kill(before["pid"], signal.SIGCONT)  # it goes on with the image that it had
        assert stream.wait(100) == 0
        after = user.states()["mono"]
        assert after["state"] == "running"
        assert after["pid"] != before["pid"]
        assert after["node"] != before["node"]
        user.types("down")
        if frozen:
            ask("end", lost)
    assert json.loads((tmp_path / "out.json").read_text())["acknowledged"] == 60
    found = verify(user.log)
    assert (found.inspected, found.unique, found.ok) == (60, 60, True)
    assert digest(user, "store") == digest(user, "again")


def digest(user: User, store: str) -> str:
    """Of the line as it was closed (`store`), or of a fold over nothing but its log (`again`)."""
    fleet = read_fleet(user.folder / "fleet.yaml")
    if store == "again":
        shutil.copytree(user.log, user.folder / store / "mono", ignore=shutil.ignore_patterns("checkpoints"))
    line = Line("mono", fleet.line("mono"), user.folder / store, Versions(fleet.tracking, "mono"))
    try:
        return line.digest()
    finally:
        line.writer.release()
