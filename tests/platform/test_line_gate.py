"""A line that watches for drift, and that holds a version which does badly on what it remembers."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from everline.methods.conformance import images
from everline.platform.line import Inspection, Line
from everline.platform.log import LogReader
from everline.platform.ownjudge import NORMAL, SYNTHETIC, Question
from PIL import Image
from torch import Tensor

from .lines import QUICK, Shelf, die, png, send

WATCHED = replace(QUICK, false_reject_rate=0.05, probation=1, checkpoint_every=20)


def noisy(index: int) -> bytes:
    """As a camera gives whose sensor has become too warm."""
    pixels = images(1, seed=1000 + index)[0].permute(1, 2, 0).numpy().astype(float)
    pixels += np.random.default_rng(index).normal(0, 40, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "png")
    return out.getvalue()


def watched(line: Line, first: int, last: int, make: Callable[[int], bytes] = png) -> list[str]:
    """The state after each image."""
    found = []
    for n in range(first, last):
        line.inspect(make(n), f"i{n}")
        found.append(line.status()["drift"]["state"])
    return found


def test_a_drift_is_seen_and_taken_for_usual(opened: Callable[..., Line]) -> None:
    line = opened(settings=WATCHED)
    assert set(watched(line, 0, 80)) == {"none"}
    drifted = watched(line, 80, 180, noisy)
    assert "drift" in drifted[:30]
    assert drifted[-1] != "drift"
    assert line.status()["drift"]["since"] is None or line.status()["drift"]["state"] == "defects"


def reddish(index: int, defect: bool = False) -> bytes:
    """In the light of a lamp that has become warmer."""
    pixels = np.asarray(Image.open(io.BytesIO(png(index, defect)))).astype(float) + np.array([40, 0, -40])
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "png")
    return out.getvalue()


@pytest.mark.slow
def test_after_the_light_has_shifted_a_version_comes_that_knows_it_and_finds_defects_and_a_crash_leaves_no_trace(
    opened: Callable[..., Line],
) -> None:
    settings = replace(WATCHED, method="coreset", false_reject_rate=0.1, publish_every=1000, probation=25)
    cuts, lines = (88, 105, 130), {}
    answers: dict[str, list[Inspection]] = {"calm": [], "killed": []}
    for store, found in answers.items():
        shelf = Shelf()
        line = opened(shelf, store=store, settings=settings)
        for n in range(150):
            if store == "killed" and n in cuts:
                die(line)
                line = opened(shelf, store=store, settings=settings)
            found.append(line.inspect(png(n) if n < 80 else reddish(n), f"i{n}"))
        line.settle()
        lines[store] = line
    whole, line = lines["calm"], lines["killed"]
    assert answers["calm"] == answers["killed"] and line.digest() == whole.digest()
    assert line.fold.pack()[1] == whole.fold.pack()[1]
    said = [one.verdict for one in answers["killed"][80:]]
    begun = said.index("learning")
    known = begun + next(n for n, verdict in enumerate(said[begun:]) if verdict == "pass")
    assert set(said[:begun]) == {"reject"} and begun <= 20 and 50 <= known <= 66
    assert line.scorer is not None and line.scorer.detector.images_learned >= 25
    good = [line.inspect(reddish(n), f"g{n}", learn=False).verdict for n in range(300, 320)]
    bad = [line.inspect(reddish(n, defect=True), f"b{n}", learn=False).verdict for n in range(20)]
    assert good.count("reject") <= 8 and bad.count("reject") >= 16


def test_a_line_that_is_to_hold_learns_nothing_while_it_drifts_and_a_crash_leaves_no_trace(
    opened: Callable[..., Line],
) -> None:
    shelf, settings = Shelf(), replace(WATCHED, drift="hold")
    line = opened(shelf, settings=settings)
    watched(line, 0, 80)
    drifted = watched(line, 80, 120, noisy)
    begun = drifted.index("drift")
    assert drifted[begun:] == ["drift"] * (len(drifted) - begun)
    learned = line.status()["images_learned"]
    die(line)
    line = opened(shelf, settings=settings)
    assert line.status()["drift"]["since"] == line.fold.watch.since is not None
    answers = [line.inspect(noisy(n), f"i{n}") for n in range(120, 130)]
    assert not any(one.admitted for one in answers)
    assert line.status()["images_learned"] == learned
    assert watched(line, 130, 170)[-1] == "none"
    assert line.inspect(png(170), "i170").admitted


def test_a_roll_back_takes_what_comes_then_for_usual(opened: Callable[..., Line]) -> None:
    line = opened(settings=replace(WATCHED, drift="alarm"))
    watched(line, 0, 80)
    assert "drift" in watched(line, 80, 120, noisy)
    line.rollback(1)
    line.settle()
    assert line.status()["drift"]["state"] == "none"


@pytest.mark.parametrize(("rate", "questions"), [(0.05, 2.0), (0.01, 0.5)])
def test_a_candidate_is_asked_what_the_line_remembers_and_more_often_where_its_probation_is_short(
    opened: Callable[..., Line], rate: float, questions: float
) -> None:
    line = opened(settings=replace(QUICK, false_reject_rate=rate, probation=1, publish_every=200))
    send(line, 0, 43)
    line.settle()
    assert line.fold.candidate is not None
    asked = line.fold.candidate.asked
    assert len(asked) == questions * len(line.fold.candidate.scores) > 5
    scores = {kind: [s for q, s in asked.items() if q.kind == kind and s is not None] for kind in (NORMAL, SYNTHETIC)}
    assert min(map(len, scores.values())) >= 3
    assert np.mean(scores[SYNTHETIC]) > np.mean(scores[NORMAL])


@pytest.mark.parametrize("crash", [False, True])
def test_a_candidate_that_rejects_what_is_normal_is_held_and_says_why(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    shelf, ask, wrong = Shelf(), Line._asked, [True]
    monkeypatch.setattr(Line, "_asked", lambda self, question: _spoilt(ask(self, question), wrong[0]))
    settings = replace(WATCHED, false_reject_rate=0.02, probation=1, publish_every=200)
    line = opened(shelf, settings=settings)
    send(line, 0, 55)
    if crash:
        die(line)
        line = opened(shelf, settings=settings)
    line.settle()
    status = line.status()
    assert status["version"] is None and not shelf.kept
    assert "remembered normal images" in status["held"]
    (record,) = [one for one in LogReader(line.folder).records() if one.kind == "held"][-1:]
    assert record.data["reasons"] == [status["held"]]
    wrong[0] = False
    for n in range(55, 110):
        line.inspect(png(n), f"i{n}")
    line.settle()
    assert line.status()["held"] is None and line.status()["version"] is not None


def _spoilt(features: Tensor | None, wrong: bool) -> Tensor | None:
    return features * 9 if wrong and features is not None else features


def test_without_the_gate_nothing_is_asked(opened: Callable[..., Line]) -> None:
    line = opened(settings=replace(WATCHED, gate=False))
    send(line, 0, 40)
    line.settle()
    assert line.fold.candidate is not None and not line.fold.candidate.asked


def test_an_image_that_is_not_there_any_more_is_passed_over(opened: Callable[..., Line]) -> None:
    line = opened(settings=WATCHED)
    send(line, 0, 3)
    assert line._asked(Question(1, NORMAL)) is not None
    assert line._asked(Question(10**6, NORMAL)) is None


def test_a_checkpoint_of_an_everline_without_a_gate_goes_on(opened: Callable[..., Line]) -> None:
    line = opened(settings=WATCHED)
    send(line, 0, 40)
    line.settle()
    states, meta = line.fold.pack()
    old: dict[str, Any] = {name: value for name, value in meta.items() if name not in ("gate", "watch")}
    old["candidate"] = {name: value for name, value in meta["candidate"].items() if name != "asked"}
    fresh = line._fresh_fold()
    fresh.unpack(states, old)
    assert fresh.watermark == line.fold.watermark and not list(fresh.remembered.questions())
