"""One fleet behind `everline serve`, started once and as a user starts it, for all tests of this folder."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from everline.deploy.server import free_port
from everline.deploy.tokens import make_token
from everline.pipelines.fleet.client import Client
from everline.pipelines.fleet.load import pictures_of, publish_two
from everline.pipelines.main import cli
from everline.platform.actor import line_handle
from everline.platform.log import LogReader, line_folder, verify
from everline.platform.record import Record
from everline.platform.settings import Fleet, read_fleet

from ..conftest import MAIN, PATIENCE_S, copied_tracking, until

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: coreset, false_reject_rate: 0.1, probation: 1, params: {size: 64, memory: 100}}
  counted: {method: coreset, false_reject_rate: 0.1, probation: 1, params: {size: 64, memory: 100}}
  drops: {method: lemo, queue: 1, when_full: drop, params: {size: 64}}
  waits: {method: lemo, queue: 1, params: {size: 64}}
  swap: {method: padim, params: {size: 64}}
"""
GIVE_UP_S = 8.0  # after which a request to a line that is down is answered 503
Answer = tuple[int, dict[str, str], Any]
RUNNING = ExitStack()  # the server, while it runs


@dataclass(frozen=True)
class Served:
    """A running server. session: where Ray keeps its logs. tokens: by their holder, who may do what the name says."""

    fleet: Fleet
    folder: Path
    session: Path
    port: int
    tokens: dict[str, str]
    kept: list[Any] = field(default_factory=list)  # handles of lines that a test started: a line ends with its handle

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str = "") -> Client:
        return Client(port=self.port, timeout_s=PATIENCE_S, token=token)

    def ask(self, verb: str, path: str, body: bytes | None = None, token: str = "", **headers: str) -> Answer:
        """Status, headers in small letters, and what the JSON of an answer says."""
        with_token = {"Authorization": f"Bearer {token}"} if token else {}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(verb, path, body, {**headers, **with_token})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, Any], token: str = "") -> Answer:
        return self.ask("POST", path, json.dumps(body).encode(), token, **{"Content-Type": "application/json"})

    def inspect(self, line: str, data: bytes, id: str = "", query: str = "") -> Answer:
        """As a camera with its token."""
        headers = {"Content-Type": "image/png"} | ({"X-Image-Id": id} if id else {})
        return self.ask("POST", f"/lines/{line}/inspect{query}", data, self.tokens["inspect"], **headers)

    def handle(self, line: str) -> Any:
        return line_handle(line, self.fleet.store)

    def log(self, line: str) -> list[Record]:
        return list(LogReader(line_folder(self.fleet.store, line)).records(images=False))

    def written(self) -> dict[Path, bytes]:
        """All that the server and its cluster have written so far."""
        found = {}
        for root in (self.folder, self.session):
            for folder, _, names in os.walk(root):
                for path in (Path(folder, name) for name in names):
                    with suppress(FileNotFoundError):  # a database's journal comes and goes
                        if path.is_file():  # and no socket
                            found[path] = path.read_bytes()
        return found


@pytest.fixture(scope="session")
def swapped(served: Served) -> tuple[int, int]:
    """The two versions of `swap`, the first of which is current. Nobody sends it an image to learn from."""
    with closing(served.client(served.tokens["change"])) as client:
        first, second = sorted(one["version"] for one in client.get("/lines/swap/versions")["versions"])
        client.rollback("swap", first)
    return first, second


@pytest.fixture(scope="session")
def served(ray_session: str, prepared_tracking: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return RUNNING.enter_context(serving(ray_session, prepared_tracking, tmp_path_factory.mktemp("served")))


@pytest.hookimpl(tryfirst=True)  # while the cluster is there
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Ends the server with the last test of this folder: it would cost the others time, and stand in Serve's place."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        RUNNING.close()


@contextmanager
def serving(ray_session: str, prepared_tracking: Path, folder: Path) -> Iterator[Served]:
    """`everline serve` until Ctrl-C, after which every log must be whole."""
    port = free_port()
    (folder / "fleet.yaml").write_text(FLEET)
    copied_tracking(prepared_tracking, folder)
    fleet = read_fleet(folder / "fleet.yaml")
    publish_two("swap", fleet, pictures_of(fleet, [])["swap"])
    tokens = {name: make_token(folder / "tokens.yaml", name, (name,)) for name in ("change", "inspect")}
    command = [*MAIN, "serve", "--port", str(port), "--tokens", "tokens.yaml", "--patience", str(GIVE_UP_S)]
    env = {**os.environ, "RAY_ADDRESS": ray_session}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err)
    try:
        until(lambda: f":{port}" in (folder / "out").read_text() or process.poll() is not None)
        assert process.poll() is None, (folder / "err").read_text()
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        yield Served(fleet, folder, session, port, tokens)
        process.send_signal(signal.SIGINT)  # what everybody does in the end
        assert process.wait(PATIENCE_S) == 0, (folder / "err").read_text()
        for line in fleet.lines:
            found = verify(line_folder(fleet.store, line))
            assert found.ok, (line, found.problems)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Taught:
    """What `mono` answered to its first image over HTTP, and what `everline stream` says of the hundred behind it."""

    first: dict[str, Any]
    streamed: dict[str, Any]


@pytest.fixture(scope="session")
def taught(served: Served, parts: list[bytes], more_parts: list[bytes]) -> Taught:
    """The line `mono` has learned a hundred images and answers with a version."""
    client, images = served.client(served.tokens["inspect"]), served.folder / "images"
    first = client.inspect("mono", parts[0])
    images.mkdir()
    for index, data in enumerate(parts + more_parts):
        (images / f"{index:03}.png").write_bytes(data)
    fleet = served.folder / "fleet.yaml"
    words = ["stream", "mono", str(images), "--fleet", str(fleet), "--json", "-"]
    ran = CliRunner().invoke(cli, words, catch_exceptions=False)  # joins the running line: there is one writer
    assert ran.exit_code == 0, ran.output
    until(lambda: client.get("/lines/mono")["serving_version"] is not None)
    client.close()
    return Taught(first, json.loads(ran.stdout))
