"""`everline opcua`: a PLC's OPC UA server says which image and which product; verdicts go there.

The state is the PLC's: a part is to be judged while its `id` does not stand in `done`. So a subscription's notes are
hints, what is lost or told twice does no harm, and a start in the midst of a part goes on with it.
"""

import asyncio
import json
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ...methods.errors import ConfigError, ImageError, LineDown, NoSpace, StoreDown
from ...platform.settings import read_fleet
from ..console import ERR, fleet_option, terminable
from ..files import FilePath
from .opcua_file import Nodes, Plc, read_plc
from .opcua_link import Link
from .station import MAX_CODE, Station, plain_path, stations

PASSWORD = "EVERLINE_OPCUA_PASSWORD"  # noqa: S105 - the variable's name
PAUSE_S = 2.0  # while a line cannot take anything
LOOK_S = 1.0  # between two looks at the nodes where nothing was told
HELD = 16  # images without an `id` that wait for their line
STOP_S = 5.0  # for what a line is at when the end comes
T = TypeVar("T")


@click.command()
@click.argument("file", type=FilePath())
@fleet_option
def opcua(file: Path, fleet_file: Path) -> None:
    """Inspect what a PLC's OPC UA server says, as FILE says (YAML), until Ctrl-C.

    For each line: the nodes with the image (its bytes, or its path below `folder`) and the part's `id`, those for the
    verdict and for `done`, and one with a barcode or recipe number, which `products` maps to tasks. The password is in
    EVERLINE_OPCUA_PASSWORD.
    """
    plc = read_plc(file)
    fleet = read_fleet(fleet_file)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what matters of it is said here
    with stations(fleet, {name: nodes.products for name, nodes in plc.lines.items()}) as there, terminable():
        Gateway(plc, there, os.environ.get(PASSWORD, "")).run()


class Gateway:
    """Between a server and stations: one thread of asyncio for the nodes, and one for each image that is judged."""

    def __init__(self, plc: Plc, there: Mapping[str, Station], password: str = "") -> None:
        self._plc, self._stations, self._password = plc, there, password

    def run(self) -> None:
        """Until Ctrl-C. Raises ConfigError for certificates that cannot be read, ..."""
        asyncio.run(self.work())

    async def work(self) -> None:
        """The same until it is cancelled."""
        heard: dict[str, Callable[[str, Any], None]] = {}
        others: list[str] = []
        link = Link(self._plc.server, heard, others, _say, self._password)
        workers = [_Worker(nodes, self._stations[name], link) for name, nodes in self._plc.lines.items()]
        for worker in workers:
            others += [worker.nodes.trigger, *worker.nodes.written]
            for node in worker.nodes.heard:
                heard[node] = partial(_tell, [one for one in workers if node in one.nodes.heard])
        tasks = [asyncio.create_task(link.run()), *(asyncio.create_task(one.run()) for one in workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            while left := [task for task in tasks if not task.done()]:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=STOP_S)  # again: `wait_for` may swallow one
            for worker in workers:
                worker.join()


class _Worker:
    """One line's. Before each image it looks which product is there."""

    def __init__(self, nodes: Nodes, station: Station, link: Link) -> None:
        self.nodes, self._station, self._link = nodes, station, link
        self._news = asyncio.Event()
        self._waiting: deque[Any] = deque()
        self._last: Any = None  # trigger
        self._code: Any = None
        self._unknown: ConfigError | None = None  # what is wrong with the code
        self._thread: threading.Thread | None = None

    def hear(self, node: str, value: Any) -> None:
        """A node has a new value, or the present one after a connect."""
        self._news.set()
        if node != self.nodes.trigger or self.nodes.id or value == self._last:
            return
        self._last = value
        if value and len(self._waiting) >= HELD:
            _say(f"{self._station.name}: an image was dropped, {HELD} wait already; `id` and `done` prevent it")
        elif value:
            self._waiting.append(value)

    async def run(self) -> None:
        """Image by image. Raises what is neither of the line's absence nor of one image: Corrupt, ..."""
        nodes = self.nodes
        while True:
            names = [node for node in (nodes.id, nodes.done, nodes.task) if node]
            seen = dict(zip(names, await self._link.read(*names), strict=True)) if names else {}
            if nodes.task:
                await self._switch(seen[nodes.task].Value)
            if nodes.id:
                part = seen[nodes.id]
                if not part.Value or part.Value == seen[nodes.done].Value:
                    await self._pause()
                    continue
                (image,) = await self._link.read(nodes.trigger)  # behind `id`, as the PLC wrote it before that
                reply = await self._judge(image.Value, str(part.Value)[:MAX_CODE])
                await self._write({"part": part.Value, **reply})
                await self._link.write({nodes.done: part})
            elif self._waiting:
                await self._write(await self._judge(self._waiting.popleft()))
            else:
                await self._pause()

    def join(self) -> None:
        """Waits a little for what the line is at: Ray should not be left in the midst of a call."""
        if self._thread is not None:
            self._thread.join(STOP_S)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
        self._news.clear()

    async def _switch(self, code: Any) -> None:
        """A code that has changed switches the product; of one that stands for none, no image is judged."""
        if code in (None, "", self._code):
            return
        try:
            if not isinstance(code, str | int):
                raise ConfigError(f"{self.nodes.task} holds no code: text or a whole number.")
            await self._insist(partial(self._station.switch, str(code)))
            self._unknown = None
        except ConfigError as error:
            _say(f"{self._station.name}: {error}")
            self._unknown = error
        self._code = code

    async def _judge(self, image: Any, part: str = "") -> dict[str, Any]:
        if self._unknown is not None:
            return self._station.refused(self._unknown, part)
        return await self._insist(partial(self._inspect, image, part))

    def _inspect(self, image: Any, part: str) -> dict[str, Any]:
        """The id in the log is made of the part's and of the bytes: a PLC's counter may begin again."""
        folder, trigger = self.nodes.folder, self.nodes.trigger
        if folder is None:
            if not isinstance(image, bytes):
                return self._station.refused(ImageError(f"{trigger} does not hold the bytes of an image."), part)
            return self._station.inspect(image, name=part)
        if not isinstance(image, str):
            return self._station.refused(ImageError(f"{trigger} does not hold a path."), part)
        name = f"{part} {Path(plain_path(image)).name}" if part else ""
        return self._station.inspect_named(folder, image, name=name)

    async def _write(self, reply: dict[str, Any]) -> None:
        values: dict[str, Any] = {}
        if self.nodes.verdict:
            values[self.nodes.verdict] = json.dumps(reply, allow_nan=False, default=str)
        if self.nodes.reject:
            values[self.nodes.reject] = reply["verdict"] in ("reject", "error")
        if self.nodes.score:
            score = reply.get("score")
            values[self.nodes.score] = math.nan if score is None else float(score)
        await self._link.write(values)

    async def _insist(self, call: Callable[[], T]) -> T:
        """What the line answers; waits for one that is down, and says so."""
        said = ""
        while True:
            try:
                return await self._aside(call)
            except (LineDown, NoSpace, StoreDown) as error:
                if str(error) != said:
                    said = str(error)
                    _say(f"waiting: {error}")
                await asyncio.sleep(PAUSE_S)

    async def _aside(self, call: Callable[[], T]) -> T:
        """In a thread that may be left behind at the end, as those of `asyncio.to_thread` may not."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def work() -> None:
            try:
                done.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                done.set_exception(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(done)


def _tell(workers: list[_Worker], node: str, value: Any) -> None:
    for worker in workers:
        worker.hear(node, value)


def _say(text: str) -> None:
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)
