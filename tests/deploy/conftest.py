"""The whole application without Ray: real routes, desk, line, log and detector; only MLflow is a double."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uvicorn
from everline.deploy.desk import Desk
from everline.deploy.guard import Rules
from everline.deploy.web import application
from everline.platform.line import Line, plain
from everline.platform.recent import Recent, image_of
from everline.platform.settings import Fleet, LineSettings
from everline.platform.versions import Version
from fastapi import FastAPI

from ..platform.lines import Shelf

SETTINGS = LineSettings(
    method="padim", params={"size": 64, "weights": "none"}, publish_every=25, false_reject_rate=0.2, probation=1
)


class Listed(Shelf):
    """... that the routes can list."""

    def list(self) -> "list[Version]":
        kept = enumerate(self.kept.values(), 1)
        return [Version(n, (), 0, 25, c.threshold, c.calibrated, "padim", 0, {}) for n, (_, c) in kept][::-1]


class Handle:
    """What LineActor does for the desk, without its process: `handle.verb.remote(...)`."""

    def __init__(self, line: Line) -> None:
        self.line, self.rows, self.turn = line, Recent(), asyncio.Lock()

    def __getattr__(self, verb: str) -> Any:
        async def call(*args: Any) -> Any:
            async with self.turn:
                return getattr(self, f"_{verb}")(*args)

        return SimpleNamespace(remote=call)

    def _record(
        self, data: bytes, features: Any, moments: Any, scored: Any, id: str, learn: bool, request: str, known: bool
    ) -> Any:
        judged = (torch.from_numpy(features), moments, scored)
        inspection = self.line.inspect(data, id, learn=learn, judged=judged, request=request, known=known)
        self.line.settle()
        return plain(inspection)

    def _recent(self, *args: Any) -> Any:
        self.rows.follow(self.line)
        return self.rows.rows(*args)

    def _image(self, id: str) -> bytes:
        return image_of(self.line, id)

    def _status(self) -> dict[str, Any]:
        return {**self.line.status(), "state": "running"}

    def _settings(self) -> LineSettings:
        return self.line.settings

    def _feedback(self, *args: Any) -> Any:
        return self.line.feedback(*args)

    def _rollback(self, version: int | None) -> int:
        return self.line.rollback(version)

    def _switch(self, task: str) -> int:
        return self.line.switch(task)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> Iterator[Callable[..., FastAPI]]:
    """Makes the application over a line called `mono` with a version and images i0, i1, ...; body_limit: 1 MiB."""
    opened: list[Line] = []

    def make(rules: Rules = Rules()) -> FastAPI:  # noqa: B008 - frozen
        shelf, store = Listed(), tmp_path_factory.mktemp("store")
        line = Line("mono", SETTINGS, store, shelf)
        opened.append(line)
        for index, data in enumerate(parts[:32]):
            line.inspect(data, f"i{index}")
        line.settle()
        assert shelf.alias
        fleet = Fleet(store=store, tracking="", lines={"mono": SETTINGS})
        desk = Desk(fleet, poll_s=60, patience_s=0.5, handle=lambda _: Handle(line), versions=lambda *_: shelf)
        return application(desk, body_limit=2**20, rules=rules)

    yield make
    for line in opened:
        line.writer.release()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application behind a real socket of this machine; gives its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who comes before the server is ready waits
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
