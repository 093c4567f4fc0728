"""The queue in front of a line: bounded, fair, and counted where it drops."""

import asyncio

import pytest
from everline.methods.errors import Busy, Dropped
from everline.platform.waiting import OUTSIDE, Waiting


async def fill(waiting: Waiting, done: list[int], go: asyncio.Event, count: int) -> list["asyncio.Task[None]"]:
    """One image at work, and `count` that come after it."""

    async def image(number: int) -> None:
        async with waiting.turn():
            await go.wait()
            done.append(number)

    tasks = [asyncio.create_task(image(number)) for number in range(count + 1)]
    await asyncio.sleep(0.01)
    return tasks


@pytest.mark.parametrize(("drop", "kind"), [(False, Busy), (True, Dropped)])
def test_what_is_more_than_may_wait_is_sent_away(drop: bool, kind: type[Busy]) -> None:
    async def scene() -> None:
        waiting, done, go = Waiting("mono", 3, drop), list[int](), asyncio.Event()
        tasks = await fill(waiting, done, go, 10)
        assert waiting.waiting == 3
        sent_away = [task for task in tasks if task.done()]
        assert {type(task.exception()) for task in sent_away} == {kind}
        assert len(sent_away) == 7
        assert waiting.dropped == (7 if drop else 0)
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == [0, 1, 2, 3]  # in the order they came
        assert waiting.waiting == 0

    asyncio.run(scene())


def test_who_waits_for_room_hears_of_it() -> None:
    async def scene() -> None:
        waiting, go = Waiting("mono", 1), asyncio.Event()
        assert await waiting.room(0.01)
        tasks = await fill(waiting, [], go, 1)
        assert not await waiting.room(0.01)
        asked = asyncio.create_task(waiting.room(10))
        await asyncio.sleep(0.01)
        assert not asked.done()
        go.set()
        assert await asked
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_too_many_do_not_even_wait_for_room() -> None:
    async def scene() -> None:
        waiting, go = Waiting("mono", 1), asyncio.Event()
        tasks = await fill(waiting, [], go, 1)
        outside = [asyncio.create_task(waiting.room(10)) for _ in range(OUTSIDE)]
        await asyncio.sleep(0.01)
        assert not await waiting.room(10)
        for task in (*outside, *tasks):
            task.cancel()
        await asyncio.gather(*outside, *tasks, return_exceptions=True)
        assert (waiting.waiting, waiting._outside) == (0, 0)  # who goes away leaves no gap

    asyncio.run(scene())
