"""What people tell a line: another product, and words on images."""

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from everline.methods.errors import (
    ConfigError,
    UnknownImage,
    UnknownVersion,
)
from everline.platform.line import Line
from everline.platform.log import LogReader
from everline.platform.statefiles import digest
from PIL import Image, ImageOps

from .lines import QUICK, SETTINGS, STREAM, Shelf, die, png, send

ROUTED = replace(SETTINGS, method="coreset", params={"size": 64, "form": "routed", "memory": 100})


def send_products(line: Line, first: int, last: int) -> None:
    """Sixty images; the product changes before 15, 25 (back again) and 40."""
    for n in range(first, last):
        if n in (0, 15, 25, 40):
            line.switch({0: "a", 15: "b", 25: "a", 40: "c"}[n])
        line.inspect(STREAM[n], f"i{n}")


def inverted(data: bytes) -> bytes:
    picture, out = Image.open(io.BytesIO(data)), io.BytesIO()
    ImageOps.invert(picture).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("cut", [15, 16, 21, 25, 41])
def test_a_product_change_and_a_crash_give_the_bits_of_one_without(opened: Callable[..., Line], cut: int) -> None:
    whole = opened(store="whole", settings=ROUTED)
    send_products(whole, 0, 55)
    shelf = Shelf()
    line = opened(shelf, settings=ROUTED)
    send_products(line, 0, cut)
    if cut in (15, 25):
        line.switch({15: "b", 25: "a"}[cut])  # and dies before an image of it comes
    die(line)
    line = opened(shelf, settings=ROUTED)
    send_products(line, cut, 55)
    assert line.digest() == whole.digest()
    assert line.fold.learner.tasks == ["a", "b", "c"]
    assert line.status()["task"] == "c"


def test_a_product_that_no_version_knows_is_learned_and_not_judged(opened: Callable[..., Line]) -> None:
    settings = replace(SETTINGS, false_reject_rate=0.1, checkpoint_every=10)
    shelf = Shelf()
    line = opened(shelf, settings=settings)
    send(line, 0, 60)
    line.switch("dark")
    dark = [inverted(data) for data in STREAM]
    answers = [line.inspect(data, f"d{n}") for n, data in enumerate(dark[:30])]
    die(line)
    line = opened(shelf, settings=settings)
    answers += [line.inspect(data, f"d{n}") for n, data in enumerate(dark[30:], 30)]
    assert [one.verdict for one in answers[:34]] == ["learning"] * 34
    assert {one.verdict for one in answers[35:]} <= {"pass", "reject"} and answers[-1].version is not None
    assert sum(one.verdict == "pass" for one in answers[35:]) >= 5
    line.switch("bright")
    assert line.inspect(inverted(dark[0]), "other").verdict == "learning"
    line.switch("dark")
    assert line.inspect(dark[7], "again").verdict == "pass"


def test_images_carry_the_task_that_was_said_before_them(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 1)
    number = line.switch("cap")
    send(line, 1, 3)
    assert line.switch("cap") == number
    records = list(LogReader(line.folder).records())
    assert [(r.kind, r.task) for r in records] == [("image", ""), ("task", ""), ("image", "cap"), ("image", "cap")]
    assert records[number].data == {"task": "cap"}


@pytest.mark.parametrize("task", ["", "x" * 65, "a\nb"])
def test_a_bad_task_is_refused_and_leaves_no_record(opened: Callable[..., Line], task: str) -> None:
    line = opened()
    with pytest.raises(ConfigError):
        line.switch(task)
    assert line.writer.next_seq == 0


def test_a_task_that_the_method_has_no_room_for_is_refused_and_the_line_goes_on(opened: Callable[..., Line]) -> None:
    line = opened(settings=replace(ROUTED, params={"size": 64, "form": "routed", "memory": 10}))
    for n in range(10):
        line.switch(f"t{n}")
        send(line, n, n + 1)
    with pytest.raises(ConfigError, match="no room for 'another'"):
        line.switch("another")
    assert line.switch("t3") and send(line, 10, 11)[0].admitted
    line.settle()


def test_feedback_of_another_kind_or_on_an_unknown_image_is_refused(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 1)
    with pytest.raises(ConfigError, match="ok or defect"):
        line.feedback("i0", "fine")
    with pytest.raises(UnknownImage, match="nobody"):
        line.feedback("nobody", "ok")
    assert line.writer.next_seq == 1


