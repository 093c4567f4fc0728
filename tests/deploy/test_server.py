"""The same over real HTTP: Ray Serve, real versions in MLflow, and a double of the line's actor."""

import asyncio
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from everline.deploy.app import Args, build
from everline.deploy.server import check_port, free_port, start_server, stop_server
from everline.methods import registry
from everline.methods.errors import ConfigError, PortInUse
from everline.platform.actor import NAMESPACE, actor_name
from everline.platform.calibration import Calibration
from everline.platform.images import prepare
from everline.platform.settings import Fleet, LineSettings
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions
from PIL import Image
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ServeDeploySchema

from ..conftest import until

PARAMS = {"size": 64, "weights": "none"}


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def publish(tracking: str, key: str, seed: int) -> int:
    detector = registry.build("padim", **PARAMS)
    for n in range(3):
        detector.learn(detector.embed(prepare(png(seed + n), 64)[None]))
    return Versions(tracking, "mono").publish(
        detector.state(), Calibration.of([1.0, 2.0], 0.4), watermark=seed, key=key, tags={}
    )


def start_double(tracking: str, store: Path) -> Any:
    """A line's actor that records nothing; defined here so that it travels by value."""

    class Double:
        async def record(
            self, data: bytes, features: Any, moments: Any, scored: Any, id: str, learn: bool, request: str
        ) -> dict[str, Any]:
            assert features.shape[0] == 1
            return {"id": id, "record": 0, **(scored or {"verdict": "learning", "version": None})}

        async def rollback(self, version: int | None) -> int:
            return Versions(tracking, "mono").rollback(version)

        async def status(self) -> dict[str, Any]:
            return {"line": "mono"}

        async def settings(self) -> LineSettings:
            return LineSettings(method="padim", params=PARAMS)

    return ray.remote(Double).options(name=actor_name("mono", store), namespace=NAMESPACE, num_cpus=0).remote()


@dataclass
class Served:
    port: int
    tracking: str
    actor: Any
    fleet: Fleet
    failed: list[Any] = field(default_factory=list)

    def ask(self, verb: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(verb, path, body)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), json.loads(response.read())
        finally:
            connection.close()

    def say(self, data: bytes) -> bytes:
        """Sends it as it is; returns what comes until the server ends the connection."""
        came = b""
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            try:
                connection.sendall(data)
                while part := connection.recv(2**16):
                    came += part
            except ConnectionError:
                pass
        return came

    def version(self) -> Any:
        status, _, answer = self.ask("POST", "/lines/mono/inspect?learn=false", png(3))
        assert status == 200, answer
        return answer["version"]


