"""A learner that really becomes worse: an operator calls defects ok, and the line's gate keeps the version at work."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from everline.platform.line import Line, embed_image
from everline.platform.log import LogReader
from everline.platform.settings import LineSettings
from everline.platform.versions import Versions

from .lines import die, png

pytestmark = pytest.mark.slow
SETTINGS = LineSettings(
    method="coreset", params={"size": 64}, false_reject_rate=0.05, publish_every=100, probation=80, checkpoint_every=20
)
LABELLED, POISON, FRESH = 5000, 6000, 7000  # indices of defects: told as such, told to be ok, seen by no version


@pytest.fixture
def versions(tracking_uri: str) -> Versions:
    return Versions(tracking_uri, "a")


@pytest.fixture
def opened(tmp_path: Path, versions: Versions) -> Iterator[Callable[..., Line]]:
    """Opens the line, with its gate or without."""
    lines: list[Line] = []

    def make(gate: bool, **more: int) -> Line:
        lines.append(Line("a", replace(SETTINGS, gate=gate, **more), tmp_path / "store", versions))
        return lines[-1]

    yield make
    for line in lines:
        line.writer.release()


def work(line: Line, first: int, last: int, poison: bool = False) -> None:
    """Good parts; with `poison` a defect after each, of which an operator says ok where the line rejects it."""
    for n in range(first, last):
        line.inspect(png(n), f"good-{n}")
        if poison and line.inspect(png(POISON + n, defect=True), f"poison-{n}").verdict == "reject":
            line.feedback(f"poison-{n}", "ok", "mallory")
    line.settle()


def found(line: Line) -> int:
    """Of ten fresh defects, how many the version at work rejects."""
    assert line.scorer is not None
    scored = [embed_image(line.scorer.detector, png(FRESH + n, defect=True)) for n in range(10)]
    return sum(line.scorer.judge(one)[0]["verdict"] == "reject" for one in scored)


def label(line: Line) -> None:
    """24 defects, which the line rejects, are called so."""
    for n in range(24):
        assert line.inspect(png(LABELLED + n, defect=True), f"labelled-{n}", learn=False).verdict == "reject"
        line.feedback(f"labelled-{n}", "defect", "ann")


def turns(line: Line) -> list[str]:
    """What became of the line's candidates."""
    return [one.kind for one in LogReader(line.folder).records(images=False) if one.kind in ("publish", "held")]


def taught(line: Line, poison: bool) -> list[str]:
    """Two versions, 24 labelled defects, then the turn of a third; returns what became of each."""
    work(line, 0, 60)
    label(line)
    work(line, 60, 110)
    assert line.status()["version"] == 2 and found(line) == 10
    work(line, 110, 190, poison)
    return turns(line)


def test_a_learner_that_was_taught_defects_is_held_and_says_why(
    opened: Callable[..., Line], versions: Versions
) -> None:
    line = opened(True)
    assert taught(line, poison=True) == ["publish", "publish", "held"]
    (record,) = [one for one in LogReader(line.folder).records() if one.kind == "held"]
    assert any("labelled defects" in reason for reason in record.data["reasons"])
    for _ in range(2):
        assert line.status()["held"] == "; ".join(record.data["reasons"])
        assert versions.current() == line.status()["version"] == 2 and len(versions.list()) == 2
        die(line)
        line = opened(True)
        line.settle()
    assert line.inspect(png(190), "good-190").version == 2 and found(line) == 10


def test_a_short_probation_suffices_and_so_do_words_on_what_the_version_at_work_has_judged(
    opened: Callable[..., Line],
) -> None:
    line = opened(True, probation=25)
    work(line, 0, 130)
    assert turns(line) == ["publish"] * 3
    label(line)
    work(line, 130, 200, poison=True)
    assert turns(line) == ["publish"] * 3 + ["held"] and found(line) == 10
    assert "labelled defects" in line.status()["held"]


@pytest.mark.parametrize(("gate", "poison", "finds"), [(True, False, range(10, 11)), (False, True, range(3))])
def test_one_that_was_not_is_published_and_so_is_one_that_nobody_asks(
    opened: Callable[..., Line], versions: Versions, gate: bool, poison: bool, finds: range
) -> None:
    line = opened(gate)
    assert taught(line, poison)[:3] == ["publish"] * 3
    assert line.status()["held"] is None
    assert versions.current() == 3 and found(line) in finds
