"""Turns to decode: how many pixels at once, and that no line waits for another one's flood."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from everline.methods.errors import Busy, ServerBusy
from everline.platform.decoders import BACKLOG, Decoders

from ..conftest import until

WAIT_S = 60.0


class Held:
    """Images in threads of their own that stay in their room until they are let go."""

    def __init__(self, decoders: Decoders) -> None:
        self.decoders, self.inside, self.order = decoders, 0, list[str]()
        self.go = threading.Event()
        self.pool = ThreadPoolExecutor(64)

    def send(self, who: str, pixels: int, count: int = 1) -> None:
        for _ in range(count):
            self.pool.submit(self._one, who, pixels)
            self._seen += 1
            until(lambda: self.waiting + len(self.order) == self._seen)

    _seen = 0

    @property
    def waiting(self) -> int:
        return sum(len(asks) for asks in list(self.decoders._waiting.values()))

    def _one(self, who: str, pixels: int) -> None:
        with self.decoders.room(pixels, who):
            self.order.append(who)
            self.go.wait(WAIT_S)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held(Decoders(pixels=100, at_once=4))
    yield held
    held.go.set()
    held.pool.shutdown()


def test_no_more_pixels_than_there_are_at_once(held: Held) -> None:
    for who in "abcd":
        held.send(who, 40)
    assert held.order == ["a", "b"]
    held.go.set()
    until(lambda: len(held.order) == 4)


def test_no_more_images_than_decoders_at_once(held: Held) -> None:
    for who in "abcdef":
        held.send(who, 1)
    assert held.order == ["a", "b", "c", "d"]


def test_a_flood_of_one_line_lets_another_line_s_image_in_at_once(held: Held) -> None:
    held.send("flood", 50, 8)
    assert held.order == ["flood"]  # half of the pixels
    held.send("honest", 5)
    assert held.order == ["flood", "honest"]


def test_a_flood_of_small_images_leaves_a_decoder_to_others(held: Held) -> None:
    held.send("flood", 1, 20)
    assert held.order == ["flood"] * 3
    held.send("honest", 5)
    assert held.order[-1] == "honest"


def test_lines_take_turns_whoever_came_first(held: Held) -> None:
    held.send("blocks", 100)
    held.send("flood", 60, 4)
    held.send("honest", 60, 2)
    held.go.set()
    until(lambda: len(held.order) == 7)
    assert held.order == ["blocks", "flood", "honest", "flood", "honest", "flood", "flood"]


def test_small_images_do_not_overtake_a_large_one_for_ever(held: Held) -> None:
    held.send("small", 40)
    held.send("large", 90)
    held.send("third", 10)
    assert held.order == ["small"]


def test_an_image_of_more_pixels_than_there_are_is_decoded_alone(held: Held) -> None:
    held.send("huge", 1000)
    held.send("small", 1)
    assert held.order == ["huge"]


def test_who_is_patient_for_so_long_is_told_that_the_server_is_busy(held: Held) -> None:
    held.send("a", 100)
    with pytest.raises(ServerBusy, match="send it again"), held.decoders.room(1, "b", patience_s=0.0):
        pass
    assert held.waiting == 0
    held.go.set()
    with held.decoders.room(100, "b", patience_s=WAIT_S):  # nothing is left behind
        pass
    assert issubclass(ServerBusy, Busy)


def test_too_many_waiting_images_of_one_line_are_refused_at_once_and_others_are_not(held: Held) -> None:
    held.send("flood", 100, 1 + BACKLOG)
    with pytest.raises(ServerBusy, match="4 large images"), held.decoders.room(100, "flood", patience_s=WAIT_S):
        pass
    held.send("honest", 100)
    assert held.waiting == BACKLOG + 1


def test_what_fails_while_it_is_decoded_gives_its_room_back() -> None:
    decoders = Decoders(pixels=10)

    @decoders.room(10, "a", patience_s=WAIT_S)
    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fails()
