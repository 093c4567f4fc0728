"""A line with a real log on disk: nothing lost, nothing learned twice, equal bits after any crash."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from everline.methods.conformance import images
from everline.methods.detector import State
from everline.methods.errors import (
    ConfigError,
    ImageError,
    NoSpace,
    SecondWriter,
    StateError,
    TrackingError,
    UnknownImage,
    UnknownVersion,
)
from everline.methods.registry import build
from everline.platform import log
from everline.platform.calibration import Calibration
from everline.platform.fold import Fold
from everline.platform.line import Line, embed_image
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.settings import LineSettings
from everline.platform.statefiles import digest
from PIL import Image

SETTINGS = LineSettings(method="lemo", params={"size": 64}, checkpoint_every=20, false_reject_rate=0.05)


class Shelf:
    """Versions in memory, behind the seam that platform/versions.py fills; `down` makes it fail."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[State, Calibration]] = {}
        self.alias: int | None = None
        self.watermarks: list[int] = []
        self.down = False

    def publish(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str]
    ) -> int:
        self._answer()
        self.watermarks += [] if key in self.kept else [watermark]
        self.kept.setdefault(key, (state, calibration))
        self.alias = list(self.kept).index(key) + 1
        return self.alias

    def _answer(self) -> None:
        if self.down:
            raise TrackingError("down")

    def load(self, version: int) -> tuple[State, Calibration]:
        self._answer()
        return list(self.kept.values())[version - 1]

    def current(self) -> int | None:
        self._answer()
        return self.alias

    def live(self) -> dict[int, int]:
        if self.down:
            raise TrackingError("down")
        return {self.alias: self.watermarks[self.alias - 1]} if self.alias else {}

    def target(self, version: int | None = None) -> int:
        self._answer()
        number = version if version is not None else (self.alias or 0) - 1
        if not 1 <= number <= len(self.kept):
            raise UnknownVersion(f"no version {number}")
        return number

    def rollback(self, version: int | None = None) -> int:
        self.alias = self.target(version)
        return self.alias


def png(index: int, defect: bool = False) -> bytes:
    pixels = images(1, seed=1000 + index, defect=defect)[0].permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