@pytest.mark.slow
def test_feedback_is_learned_from_and_recalibrates_and_a_crash_leaves_no_trace(opened: Callable[..., Line]) -> None:
    found = []
    for store, dies in (("calm", False), ("killed", True)):
        shelf = Shelf()
        line = opened(shelf, store=store)

        def again(line: Line = line, shelf: Shelf = shelf, store: str = store, dies: bool = dies) -> Line:
            if not dies:
                line.settle()
                return line
            die(line)
            return opened(shelf, store=store)

        send(line, 0, 47)
        assert line.inspect(png(1, defect=True), "bad").verdict == "reject"
        line = again(line)
        learned, before = line.status()["images_learned"], line.status()["threshold"]
        assert line.status()["false_rejects"]["unconfirmed"] == 1
        said = line.feedback("bad", "ok", by="ann")
        assert said == {"record": line.writer.next_seq - 1, "of": line.ids["bad"], "label": "ok", "changed": False}
        line = again(line)
        status = line.status()
        assert (status["images_learned"], status["threshold"] > before) == (learned + 1, True)
        assert status["false_rejects"]["rate"] > 0
        records = line.writer.next_seq
        assert line.feedback("bad", "ok") == said  # asked again, since the answer was lost
        assert line.writer.next_seq == records
        assert line.feedback("bad", "defect")["changed"]
        line = again(line)
        assert line.status()["false_rejects"]["rate"] == 0.0
        line.feedback("bad", "ok")
        passed = send(line, 47, 50)[-1]
        line.feedback(passed.id, "defect")
        line = again(line)
        assert line.status()["images_learned"] == learned + 4  # `bad` only once
        assert line.ids[passed.id] in line.fold.defects
        send(line, 50, 56)
        line.settle()
        states, meta = line.fold.pack()
        found.append((line.digest(), digest(states["online"]), digest(states["defects"]), meta, line.status()))
    calm, killed = found
    assert calm[:4] == killed[:4]
    assert {**calm[4], "epoch": 0} == {**killed[4], "epoch": 0}


@pytest.mark.slow
def test_the_lines_threshold_decides_over_that_of_a_replica(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 47)
    bad = line.inspect(png(1, defect=True), "bad")
    line.feedback("bad", "ok")
    line.settle()
    features, numbers, seen = line._judge(STREAM[50])
    assert seen is not None and bad.score is not None and line.scorer is not None
    stale = {**seen, "score": line.scorer.calibration.threshold * 1.0001, "verdict": "reject"}
    answer = line.inspect(STREAM[50], "new", judged=(features, numbers, stale))
    assert (answer.verdict, answer.threshold) == ("pass", line._in_force().threshold)  # type: ignore[union-attr]


@pytest.mark.slow
def test_whatever_version_a_replica_takes_for_current_that_of_the_log_decides(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 50)
    features, numbers, seen = line._judge(STREAM[50])
    assert seen is not None
    other = line.inspect(STREAM[50], "new", judged=(features, numbers, {**seen, "version": 9, "score": 1e9}))
    assert (other.version, other.score) == (seen["version"], seen["score"])
    none = line.inspect(STREAM[51], "newer", judged=(*line._judge(STREAM[51])[:2], None))
    assert none.version == seen["version"]


def test_an_alias_that_somebody_moved_is_put_back_and_a_record_says_so(
    opened: Callable[..., Line], caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 60)
    line.settle()
    right = shelf.alias
    assert right == 2 and not line.keep_alias()
    for wrong in (1, None, 1):
        shelf.alias = wrong
        assert line.keep_alias()
        line.settle()
        assert shelf.alias == right
        assert not line.keep_alias()
    told = list(LogReader(line.folder).of_kind("alias"))
    assert [(record.version, record.data) for record in told] == [(2, {"found": found}) for found in (1, None, 1)]
    assert "somebody made version 1 current in MLflow; the log says version 2" in caplog.text


def test_a_current_version_that_mlflow_lost_is_told_once_and_the_line_goes_on(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 60)
    line.settle()

    def gone(version: int | None = None) -> int:
        raise UnknownVersion("no version 2")

    monkeypatch.setattr(shelf, "rollback", gone)
    shelf.alias = 1
    assert line.keep_alias()
    line.settle()
    assert not line.keep_alias()
    assert line.inspect(png(70), "next").version == 2