@pytest.fixture(scope="module")
def served(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running server over one line with one version."""
    folder = tmp_path_factory.mktemp("served")
    tracking = f"sqlite:///{folder}/mlflow.db"
    prepare_tracking(tracking)
    publish(tracking, "first", 10)
    fleet = Fleet(store=folder, tracking=tracking, lines={"mono": LineSettings(method="padim", params=PARAMS)})
    actor = start_double(tracking, folder)
    port = free_port()
    assert start_server(fleet, port=port) == f"http://127.0.0.1:{port}"
    yield Served(port, tracking, actor, fleet)
    stop_server()
    ray.kill(actor)


@pytest.mark.slow
def test_a_new_version_and_a_rollback_fail_no_request(served: Served) -> None:
    stop, seen = threading.Event(), []

    def hammer() -> None:
        while not stop.is_set():
            status, _, answer = served.ask("POST", "/lines/mono/inspect", png(3))
            seen.append((status, answer.get("version")))

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        first = served.version()
        second = publish(served.tracking, "second", 20)
        until(lambda: served.version() == second)
        assert served.ask("POST", "/lines/mono/rollback", b"{}")[2] == {"line": "mono", "version": first}
        assert served.version() == first
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {first, second}


@pytest.mark.slow
def test_errors_keep_their_shape_through_serve(served: Served) -> None:
    status, headers, body = served.ask("POST", "/lines/none/inspect", png(1))
    assert (status, body["error"]["code"]) == (404, "unknown_line")
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert served.ask("POST", "/lines/mono/inspect", b"x" * (33 * 2**20))[0] == 413
    assert served.ask("GET", "/health")[2]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    "header",
    [b"X-Request-Id: \xff", b"X-Request-Timeout-Seconds: \xff", b"X-Request-Timeout-Seconds: 0.000001",
     b"Serve-Multiplexed-Model-Id: \xff", b"X-Session-Id: \xff", b"X-Request-Disconnect-Disabled: \xff"],
)  # fmt: skip
def test_a_header_that_serve_would_obey_or_cannot_read_changes_nothing(served: Served, header: bytes) -> None:
    answer = served.say(b"GET /lines HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + header + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(set(re.findall(rb"(?im)^x-request-id: (.*?)\r", answer))) == 1


@pytest.mark.slow
def test_a_queue_of_serve_s_own_that_is_full_is_told_in_our_shape(served: Served) -> None:
    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Slow:
        async def __call__(self) -> str:
            await asyncio.sleep(3)
            return "done"

    app: Any = Slow
    serve.run(app.options(ray_actor_options={"num_cpus": 0}).bind(), name="slow", route_prefix="/slow")
    try:
        with ThreadPoolExecutor(8) as callers:
            statuses = list(callers.map(lambda _: ask_plain(served.port), range(8)))
    finally:
        serve.delete("slow")
    assert {status for status, *_ in statuses} == {200, 503}
    for status, headers, body in statuses:
        if status == 503:
            error = json.loads(body)["error"]
            assert (error["code"], headers["retry-after"]) == ("server_busy", "2")
            assert error["request_id"] == headers["x-request-id"] != ""


def ask_plain(port: int) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/slow")
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_headers_without_an_end_are_not_kept(served: Served) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 60_000) for n in range(100))
    answer = served.say(b"GET /lines HTTP/1.1\r\nHost: a\r\n" + lines)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


@pytest.mark.slow
def test_serve_is_not_started_twice(served: Served) -> None:
    with pytest.raises(PortInUse, match=str(served.port)):
        start_server(served.fleet, port=served.port)
    with pytest.raises(ConfigError, match="already"):
        start_server(served.fleet, port=free_port())


@pytest.mark.slow
def test_a_dead_line_is_a_503_until_it_is_back(served: Served) -> None:
    ray.kill(served.actor)
    until(lambda: served.ask("POST", "/lines/mono/inspect", png(1))[0] != 200)
    status, headers, body = served.ask("POST", "/lines/mono/inspect", png(1))
    assert (status, headers["retry-after"], body["error"]["code"]) == (503, "2", "line_down")
    assert served.ask("GET", "/health")[0] == 200
    served.actor = start_double(served.tracking, served.fleet.store)
    until(lambda: served.ask("POST", "/lines/mono/inspect", png(1))[0] == 200)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 8000), ("127.0.0.1", 99999), ("no.such.host.invalid", 1)])
def test_an_address_that_nobody_can_listen_on_is_refused(host: str, port: int) -> None:
    with pytest.raises(PortInUse, match="cannot listen"):
        check_port(host, port)


def test_build_takes_a_fleet_file_or_its_contents(tmp_path: Path) -> None:
    plain = {"store": str(tmp_path), "lines": {"mono": {"method": "padim"}}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(plain), "utf-8")
    for fleet in (plain, str(tmp_path / "fleet.yaml")):
        application = build(Args(fleet=fleet, replicas=2))
        assert application._bound_deployment.num_replicas == 2


def test_build_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="replcas"):
        Args(fleet="fleet.yaml", replcas=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no fleet file"):
        build(Args(fleet="/nowhere/fleet.yaml"))


def test_the_sample_configuration_is_valid_and_stays_on_this_machine() -> None:
    sample = Path(__file__).parents[2] / "deploy" / "serve.yaml"
    config = ServeDeploySchema.model_validate(yaml.safe_load(sample.read_text("utf-8")))
    assert config.http_options.host == "127.0.0.1"
    (application,) = config.applications
    assert application.import_path == "everline.deploy.app:build"
    Args.model_validate(application.args)
