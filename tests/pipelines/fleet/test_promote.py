"""A candidate and its gate: from the command line to the line's log."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner, Result
from everline.methods.detector import State
from everline.methods.errors import DataError, UnknownLine, UnknownVersion
from everline.methods.registry import build
from everline.pipelines.fleet import lines, promote
from everline.pipelines.fleet.evidence import from_log
from everline.pipelines.main import cli
from everline.platform.actor import answer, start_line
from everline.platform.calibration import Calibration
from everline.platform.line import Line, embed_image
from everline.platform.log import LogReader, line_folder, verify
from everline.platform.record import Record
from everline.platform.settings import Fleet, read_fleet
from everline.platform.versions import Versions

SETTINGS = {"method": "lemo", "false_reject_rate": 0.2, "probation": 1, "publish_every": 25, "params": {"size": 64}}


@pytest.fixture
def fleet(tracking_uri: str, tmp_path: Path) -> Fleet:
    plain = {"store": "store", "tracking": tracking_uri, "lines": {"mono": SETTINGS}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(plain))
    return read_fleet(tmp_path / "fleet.yaml")


@pytest.fixture
def at_work(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Line]]:
    """Opens the line (again) in this process; what the command asks of its actor is asked of it."""
    opened: list[Line] = []

    def again() -> Line:
        if opened:
            opened[-1].writer.release()
        opened.append(Line("mono", fleet.line("mono"), fleet.store, Versions(fleet.tracking, "mono")))
        return opened[-1]

    def ask(name: str, asked: Fleet, question: Callable[[Any], Any]) -> Any:
        line = opened[-1]
        return question(SimpleNamespace(promote=SimpleNamespace(remote=line.promote)))

    monkeypatch.setattr(promote, "ask_line", ask)
    yield again
    opened[-1].writer.release()


@pytest.fixture
def seen(at_work: Callable[[], Line], parts: list[bytes]) -> Line:
    """A line with sixty images, of whose last nobody learned anything in its first version."""
    line = at_work()
    for index, data in enumerate(parts[:34]):
        line.inspect(data, f"i{index}")
    line.settle()
    assert line.status()["version"] == 1
    return line


def detector(parts: list[bytes], shift: float = 0.0) -> tuple[State, Calibration]:
    """padim on the first images; `shift` is added to its calibration scores, so to its threshold."""
    made = build("padim", size=64)
    for data in parts[:15]:
        made.learn(embed_image(made, data))
    scores = [float(made.score(embed_image(made, data)).image[0]) for data in parts[15:25]]
    return made.state(), Calibration.of([score + shift for score in scores], 0.2)


def propose(fleet: Fleet, parts: list[bytes], shift: float = 0.0) -> int:
    made = detector(parts, shift)
    return Versions(fleet.tracking, "mono").propose(
        *made, watermark=24, key=f"sweep-{shift}", tags={"source": "sweep"}
    )


def run(fleet: Fleet, tmp_path: Path, *args: str) -> tuple[Result, dict[str, Any]]:
    file = tmp_path / "promote.json"
    words = ["promote", "mono", "--fleet", str(tmp_path / "fleet.yaml"), "--json", str(file), *args]
    done = CliRunner().invoke(cli, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done, json.loads(file.read_text())


@pytest.fixture
def folder(write_disc: Callable[..., Path], tmp_path: Path) -> str:
    return str(write_disc(tmp_path / "disc", 1, 12, 12))


def test_a_good_candidate_becomes_current_and_stays_after_a_restart(
    fleet: Fleet, seen: Line, at_work: Callable[[], Line], parts: list[bytes], folder: str, tmp_path: Path
) -> None:
    number = propose(fleet, parts)
    done, found = run(fleet, tmp_path, "--data", folder)
    assert (done.exit_code, found["decision"], found["candidate"], found["current"]) == (0, "promote", number, 1)
    assert (found["images"], found["caveat"]) == ({"normal": 12, "defect": 12}, "")
    versions = Versions(fleet.tracking, "mono")
    assert (versions.current(), versions.candidate()) == (number, None)
    assert versions.list()[0].tags["gate"] == "promote"
    seen.writer.release()
    line = at_work()
    assert line.status()["version"] == number
    for index, data in enumerate(parts[34:], 34):
        line.inspect(data, f"i{index}")
    line.settle()
    assert line.status()["version"] > number  # the line's own learner goes on, and publishes


def test_a_candidate_that_rejects_too_much_is_held_and_nothing_changes(
    fleet: Fleet, seen: Line, parts: list[bytes], folder: str, tmp_path: Path
) -> None:
    number = propose(fleet, parts, shift=-1000.0)
    before = verify(seen.folder).records
    done, found = run(fleet, tmp_path, "--data", folder)
    assert (done.exit_code, found["decision"]) == (1, "hold")
    assert "12 of 12 normal images rejected where 0.2 is promised" in found["reasons"][0]
    versions = Versions(fleet.tracking, "mono")
    assert (versions.current(), versions.candidate(), verify(seen.folder).records) == (1, number, before)
    assert versions.list()[0].tags["gate"] == "hold"
    assert "is held; version 1 stays current" in done.output


def test_a_candidate_that_finds_nothing_is_held(
    fleet: Fleet, seen: Line, parts: list[bytes], folder: str, tmp_path: Path
) -> None:
    propose(fleet, parts, shift=1000.0)
    done, found = run(fleet, tmp_path, "--data", folder)
    assert done.exit_code == 1
    assert [row["name"] for row in found["checks"] if not row["passed"]] == ["recall"]


def test_without_data_it_judges_by_records_that_no_version_learned(
    fleet: Fleet, seen: Line, parts: list[bytes], tmp_path: Path
) -> None:
    propose(fleet, parts)
    done, found = run(fleet, tmp_path)
    watermark = max(version.watermark for version in Versions(fleet.tracking, "mono").list())
    records = [r for r in LogReader(seen.folder).records() if r.kind == "image" and r.seq > watermark]
    remembered = sum(bool(record.admitted) for record in records)
    assert found["images"] == {"normal": 0, "remembered": remembered, "defect": 0, "synthetic defect": remembered}
    assert remembered >= 5
    assert f"{remembered} of {remembered} defects are synthetic" in found["caveat"]
    assert found["caveat"] in Versions(fleet.tracking, "mono").list()[0].tags["gate_reasons"]
    assert (done.exit_code, found["decision"]) == (0, "promote"), found["reasons"]


def test_too_few_images_hold_it_and_force_decides_all_the_same(
    fleet: Fleet, seen: Line, parts: list[bytes], write_disc: Callable[..., Path], tmp_path: Path
) -> None:
    number = propose(fleet, parts)
    few = str(write_disc(tmp_path / "few", 1, 3, 3))
    done, found = run(fleet, tmp_path, "--data", few)
    assert (done.exit_code, found["reasons"]) == (
        1,
        ["not enough evidence: 3 normal images, but 0.2 shows in 5 or more"],
    )
    assert run(fleet, tmp_path, "--data", few, "--force")[0].exit_code == 0
    assert Versions(fleet.tracking, "mono").current() == number


def test_without_a_candidate_or_a_line_there_is_one_clear_error(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UnknownVersion, match="no version waits as candidate"):
        run(fleet, tmp_path)
    done = CliRunner().invoke(cli, ["promote", "poly", "--fleet", str(tmp_path / "fleet.yaml")])
    assert isinstance(done.exception, UnknownLine)


def test_a_file_that_is_no_image_is_named(
    fleet: Fleet, seen: Line, parts: list[bytes], folder: str, tmp_path: Path
) -> None:
    propose(fleet, parts)
    (Path(folder) / "test/good/broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken"):
        run(fleet, tmp_path, "--data", folder)


def test_of_a_log_an_operators_words_are_labels_and_the_guards_are_not(fleet: Fleet, seen: Line) -> None:
    first = len(LogReader(seen.folder))
    bad = Record("image", "bad", image=b"x", verdict="reject", admitted=False)
    words = [Record("feedback", f"f{n}", data={"of": first + n, "label": w}) for n, w in enumerate(("ok", "defect"))]
    seen.writer.append([bad, *(Record("image", f"x{n}", image=b"x", verdict="reject") for n in range(2)), *words])
    chosen = from_log(LogReader(seen.folder), after=first - 1)
    assert chosen.counts == {"normal": 1, "remembered": 0, "defect": 1, "synthetic defect": 1}


def test_versions_shows_the_candidate(fleet: Fleet, seen: Line, parts: list[bytes], tmp_path: Path) -> None:
    propose(fleet, parts)
    words = ["versions", "mono", "--fleet", str(tmp_path / "fleet.yaml"), "--json", "-"]
    rows = json.loads(CliRunner().invoke(cli, words).output)
    assert [row["aliases"] for row in rows] == [["candidate"], ["current"]]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_real_line_is_told_and_a_restarted_one_still_knows(
    fleet: Fleet, parts: list[bytes], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("connect", "disconnect"):  # the session's cluster stays
        monkeypatch.setattr(lines, name, lambda: None)
    number = propose(fleet, parts)
    assert run(fleet, tmp_path, "--data", folder)[0].exit_code == 0  # no line runs: one is started, and closed
    (record,) = LogReader(line_folder(fleet.store, "mono")).records()
    assert (record.kind, record.version, record.data) == ("rollback", number, {"promoted": True, "instead_of": None})
    handle, _ = start_line("mono", fleet)
    assert answer(handle.inspect.remote(parts[40], "a"))["version"] == number
    assert answer(handle.status.remote())["version"] == number
    ray.kill(handle)
