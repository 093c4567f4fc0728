"""A line with a real log on disk: nothing lost, nothing learned twice, equal bits after any crash."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everline.methods.errors import (
    ConfigError,
    ImageError,
    NoSpace,
    SecondWriter,
    StateError,
    TrackingError,
    UnknownVersion,
)
from everline.platform import log
from everline.platform.fold import Fold
from everline.platform.line import Line
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.repair import repair
from everline.platform.settings import LineSettings, parse_line
from PIL import Image

from ..conftest import flat_webp
from .lines import QUICK, SETTINGS, STREAM, Shelf, another, ask_again_at_once, die, png, send


def test_starts_with_no_images_and_says_so(opened: Callable[..., Line]) -> None:
    (first,) = send(opened(), 0, 1)
    assert (first.verdict, first.score, first.version, first.record) == ("learning", None, None, 0)


def test_gives_verdicts_once_a_version_is_published(opened: Callable[..., Line]) -> None:
    line = opened()
    answers = send(line, 0, 50)
    assert {a.verdict for a in answers[:44]} == {"learning"}
    assert answers[46].version == 1
    assert answers[46].calibrated
    assert answers[46].verdict in ("pass", "reject")


def test_finds_the_defect(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 50)
    bad = line.inspect(png(1, defect=True), "bad")
    assert bad.verdict == "reject"
    assert not bad.admitted


def deep(data: bytes, bits: int = 12) -> bytes:
    """The same image in a grey file of 16 bits, as a camera of so many bits gives it."""
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(np.uint32)
    out = io.BytesIO()
    Image.fromarray(((grey * ((1 << bits) - 1) + 127) // 255).astype(np.uint16)).save(out, "PNG")
    return out.getvalue()


def test_a_camera_of_12_bits_is_learned_from_as_one_of_8_and_so_again_after_a_crash(
    opened: Callable[..., Line],
) -> None:
    settings = parse_line("a", {"method": "lemo", "bits": 12, "params": {"size": 64}})
    shallow, line, shelf = opened(store="eight"), None, Shelf()
    for n, data in enumerate(STREAM[:12]):
        if n in (0, 6):
            line = opened(shelf, settings=settings)
        grey = Image.open(io.BytesIO(data)).convert("L")
        out = io.BytesIO()
        grey.save(out, "PNG")
        shallow.inspect(out.getvalue(), f"i{n}")
        line.inspect(deep(data), f"i{n}")
        line.settle()
        if n == 5:
            die(line)
    shallow.settle()
    mine, theirs = (one.fold.learner.state() for one in (line, shallow))
    assert mine.meta["params"]["bits"] == 12 and "bits" not in theirs.meta["params"]
    assert all(torch.equal(mine.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    with pytest.raises(ImageError, match="setting bits: 12"):
        line.inspect(deep(STREAM[0], 14), "more")
    assert line.status()["advice"] is None


def test_images_that_never_use_the_upper_bits_are_told_once(
    opened: Callable[..., Line], caplog: pytest.LogCaptureFixture
) -> None:
    line = opened()
    for n in range(8):
        line.inspect(deep(STREAM[n], 10), f"i{n}")
    assert "set bits: 10" in line.status()["advice"]
    assert len([text for text in caplog.messages if "set bits: 10" in text]) == 1


def test_an_older_log_is_folded_again_with_other_bits_whatever_is_in_it(opened: Callable[..., Line]) -> None:
    first = opened(store="same")
    for n in range(6):
        first.inspect(deep(STREAM[n], 14), f"i{n}")
    first.close()
    later = opened(store="same", settings=replace(SETTINGS, bits=12))
    later.inspect(deep(STREAM[6]), "i6")
    later.settle()
    assert later.fold.learner.images_learned == 7


def test_a_known_id_is_answered_and_not_learned_again(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 48)
    before = line.digest()
    again = line.inspect(STREAM[47], "i47")
    assert again.duplicate
    assert again.record == line.ids["i47"]
    assert line.digest() == before
    assert verify(line.folder).inspected == 48


def test_a_lower_limit_of_pixels_refuses_images_that_come_and_still_folds_those_of_the_log(
    opened: Callable[..., Line],
) -> None:
    line = opened(settings=replace(SETTINGS, max_megapixels=2))
    line.inspect(flat_webp(1200), "large")
    before = line.digest()
    die(line)
    line = opened(settings=replace(SETTINGS, max_megapixels=1))
    assert line.digest() == before
    with pytest.raises(ImageError, match="1200 x 1200 pixels; at most 1,000,000"):
        line.inspect(flat_webp(1200), "another")
    assert verify(line.folder).records == 1


def test_a_record_says_by_which_request_it_came(opened: Callable[..., Line]) -> None:
    line = opened()
    line.inspect(STREAM[0], "a", request="shift-2.17")
    line.inspect(STREAM[1], "b")
    asked = [record.data.get("request") for record in LogReader(line.folder).records()]
    assert asked == ["shift-2.17", None]


def test_a_known_id_that_a_replica_judged_anew_is_recorded_and_not_learned_again(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 48)
    before = line.digest()
    features, numbers, seen = line._judge(STREAM[3])
    assert seen is not None
    again = line.inspect(STREAM[3], "i3", judged=(features, numbers, {**seen, "score": 9.0}))
    assert (again.duplicate, again.version, again.score, again.admitted) == (True, 1, 9.0, False)
    assert line.digest() == before
    (record,) = [r for r in LogReader(line.folder).records() if r.kind == "repeat"]
    assert (record.id, record.data["of"], record.image) == ("i3", 3, None)
    found = verify(line.folder)
    assert (found.inspected, found.unique, found.ok) == (48, 48, True)


def test_an_image_may_be_inspected_and_not_learned(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 3)
    before = line.digest()
    assert line.inspect(STREAM[3], "x", learn=False).admitted is False
    assert line.digest() == before


def test_images_of_an_unknown_sender_change_no_answer_and_no_bit(opened: Callable[..., Line]) -> None:
    clean = opened(store="clean")
    want = send(clean, 0, 55)
    shelf = Shelf()
    line, got = opened(shelf), []
    for n in range(55):
        for made in (png(500 + n), png(n, defect=True)):  # bad parts, and as many good ones
            answer = line.inspect(made, f"i{n + 1}", known=False)  # the second is another image with that id
            assert not answer.admitted and answer.id in (f"unknown:i{n + 1}", f"unknown:i{n + 1}#2")
        got += send(line, n, n + 1)
    judged = [(a.id, a.verdict, a.score, a.p_value, a.threshold, a.version, a.admitted, a.duplicate) for a in want]
    for reopened in (False, True):
        if reopened:
            die(line)
            line = opened(shelf)
        found = [(a.id, a.verdict, a.score, a.p_value, a.threshold, a.version, a.admitted, a.duplicate) for a in got]
        assert found == judged
        assert line.digest() == clean.digest()
        assert line._in_force() == clean._in_force()
        assert line.fold.watch.pack() == clean.fold.watch.pack()
        assert line.fold.candidate and clean.fold.candidate and not line.fold.candidate.rejected
        assert line.fold.candidate.scores == clean.fold.candidate.scores
        assert line.status()["images_learned"] == 55
    marks = {one.data.get("unknown_sender") for one in line.reader.records(images=False) if one.id.startswith("unk")}
    assert marks == {True}


def test_nobody_takes_the_id_of_an_image_that_is_to_come(opened: Callable[..., Line]) -> None:
    line = opened()
    for id in ("part-7", "p" * 256, "p" * 255 + "q"):
        taken = line.inspect(STREAM[0], id, known=False)
        assert taken.id.startswith("unknown:p") and len(taken.id) <= 256 and not taken.duplicate
        assert line.inspect(STREAM[0], id, known=False).duplicate
        own = line.inspect(STREAM[1], id)
        assert (own.id, own.admitted, own.duplicate) == (id, True, False)
    assert verify(line.folder).ok


@pytest.mark.parametrize("cut", [1, 19, 20, 21, 30, 44, 45, 46, 47])
def test_a_crash_leaves_no_trace(opened: Callable[..., Line], cut: int) -> None:
    whole = opened(store="whole")
    want = send(whole, 0, 55)
    shelf = Shelf()
    line = opened(shelf)
    got = send(line, 0, cut)
    die(line)
    line = opened(shelf)
    got += send(line, cut, 55)
    assert line.digest() == whole.digest()
    assert [(a.verdict, a.score, a.version) for a in got] == [(a.verdict, a.score, a.version) for a in want]
    assert verify(line.folder).unique == 55
    assert line.fold.counts == whole.fold.counts


def test_a_crash_between_publication_and_its_record_publishes_once(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    line._append_event = lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        send(line, 0, 50)
    die(line)
    line = opened(shelf)
    assert len(shelf.kept) == 1
    assert line.status()["version"] == 1
    assert [r.kind for r in LogReader(line.folder).records()].count("publish") == 1


def test_an_image_cut_off_before_its_record_can_be_sent_again(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 5)
    with pytest.raises(ImageError):
        line.inspect(STREAM[5][:200], "i5")
    assert line.inspect(STREAM[5], "i5").record == 5


def test_mlflow_down_does_not_stop_the_line(opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    ask_again_at_once(monkeypatch)
    shelf = Shelf()
    shelf.down = True
    line = opened(shelf)
    send(line, 0, 50)
    line.settle()
    assert line.status()["images_learned"] == 50
    shelf.down = False
    send(line, 50, 51)
    line.settle()
    assert line.status()["version"] == 1


def test_a_line_that_could_not_start_leaves_the_log_free(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 50)
    die(line)
    shutil.rmtree(line.folder / "current")  # its own copy
    shelf.load = lambda version: (_ for _ in ()).throw(TrackingError("down"))  # type: ignore[method-assign]
    with pytest.raises(TrackingError):
        opened(shelf)
    del shelf.load
    assert opened(shelf).status()["version"] == 1


def test_a_version_that_waited_goes_out_after_a_restart(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    shelf.down = True
    line = opened(shelf)
    send(line, 0, 48)
    line.settle()
    die(line)
    shelf.down = False
    assert opened(shelf).status()["version"] == 1


def test_rollback_is_a_record_and_survives(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    settings = LineSettings(method="lemo", params={"size": 64}, false_reject_rate=0.2, probation=1, publish_every=25)
    line = opened(shelf, settings=settings)
    send(line, 0, 60)
    line.settle()
    assert line.status()["version"] == 2
    assert line.rollback() == 1
    die(line)
    shelf.alias = 2  # as if it died before the alias moved
    line = opened(shelf, settings=settings)
    assert line.status()["version"] == 1
    assert shelf.alias == 1
    assert line.inspect(png(70), "next").version == 1


def test_a_rollback_drops_the_candidate(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 52)
    line.settle()
    assert line.fold.candidate is not None
    line.rollback(1)
    line.settle()
    assert line.fold.candidate is None
    assert line.status()["version"] == 1


def test_a_promotion_is_a_record_survives_and_later_publications_go_on(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 40)
    line.settle()
    number = another(shelf)
    assert line.promote(number, line.status()["version"]) == number == 2
    before = line.digest()
    die(line)
    shelf.alias = 1  # as if it died before the alias moved
    line = opened(shelf, settings=QUICK)
    assert (line.status()["version"], shelf.alias, line.digest()) == (2, 2, before)
    (record,) = [r for r in LogReader(line.folder).records() if r.kind == "rollback"]
    assert (record.version, record.data) == (2, {"promoted": True, "instead_of": 1})
    answers = send(line, 40, 60)
    assert answers[0].version == 2
    line.settle()
    assert line.status()["version"] == 3
    assert shelf.kept.keys() - {"sweep"} == {key for key in shelf.kept if key.startswith("a/snapshot-")}


def test_a_promotion_and_a_crash_give_the_bits_of_one_without(opened: Callable[..., Line]) -> None:
    digests = []
    for store, dies in (("calm", False), ("killed", True)):
        shelf = Shelf()
        line = opened(shelf, store=store, settings=QUICK)
        send(line, 0, 40)
        line.promote(another(shelf), 1)
        if dies:
            die(line)
            line = opened(shelf, store=store, settings=QUICK)
        send(line, 40, 60)
        digests.append((line.digest(), line.status()["version"], list(shelf.kept)))
    assert digests[0] == digests[1]


def test_a_version_that_waits_to_be_published_does_not_undo_a_promotion(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 35)
    line.settle()
    shelf.down = True
    send(line, 35, 60)  # the next version is due in between
    line.settle()
    assert len(line._waiting) == 1
    shelf.down = False
    line.promote(another(shelf), 1)
    die(line)
    assert opened(shelf, settings=QUICK).status()["version"] == 2


def test_a_promotion_judged_beside_another_version_is_refused(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 40)
    number = another(shelf)
    with pytest.raises(StateError, match="by now version 1 is current"):
        line.promote(number, None)
    assert line.promote(number, 1) == number
    records = verify(line.folder).records
    assert line.promote(number, 1) == number  # the answer was lost: the same once more
    assert verify(line.folder).records == records


def test_a_line_without_an_image_may_start_with_a_promoted_version(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    line.promote(another(shelf), None)
    assert send(line, 0, 1)[0].version == 1


def test_other_images_under_the_same_tracking_give_other_versions(opened: Callable[..., Line], tmp_path: Path) -> None:
    shelf = Shelf()
    send(opened(shelf, store="first"), 0, 50)
    repair(tmp_path / "second" / "a", shelf.live(), accept_loss=True, by="me")  # the line begins anew
    other = opened(shelf, store="second")
    for index in range(50):
        other.inspect(STREAM[59 - index], f"i{index}")
    assert len(shelf.kept) == 2
    assert other.status()["version"] == 2


def test_a_record_that_was_applied_in_part_is_not_applied_again(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    shelf = Shelf()
    line = opened(shelf)
    with monkeypatch.context() as patch:
        patch.setattr("everline.platform.fold.restore", fail)  # just after the 25th image was learned
        send(line, 0, 25)
        with pytest.raises(RuntimeError):
            line.settle()
        with pytest.raises(StateError, match="in part"):
            send(line, 25, 26)
        line.checkpoint()
    die(line)
    line = opened(shelf)
    send(line, 25, 26)
    line.settle()
    assert line.status()["images_learned"] == 26
    assert line.fold.counts["inspected"] == 26


def test_a_record_that_cannot_be_applied_at_recovery_is_named(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = opened()
    send(line, 0, 5)
    die(line)

    def fails(self: Fold, record: Any, embed: Any) -> Any:
        if record.seq == 3:
            raise MemoryError("no more")

    monkeypatch.setattr(Fold, "apply", fails)
    with pytest.raises(StateError, match=r"record 3 \(image 'i3'\) cannot be applied: MemoryError: no more"):
        opened()


def test_rollback_to_nowhere_is_an_error_and_no_record(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 3)
    with pytest.raises(UnknownVersion):
        line.rollback()
    assert verify(line.folder).records == 3


def test_another_method_folds_over_yesterday(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 50)
    line.close()
    other = LineSettings(method="padim", params={"size": 64}, false_reject_rate=0.05, probation=1)
    line = opened(shelf, settings=other)
    assert line.fold.learner.name == "padim"
    assert line.status()["images_learned"] == 50
    assert len(shelf.kept) == 2
    assert line.status()["version"] == 2


def test_a_version_of_another_size_still_gives_verdicts(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 50)
    line.close()
    line = opened(
        shelf, settings=LineSettings(method="lemo", params={"size": 96}, false_reject_rate=0.05, probation=1)
    )
    shelf.rollback(1)
    line.rollback(1)
    assert line.inspect(png(80), "next").version == 1


@pytest.mark.parametrize("data", [b"", b"no image", STREAM[0][:100]])
def test_a_broken_image_is_refused_and_leaves_no_record(opened: Callable[..., Line], data: bytes) -> None:
    line = opened()
    with pytest.raises(ImageError):
        line.inspect(data, "x")
    assert verify(line.folder).records == 0


@pytest.mark.parametrize("id", ["", "x" * 257, "a\nb"])
def test_a_bad_id_is_refused(opened: Callable[..., Line], id: str) -> None:
    with pytest.raises(ConfigError):
        opened().inspect(STREAM[0], id)


def test_a_second_writer_is_refused(opened: Callable[..., Line]) -> None:
    opened()
    with pytest.raises(SecondWriter):
        opened()


def test_a_full_disk_refuses_the_image_and_keeps_the_rest(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = opened()
    send(line, 0, 3)

    def full(*args: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "append", full)
        with pytest.raises(NoSpace):
            send(line, 3, 4)
    send(line, 3, 4)
    assert verify(line.folder).inspected == 4
    assert line.status()["records"] == 4


def test_other_publishing_settings_fold_the_whole_log_again(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=replace(SETTINGS, publish_every=30))
    send(line, 0, 40)
    line.close()
    assert line.fold.candidate is not None
    assert line.fold.candidate.watermark > 24
    line = opened(shelf, settings=replace(SETTINGS, publish_every=25))
    assert line.fold.candidate is not None
    assert line.fold.candidate.watermark == 24  # the 25th image, as these settings have it from the start


def test_old_images_go_and_the_line_goes_on(opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, versions and recovery with `keep_images`: equal bits to a line that keeps all."""
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    kept, shelf = Shelf(), Shelf()
    frugal = replace(SETTINGS, checkpoint_every=5, keep_images=10)
    whole, line = opened(kept, "whole"), opened(shelf, settings=frugal)
    for n, data in enumerate(STREAM):
        whole.inspect(data, f"i{n}")
        line.inspect(data, f"i{n}")
        if n % 20 == 19:
            line.writer.release()  # dies
            line = opened(shelf, settings=frugal)
            assert line.digest() == whole.digest()
    assert line.status()["images_from"] > 0
    assert list(kept.kept) == list(shelf.kept)
    (mark,) = shelf.live().values()
    base = line.checkpoints.latest(upto=mark)
    assert base is not None and line.writer.images_from <= base[0] + 1  # the current version can be made again
    assert verify(line.folder).unique == len(STREAM)
    assert line.inspect(STREAM[0], "i0").duplicate


def test_while_mlflow_is_away_no_image_and_no_checkpoint_goes(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    shelf = Shelf()
    line = opened(shelf, settings=replace(SETTINGS, checkpoint_every=5, keep_images=5))
    shelf.down = True
    for n in range(20):
        line.inspect(STREAM[n], f"i{n}")
    line.settle()
    assert line.writer.images_from == 0 and line.checkpoints.numbers() == [4, 9, 14, 19]


def test_another_method_begins_with_the_images_that_are_left(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    shelf = Shelf()
    frugal = replace(SETTINGS, checkpoint_every=5, keep_images=5)
    line = opened(shelf, settings=frugal)
    for n in range(24):  # before the first version
        line.inspect(STREAM[n], f"i{n}")
    line.close()
    cut = line.writer.images_from
    assert cut > 0
    line = opened(shelf, settings=replace(frugal, params={"size": 32}))
    assert line.fold.learner.images_learned == 24 - cut
    assert "begins with the first image that is left" in caplog.text
