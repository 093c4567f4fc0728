"""The replay memory: what it holds and draws, the same after any crash, and nothing more on the disk than it needs."""

import errno
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.methods.errors import ConfigError, Corrupt, NoSpace, SecondWriter, StoreError
from everline.platform import log, replay
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record
from everline.platform.replay import ReplayMemory
from everline.platform.selection import POLICIES, Selection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    monkeypatch.setattr(replay, "SPARE", 8)
    monkeypatch.setattr(replay, "COPY_RECORDS", 3)
    monkeypatch.setattr(replay, "RETRY", 4)
    for name in ("fsync", "fdatasync"):  # the real ones take their time and change nothing that can be seen
        monkeypatch.setattr(os, name, lambda file: None)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ReplayMemory]]:
    """Opens the memory; what is still open at the end is let go."""
    made: list[ReplayMemory] = []

    def make(capacity: int = 6, policy: str = "reservoir", at: dict[str, Any] | None = None) -> ReplayMemory:
        made.append(ReplayMemory.open(tmp_path / "a", capacity, policy, 7, at))
        return made[-1]

    yield make
    for memory in made:
        memory.release()


def picture(n: int) -> bytes:
    return random.Random(n).randbytes(30 + n % 7)


def fill(memory: ReplayMemory, first: int, last: int) -> list[bool]:
    return [
        memory.offer(picture(n), f"i{n}", "abc"[n // 40 % 3], n * 7919 % 101 / 7, np.float32([n % 5, n % 3]))
        for n in range(first, last)
    ]


def through_json(at: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(at, allow_nan=False))


def generations(memory: ReplayMemory) -> list[str]:
    return sorted(path.name for path in memory.folder.glob("gen-*"))


@pytest.mark.parametrize("policy", POLICIES)
def test_holds_what_was_offered_up_to_its_capacity(opened: Callable[..., ReplayMemory], policy: str) -> None:
    memory = opened(policy=policy)
    assert fill(memory, 0, 6) == [True] * 6
    admitted = fill(memory, 6, 200)
    held = list(memory.all())
    assert len(held) == len(memory) == 6 and 0 < sum(admitted) < 194
    assert [r.seq for r in held] == sorted(r.seq for r in held)
    assert all(r.image == picture(r.seq) and r.id == f"i{r.seq}" and r.task == "abc"[r.seq // 40 % 3] for r in held)
    assert all(r.score == r.seq * 7919 % 101 / 7 and r.kind == "image" for r in held)
    assert memory.nbytes == sum(len(r.image or b"") for r in held)
    assert memory.tasks() == {t: n for t in "abc" if (n := sum(r.task == t for r in held))}
    assert policy == "reservoir" or memory.tasks() == {"a": 2, "b": 2, "c": 2}


def test_an_empty_memory(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    assert (len(memory), memory.tasks(), memory.nbytes) == (0, {}, 0)
    assert memory.draw(3) == list(memory.all()) == []


def test_draws_different_images_and_all_of_them_in_time(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 50)
    held = list(memory.all())
    draws = [memory.draw(4) for _ in range(60)]
    assert all(len({r.seq for r in draw}) == 4 and all(r in held for r in draw) for draw in draws)
    times = {r.seq: sum(r in draw for draw in draws) for r in held}
    assert all(22 <= n <= 58 for n in times.values()), times  # 40 expected; beyond 5 standard deviations
    assert sorted(memory.draw(99), key=lambda r: r.seq) == held
    assert memory.draw(0) == []


@pytest.mark.parametrize("count", [-1, 1.0, True])
def test_refuses_to_draw_what_is_no_number(opened: Callable[..., ReplayMemory], count: Any) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        opened().draw(count)


def test_a_draw_reads_its_own_records_only(
    opened: Callable[..., ReplayMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, asked = opened(40), []
    fill(memory, 0, 40)
    real = LogWriter.get
    monkeypatch.setattr(LogWriter, "get", lambda self, seqs: asked.append(list(seqs)) or real(self, seqs))
    assert [[r.seq for r in memory.draw(3)]] == asked


@given(st.integers(0, 2**32), st.sampled_from(POLICIES), st.integers(1, 7))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_goes_on_after_any_crash_as_if_there_had_been_none(seed: int, policy: str, capacity: int) -> None:
    kinds, weights = ["offer", "draw", "checkpoint", "crash", "close"], [70, 15, 8, 4, 3]
    script = random.Random(seed).choices(kinds, weights, k=150)  # drawn one by one, they would be few and alike
    crashed, whole = (played(script, policy, capacity, crashes) for crashes in (True, False))
    assert crashed == whole


def played(script: list[str], policy: str, capacity: int, crashes: bool) -> tuple[dict[int, Any], list[Record], Any]:
    """What each draw gave, and what is held in the end. A crash goes back to the last checkpoint, once for each."""
    seen: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        memory = ReplayMemory.open(Path(folder), capacity, policy, 3)
        saved, at, left = memory.checkpoint(), 0, list(script)
        n = 0
        while n < len(script):
            if script[n] == "offer":
                seen[n] = fill(memory, n, n + 1)
            elif script[n] == "draw":
                seen[n] = memory.draw(3)
            elif script[n] == "checkpoint":
                saved, at = through_json(memory.checkpoint()), n + 1
            elif crashes and left[n]:
                left[n], n = "", at - 1
                memory.release() if script[n] == "crash" else memory.close()
                memory = ReplayMemory.open(Path(folder), capacity, policy, 3, saved)
            assert len(generations(memory)) <= 3
            n += 1
        found = seen, list(memory.all()), memory.checkpoint()["selection"]["offered"]
        memory.close()
    return found


def test_the_checkpoint_before_the_last_is_good_too(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 30)
    before, held = memory.checkpoint(), list(memory.all())
    fill(memory, 30, 200)
    memory.checkpoint()  # returned, and then its keeper died before it was written
    memory.release()
    assert len(generations(memory)) == 2
    memory = opened(at=before)
    assert list(memory.all()) == held and len(generations(memory)) == 1


def test_the_disk_does_not_fill_with_the_dead(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened(policy="hardest")
    sizes = []
    for n in range(200):
        memory.offer(bytes(100), f"i{n}", "", float(n))  # always the hardest so far
        if n % 10 == 0:
            memory.checkpoint()
        sizes.append(memory.disk_bytes)
        assert len(generations(memory)) <= 3
    assert max(sizes[100:]) <= 1.05 * max(sizes[:100])  # numbers grow longer
    assert sizes[-1] == sum(path.stat().st_size for path in memory.folder.rglob("*.*") if path.is_file())
    assert len(LogReader(memory.folder / generations(memory)[-1])) <= 14


def test_no_file_of_a_removed_generation_stays_open(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    for n in range(0, 300, 10):
        fill(memory, n, n + 10)
        memory.draw(6)
        memory.checkpoint()
    with open("/proc/self/maps") as file:
        assert not [line for line in file if str(memory.folder) in line and "(deleted)" in line]


def test_images_that_go_while_all_are_read_are_left_out(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 6)
    found = []
    for record in memory.all():
        found.append(record)
        if len(found) == 3:
            fill(memory, 6, 300)  # copied more than once meanwhile
            memory.checkpoint()
            memory.checkpoint()
            left = {r.seq for r in memory.all()}
    assert [r.seq for r in found] == [0, 1, 2, *(n for n in (3, 4, 5) if n in left)]
    assert all(r.image == picture(r.seq) for r in found)


def test_refuses_a_folder_that_holds_another_memory(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 9)
    memory.close()
    before = sorted(memory.folder.rglob("*"))
    with pytest.raises(ConfigError, match="holds a memory"):
        opened()
    assert sorted(memory.folder.rglob("*")) == before


def test_refuses_a_second_process_even_at_an_older_checkpoint(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    at = memory.checkpoint()
    fill(memory, 0, 60)
    with pytest.raises(SecondWriter):
        opened(at=at)
    assert len(list(memory.all())) == 6


def test_refuses_other_settings_than_those_of_the_checkpoint(opened: Callable[..., ReplayMemory]) -> None:
    with opened() as memory:
        at = memory.checkpoint()
    with pytest.raises(ConfigError, match=r"\(6, 'reservoir', 7\)"):
        opened(capacity=5, at=at)
    with pytest.raises(ConfigError, match="balanced"):
        opened(policy="balanced", at=at)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"generation": -1},
        {"generation": 10**8},
        {"generation": "../x"},
        {"generation": 5},
        {"records": 10},
        {"records": 8},
        {"draws": True},
        {"selection": {}},
        {"selection": None},
    ],
)
def test_refuses_a_checkpoint_that_does_not_fit(opened: Callable[..., ReplayMemory], change: dict[str, Any]) -> None:
    with opened(capacity=9) as memory:
        fill(memory, 0, 9)
        at = memory.checkpoint()
    with pytest.raises(Corrupt):
        opened(capacity=9, at={**at, **change})
    assert len(list(opened(capacity=9, at=at).all())) == 9  # nothing was changed, and nothing is locked


def test_finds_damaged_images(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 6)
    (path,) = memory.folder.rglob("shard-*")
    data = bytearray(path.read_bytes())
    data[data.index(picture(2))] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="checksum"):
        memory.draw(6)
    with pytest.raises(Corrupt, match="checksum"):
        list(memory.all())


def test_finds_an_image_that_is_not_the_one_it_knew(opened: Callable[..., ReplayMemory]) -> None:
    with opened() as memory:
        fill(memory, 0, 6)
        at = through_json(memory.checkpoint())
    rows = at["selection"]["items"]
    rows[0][0], rows[1][0] = rows[1][0], rows[0][0]
    with pytest.raises(Corrupt, match="is not image"):
        opened(at=at).draw(6)


def test_damage_stops_a_copy_and_changes_nothing(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened(policy="hardest")
    for n in range(13):
        memory.offer(picture(n), f"i{n}", "", float(n))
    before = memory.checkpoint()
    for path in memory.folder.rglob("shard-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt):
        memory.offer(picture(13), "i13", "", 13.0)
    assert memory.checkpoint() == before and generations(memory) == ["gen-00000000"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_disk_refuses_images_and_loses_nothing(
    opened: Callable[..., ReplayMemory], monkeypatch: pytest.MonkeyPatch, policy: str, tmp_path: Path
) -> None:
    memory, full, refused = opened(policy=policy), False, 0
    real = os.fdatasync

    def sync(file: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "full")
        real(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    for n in range(150):
        full = n % 3 == 0
        before = memory.checkpoint()
        try:
            fill(memory, n, n + 1)
        except NoSpace:
            refused += 1
            assert memory.checkpoint() == before
            full = False
            fill(memory, n, n + 1)
    assert refused >= 6
    with ReplayMemory.open(tmp_path / "b", 6, policy, 7) as other:
        fill(other, 0, 150)
        assert list(memory.all()) == list(other.all()) and memory.draw(5) == other.draw(5)


def test_a_copy_that_fails_is_made_later(
    opened: Callable[..., ReplayMemory], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, real = opened(policy="hardest"), ReplayMemory._copied

    def fail(self: ReplayMemory, target: LogWriter) -> Any:
        real(self, target)
        raise NoSpace("full")

    monkeypatch.setattr(ReplayMemory, "_copied", fail)
    for n in range(16):
        assert memory.offer(picture(n), f"i{n}", "", float(n))
    assert generations(memory) == ["gen-00000000"]
    assert [r.message.count("could not copy") for r in caplog.records] == [1]  # not at each of the three
    monkeypatch.setattr(ReplayMemory, "_copied", real)
    for n in range(16, 20):
        assert memory.offer(picture(n), f"i{n}", "", float(n))
    memory.checkpoint()
    assert generations(memory) == ["gen-00000001"]
    assert [r.image for r in memory.all()] == [picture(n) for n in range(14, 20)]


def test_half_a_copy_of_a_process_that_died_is_removed(
    opened: Callable[..., ReplayMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = opened(policy="hardest")
    for n in range(13):
        memory.offer(picture(n), f"i{n}", "", float(n))
    at, held = memory.checkpoint(), list(memory.all())
    with monkeypatch.context() as patch:
        patch.setattr(ReplayMemory, "_read", lambda self, items: 1 / 0)
        patch.setattr(replay, "_remove", lambda folder: None)  # it died before
        with pytest.raises(ZeroDivisionError):
            memory.offer(picture(13), "i13", "", 13.0)
    assert len(generations(memory)) == 2
    memory.release()
    memory = opened(policy="hardest", at=at)
    assert generations(memory) == ["gen-00000000"] and list(memory.all()) == held


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": None}, "must be bytes"),
        ({"image": "text"}, "image must be bytes"),
        ({"id": "x" * 2000}, "1024"),
        ({"task": 3}, "task must be str"),
        ({"score": float("nan")}, "finite"),
        ({"score": None}, "no score"),
    ],
)
def test_refuses_what_it_cannot_hold(opened: Callable[..., ReplayMemory], given: dict[str, Any], said: str) -> None:
    memory = opened(policy="hardest")
    with pytest.raises(ConfigError, match=said):
        memory.offer(**{"image": b"x", "id": "i", "task": "t", "score": 1.0, **given})
    assert memory.checkpoint()["selection"]["offered"] == {}
    assert memory.offer(b"", "i", "", 1)


def test_a_closed_memory_does_nothing(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened()
    fill(memory, 0, 3)
    memory.close()
    memory.close()
    for call in (lambda: fill(memory, 3, 4), lambda: memory.draw(1), lambda: list(memory.all()), memory.checkpoint):
        with pytest.raises(StoreError, match="closed"):
            call()


def test_the_checkpoint_of_a_herd_is_small(opened: Callable[..., ReplayMemory]) -> None:
    memory = opened(capacity=50, policy="herding")
    for n in range(60):
        memory.offer(b"x", f"i{n}", "a", None, np.full(256, n / 7, dtype=np.float32))
    assert len(json.dumps(memory.checkpoint())) < 50 * (100 + 5.4 * 256) + 3000


class Model(RuleBasedStateMachine):
    """The memory against a dict of images, and the pure selection for who stays."""

    @initialize(policy=st.sampled_from(POLICIES), capacity=st.integers(1, 6), seed=st.integers(0, 9))
    def start(self, policy: str, capacity: int, seed: int) -> None:
        self.holder = tempfile.TemporaryDirectory()
        self.settings = capacity, policy, seed
        self.memory = ReplayMemory.open(Path(self.holder.name), *self.settings)
        self.model = Selection(*self.settings)
        self.images: dict[int, bytes] = {}
        self.saved = self.memory.checkpoint(), self.model.pack()

    @rule(image=st.binary(max_size=40), task=st.sampled_from("abc"), score=st.integers(-3, 3))
    def offer(self, image: bytes, task: str, score: int) -> None:
        descriptor = np.float32([score, len(image)])
        new = self.model.item("id", task, len(image), score / 2, descriptor)
        new = replace(new, seq=new.number)  # as a log would number it, if it took all
        goes = self.model.goes(new)
        self.model.take(new, goes)
        self.images[new.number] = image
        taken = self.memory.offer(image, "id", task, score / 2, descriptor)
        assert taken == (new.number in [item.number for item in self.model.items])

    @rule(count=st.integers(0, 8))
    def draw(self, count: int) -> None:
        drawn = self.memory.draw(count)
        held = {item.number for item in self.model.items}
        assert len(drawn) == len({r.seq for r in drawn}) == min(count, len(held))
        assert all(r.seq in held and r.image == self.images[r.seq] for r in drawn)

    @rule()
    def checkpoint(self) -> None:
        self.saved = through_json(self.memory.checkpoint()), through_json(self.model.pack())

    @rule(whole=st.booleans())
    def end_and_go_on(self, whole: bool) -> None:
        """Closed or died; what came behind the last checkpoint is forgotten."""
        self.memory.close() if whole else self.memory.release()
        self.memory = ReplayMemory.open(Path(self.holder.name), *self.settings, self.saved[0])
        self.model = Selection.unpack(self.saved[1])

    @invariant()
    def same(self) -> None:
        if hasattr(self, "memory"):
            held = [(item.number, item.task) for item in self.model.items]
            assert [(r.seq, r.task) for r in self.memory.all()] == held
            assert all(r.image == self.images[r.seq] for r in self.memory.all())
            assert self.memory.nbytes == sum(len(self.images[number]) for number, _ in held)
            assert len(generations(self.memory)) <= 3

    def teardown(self) -> None:
        if hasattr(self, "holder"):
            self.memory.release()
            self.holder.cleanup()


@pytest.mark.slow
def test_does_as_its_model_does() -> None:
    steps = settings(
        max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    run_state_machine_as_test(Model, settings=steps)


FIXTURE = Path(__file__).parents[1] / "fixtures" / "replay-format-1"


def test_memories_of_format_1_are_read_for_ever(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "memory", tmp_path / "memory")
    at, wanted = (json.loads((FIXTURE / f"{name}.json").read_text()) for name in ("checkpoint", "expected"))
    with ReplayMemory.open(tmp_path / "memory", 6, "herding", 7, at) as memory:
        assert [[r.seq, r.id, r.task, (r.image or b"").hex()] for r in memory.all()] == wanted["held"]
        assert [r.seq for r in memory.draw(4)] == wanted["drawn"]
