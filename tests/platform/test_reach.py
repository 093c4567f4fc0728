"""A caller sends an image until it is acknowledged, wherever the line's process is by then."""

from typing import Any

import pytest
from everline.methods.errors import Busy, Dropped, ImageError, LineDown, LineStopped, UnknownLine
from everline.platform import reach
from everline.platform.reach import Reach


class Handle:
    """Stands for an actor's handle; `plan` gives an error to raise, or an answer, for each call."""

    def __init__(self, *plan: Any) -> None:
        self.plan, self.ids, self.asked_for_room = list(plan), list[str](), 0
        self.inspect, self.room = _Verb(self._inspect), _Verb(self._room)

    def _inspect(self, data: bytes, id: str) -> Any:
        self.ids.append(id)
        return self.plan.pop(0) if self.plan else {"id": id}

    def _room(self) -> Any:
        self.asked_for_room += 1
        return True


class _Verb:
    def __init__(self, remote: Any) -> None:
        self.remote = remote


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(got: Any) -> Any:
        if isinstance(got, Exception):
            raise got
        return got

    monkeypatch.setattr(reach, "answer", answer)
    monkeypatch.setattr(reach, "PAUSE_S", 0)


def test_an_image_without_an_answer_is_sent_again_under_the_same_id() -> None:
    handle = Handle(LineDown("gone"), LineDown("gone"))
    assert Reach(lambda: handle).inspect(b"x", "a") == {"id": "a"}
    assert handle.ids == ["a"] * 3


def test_a_process_that_was_replaced_is_found() -> None:
    found: list[Any] = [Handle(LineDown("it was closed")), UnknownLine("not yet"), Handle()]

    def find() -> Any:
        one = found.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    line = Reach(find)
    assert line.inspect(b"x", "a") == {"id": "a"}
    assert line.inspect(b"x", "b") == {"id": "b"}  # and not looked for again
    assert not found


def test_who_is_sent_away_waits_for_room_without_the_image_however_long_it_takes() -> None:
    handle = Handle(*[Busy("64 wait")] * 5)
    assert Reach(lambda: handle, patience_s=-1).inspect(b"x", "a") == {"id": "a"}
    assert handle.asked_for_room == 5


@pytest.mark.parametrize("error", [Dropped("64 wait"), LineStopped("mend it"), ImageError("cut off")])
def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    handle = Handle(error)
    with pytest.raises(type(error)):
        Reach(lambda: handle).inspect(b"x", "a")
    assert handle.ids == ["a"]


def test_a_line_that_stays_down_is_given_up() -> None:
    with pytest.raises(LineDown):
        Reach(lambda: Handle(LineDown("gone")), patience_s=-1).inspect(b"x", "a")


def test_patience_begins_with_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reach.time, "monotonic", lambda: now[0])

    class Silent(Handle):
        def _inspect(self, data: bytes, id: str) -> Any:
            now[0] += 100  # that is how long Ray took to notice
            return super()._inspect(data, id)

    handle = Silent(LineDown("gone"))
    assert Reach(lambda: handle, patience_s=60).inspect(b"x", "a") == {"id": "a"}
    handle.plan = [LineDown("gone"), LineDown("still gone")]
    with pytest.raises(LineDown, match="still"):
        Reach(lambda: handle, patience_s=60).inspect(b"x", "a")