STREAM = [png(i) for i in range(60)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Opens a line; those still open at the end are closed."""
    lines: list[Line] = []

    def make(shelf: Shelf | None = None, store: str = "store", settings: LineSettings = SETTINGS) -> Line:
        lines.append(Line("a", settings, tmp_path / store, shelf or Shelf()))
        return lines[-1]

    yield make
    for line in lines:
        line.writer.release()


def send(line: Line, first: int, last: int) -> list[Any]:
    return [line.inspect(STREAM[i], f"i{i}") for i in range(first, last)]


def die(line: Line) -> None:
    """As SIGKILL would: the lock goes, nothing is settled or saved."""
    line.writer.release()


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


def test_a_known_id_is_answered_and_not_learned_again(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 48)
    before = line.digest()
    again = line.inspect(STREAM[47], "i47")
    assert again.duplicate
    assert again.record == line.ids["i47"]
    assert line.digest() == before
    assert verify(line.folder).inspected == 48


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
    verdict = {"verdict": "reject", "score": 9.0, "p_value": 0.01, "threshold": 1.0, "version": 7, "calibrated": True}
    again = line.inspect(STREAM[3], "i3", judged=(line._judge(STREAM[3])[0], verdict))
    assert (again.duplicate, again.version, again.admitted) == (True, 7, False)
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


def test_a_checkpoint_that_knows_more_than_the_log_is_passed_over(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 30)
    die(line)
    line = opened()
    before = line.digest()
    states, meta = line.fold.pack()
    line.checkpoints.save(99, states, {**meta, "watermark": 99})
    die(line)
    line = opened()
    assert line.digest() == before
    assert send(line, 30, 31)[0].record == 30


def ask_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.platform.line.RETRY_S", 0.0)
    monkeypatch.setattr("everline.platform.line.RETRY_SHARE", 0)


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
    settings = LineSettings(method="lemo", params={"size": 64}, false_reject_rate=0.2, publish_every=25)
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


QUICK = LineSettings(method="lemo", params={"size": 64}, false_reject_rate=0.2, publish_every=25)


def another(shelf: Shelf) -> int:
    """Another version of the same line, of another method, that nobody has made current."""
    detector = build("padim", size=64)
    for data in STREAM[:20]:
        detector.learn(embed_image(detector, data))
    scores = [float(detector.score(embed_image(detector, data)).image[0]) for data in STREAM[20:40]]
    shelf.kept["sweep"] = (detector.state(), Calibration.of(scores, 0.2))
    return len(shelf.kept)


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


def test_other_images_under_the_same_tracking_give_other_versions(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    send(opened(shelf, store="first"), 0, 50)
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
    other = LineSettings(method="padim", params={"size": 64}, false_reject_rate=0.05)
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
    line = opened(shelf, settings=LineSettings(method="lemo", params={"size": 96}, false_reject_rate=0.05))
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


# MLflow is away


def outage(opened: Callable[..., Line], shelf: Shelf, **settings: Any) -> Line:
    """A line with version 1, and two that became due since MLflow is away."""
    line = opened(shelf, settings=replace(QUICK, **{"checkpoint_every": 20, **settings}))
    send(line, 0, 35)
    line.settle()
    assert line.status()["version"] == 1
    shelf.down = True
    send(line, 35, 60)
    line.settle()
    for index in range(60, 110):
        line.inspect(png(index), f"i{index}")
    line.settle()
    return line


def in_order(line: Line, shelf: Shelf) -> None:
    """Three versions, each registered once, in order, and the last is current; the log says the same."""
    snapshots = [int(key.split("/")[1].removeprefix("snapshot-")) for key in shelf.kept]
    assert snapshots == sorted(set(snapshots))
    assert len(snapshots) == 3
    published = [r.data["key"] for r in LogReader(line.folder).records() if r.kind == "publish"]
    assert published == list(shelf.kept)
    assert (line.status()["version"], line.status()["versions_waiting"], shelf.alias) == (3, 0, 3)


def test_what_is_due_in_an_outage_goes_out_later_in_order_and_once(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    assert line.inspect(png(115), "meanwhile").version == 1
    assert [r.kind for r in LogReader(line.folder).records()].count("due") == line.status()["versions_waiting"] == 2
    assert line.checkpoints.latest()[0] > 60  # type: ignore[index]
    shelf.down = False
    line._retry_at = 0.0
    line.settle()
    in_order(line, shelf)


@pytest.mark.parametrize("lost", ["nothing", "waiting", "checkpoints", "both"])
def test_a_crash_in_an_outage_loses_no_version_and_no_order(opened: Callable[..., Line], lost: str) -> None:
    calm, shelf = Shelf(), Shelf()
    whole = outage(opened, calm)
    calm.down, whole._retry_at = False, 0.0
    whole.settle()
    die(whole)
    (whole.folder).rename(whole.folder.with_name("calm"))
    line = outage(opened, shelf)
    before = line.digest()
    die(line)
    for name in {"nothing": (), "both": ("waiting", "checkpoints")}.get(lost, (lost,)):
        shutil.rmtree(line.folder / name)
    line = opened(shelf, settings=QUICK)
    assert (line.digest(), line.status()["versions_waiting"]) == (before, 2)
    assert line.inspect(png(115), "meanwhile").version == 1
    die(line)
    shelf.down = False
    line = opened(shelf, settings=QUICK)
    line.settle()
    in_order(line, shelf)
    assert list(shelf.kept) == list(calm.kept)


def test_a_crash_while_versions_go_out_sends_none_twice(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf, checkpoint_every=1000)
    shelf.down, line._retry_at = False, 0.0
    line.checkpoint()
    line._publish_waiting()  # the first of two
    die(line)
    line = opened(shelf, settings=replace(QUICK, checkpoint_every=1000))
    line.settle()
    in_order(line, shelf)


def test_another_method_in_an_outage_sends_what_waits_first(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    die(outage(opened, shelf))
    shelf.down = False
    line = opened(shelf, settings=replace(QUICK, method="padim"))
    line.settle()
    methods = [state.meta["method"] for state, _ in shelf.kept.values()]
    assert methods == ["lemo", "lemo", "lemo", "padim"]
    assert line.status()["version"] == 4


def test_no_more_than_the_current_version_waits_in_memory(opened: Callable[..., Line]) -> None:
    line = outage(opened, Shelf())
    assert (line._fresh, line._waiting._memory) == (None, {})
    here = [int(path.name[:12]) for path in sorted((line.folder / "waiting").iterdir())]
    assert here == line._waiting.numbers


def test_a_disk_that_takes_no_waiting_version_keeps_it_in_memory_and_takes_no_checkpoint(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=replace(QUICK, checkpoint_every=20))
    shelf.down = True

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line._waiting._disk, "save", full)
    send(line, 0, 50)
    line.settle()
    assert line.status()["versions_waiting"] >= 1
    assert line.checkpoints.latest()[0] < 40  # type: ignore[index]
    shelf.down, line._retry_at = False, 0.0
    line.settle()
    assert line.status()["versions_waiting"] == 0
    assert line.status()["version"] == len(shelf.kept)


def test_a_decision_in_an_outage_is_refused_and_changes_nothing(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    number, records = another(shelf), verify(line.folder).records
    for decide in (lambda: line.rollback(), lambda: line.rollback(1), lambda: line.promote(number, 1)):
        with pytest.raises(TrackingError):
            decide()
    assert (verify(line.folder).records, line.status()["version"], line.status()["versions_waiting"]) == (
        records,
        1,
        2,
    )


def test_an_outage_just_after_a_decision_moves_the_alias_later(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 60)
    line.settle()
    load = shelf.load

    def away(version: int) -> tuple[State, Calibration]:
        loaded, shelf.down = load(version), True
        return loaded

    shelf.load = away  # type: ignore[method-assign]
    assert line.rollback(1) == 1
    assert (line.status()["version"], shelf.alias) == (1, 2)
    assert line.inspect(png(115), "next").version == 1
    shelf.down, line._retry_at = False, 0.0
    line.settle()
    assert shelf.alias == 1


def test_a_roll_back_that_the_log_did_not_take_drops_nothing(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    shelf.down = False

    def full(*args: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "append", full)
        with pytest.raises(NoSpace):
            line.rollback(1)
    line._retry_at = 0.0
    line.settle()
    in_order(line, shelf)


def test_mlflow_is_asked_less_often_the_longer_it_takes_to_fail(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = [1000.0], []
    monkeypatch.setattr("everline.platform.line.time.monotonic", lambda: now[0])
    line = opened()

    def silent() -> None:
        asked.append(now[0])
        now[0] += 3.0  # a time-out
        raise TrackingError("silent")

    began = now[0]
    while now[0] < began + 600:
        line._tried(silent)
        now[0] += 1.0
    assert 3.0 * len(asked) <= 0.05 * 630


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


ROUTED = replace(SETTINGS, method="coreset", params={"size": 64, "form": "routed", "memory": 100})


def send_products(line: Line, first: int, last: int) -> None:
    """Sixty images; the product changes before 15, 25 (back again) and 40."""
    for n in range(first, last):
        if n in (0, 15, 25, 40):
            line.switch({0: "a", 15: "b", 25: "a", 40: "c"}[n])
        line.inspect(STREAM[n], f"i{n}")


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
    features, seen = line._judge(STREAM[50])
    assert seen is not None and bad.score is not None and line.scorer is not None
    stale = {**seen, "score": line.scorer.calibration.threshold * 1.0001, "verdict": "reject"}
    answer = line.inspect(STREAM[50], "new", judged=(features, stale))
    assert (answer.verdict, answer.threshold) == ("pass", line._in_force().threshold)  # type: ignore[union-attr]
    other = line.inspect(STREAM[51], "newer", judged=(features, {**stale, "version": 9}))
    assert (other.verdict, other.version) == ("reject", 9)
