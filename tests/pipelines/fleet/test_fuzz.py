"""The fuzzer finds planted faults, sends the same again, and finds none in the real thing."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from everline.deploy.server import free_port
from everline.pipelines.fleet.fuzz import Found, drive, fault, fuzz
from everline.pipelines.fleet.hostile import Hostile, Maker, http


@contextmanager
def served(app: Any) -> Iterator[int]:
    """An application on a real socket."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


def answering(status: int, body: bytes) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


PROBLEM = b'{"error": {"code": "a", "message": "b", "request_id": "c"}}'


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(500, PROBLEM, "500: "), (400, b"no", "400 in another shape"), (404, PROBLEM, "404: "), (200, b"", "")],
)
def test_a_server_with_a_fault_is_found_out(
    parts: list[bytes], status: int, body: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everline.pipelines.fleet.fuzz.WAIT_S", 0.2)
    with served(answering(status, body)) as port:
        found: Found = drive(port, Maker("mono", parts).make, 60, 1, 8)
    assert sum(sum(counts.values()) for counts in found.answers.values()) == 60
    assert [text for text in found.wrong if expected in text] if expected else not found.wrong


def test_an_answer_that_does_not_come_is_a_fault_of_a_whole_request_only() -> None:
    whole = Hostile("path", http("GET", "/", [], b""))
    assert fault(whole, "gone", b"") and fault(whole, "silent", b"")
    assert not fault(Hostile("no http", b"", whole=False), "silent", b"")
    assert not fault(whole, "503", PROBLEM) and fault(whole, "502", PROBLEM)
    assert fault(Hostile("good", b""), "503", PROBLEM)


def test_the_same_seed_sends_the_same(parts: list[bytes]) -> None:
    maker = Maker("mono", parts)
    made = [maker.make(Random(f"7-{n}")) for n in range(150)]
    assert made == [maker.make(Random(f"7-{n}")) for n in range(150)]
    assert len({one.kind for one in made}) == 14


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_the_command_sends_hostile_requests_to_a_fleet_of_its_own(tmp_path: Path) -> None:
    ran = CliRunner().invoke(fuzz, ["--requests", "400", "--json", str(tmp_path / "found.json")])
    assert ran.exit_code == 0, ran.output
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found["wrong"] == []
    assert sum(sum(counts.values()) for counts in found["answers"].values()) == 400
    assert found["answers"]["good"].keys() == {"200"}
    assert [row["process"] for row in found["processes"]] == ["line", "proxy", "replica"]
    assert not any(row["died"] for row in found["processes"])
