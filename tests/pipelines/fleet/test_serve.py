"""`everline serve` as a user runs it: two lines over HTTP, a stream that joins, Ctrl-C."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from everline.deploy.server import free_port
from everline.methods.errors import EverlineError
from everline.pipelines.fleet.client import Client
from everline.platform.log import line_folder, verify

FLEET = """\
store: store
lines:
  mono: {method: coreset, false_reject_rate: 0.1, probation: 1, params: {size: 64, memory: 100}}
  poly: {method: lemo, params: {size: 64}}
"""
MAIN = [sys.executable, "-c", "from everline.pipelines.main import main; main()"]
ENV = {**os.environ, "RAY_ADDRESS": "local"}  # not the cluster of the other tests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, "subprocess.Popen[str]", str]]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    (folder / "fleet.yaml").write_text(FLEET)
    process = subprocess.Popen(
        [*MAIN, "serve", "--port", str(port)], cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert f":{port}" in line
    yield folder, port, process, line.split("Ray: ")[1].split(")")[0]
    process.kill()
    process.communicate()


@pytest.fixture
def client(server: tuple[Path, int, "subprocess.Popen[str]", str]) -> Iterator[Client]:
    made = Client(port=server[1])
    yield made
    made.close()


@pytest.mark.slow
def test_the_life_of_a_served_fleet(
    client: Client, server: tuple[Path, int, "subprocess.Popen[str]", str], parts: list[bytes], more_parts: list[bytes]
) -> None:
    folder, _, process, cluster = server
    assert {one["line"] for one in client.get("/lines")["lines"]} == {"mono", "poly"}
    assert client.get("/health")["status"] == "ok"

    first = client.inspect("mono", parts[0])
    assert (first["verdict"], first["version"], first["record"], first["admitted"]) == ("learning", None, 0, True)
    with pytest.raises(EverlineError, match=r"404.*mono, poly"):
        client.inspect("momo", parts[0])
    with pytest.raises(EverlineError, match="400"):
        client.inspect("mono", b"no image")

    (folder / "images").mkdir()
    for index, data in enumerate(parts + more_parts):
        (folder / "images" / f"{index}.png").write_bytes(data)
    streamed = subprocess.run(
        [*MAIN, "stream", "mono", "images", "--json", "-"],
        cwd=folder,
        env={**ENV, "RAY_ADDRESS": cluster},
        capture_output=True,
        text=True,
        check=True,
    )  # joins the running line: there is one writer
    assert json.loads(streamed.stdout)["acknowledged"] == 100

    give_up = time.monotonic() + 180
    while client.get("/lines/mono")["serving_version"] is None and time.monotonic() < give_up:
        time.sleep(0.2)
    answer = client.inspect("mono", parts[0], learn=False)
    assert answer["version"] >= 1
    assert isinstance(answer["score"], float)
    assert 0 < answer["p_value"] <= 1

    assert client.inspect("mono", parts[0], learn=False)["duplicate"]
    versions = [v["version"] for v in client.get("/lines/mono/versions")["versions"]]
    assert versions == sorted(versions, reverse=True)
    assert len(versions) > 1
    examples_of_the_readme(folder, client.port, parts[1])

    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=200) == 0
    found = verify(line_folder(folder / "store", "mono"))
    assert found.ok, found.problems
    assert found.unique >= 101


def examples_of_the_readme(folder: Path, port: int, part: bytes) -> None:
    (folder / "part.png").write_bytes(part)
    shown = (Path(__file__).parents[3] / "README.md").read_text("utf-8").split("## HTTP")[1]
    commands = [line[2:] for line in shown.splitlines() if line.startswith("$ curl")]
    assert len(commands) == 3
    for command in commands:
        called = shlex.split(command.replace(":8000", f":{port}"))
        answer = json.loads(subprocess.run([*called, "-s"], cwd=folder, capture_output=True, check=True).stdout)
        assert "error" not in answer, answer


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    import socket

    (tmp_path / "fleet.yaml").write_text(FLEET)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [*MAIN, "serve", "--port", str(port)], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False
        )
    assert ran.returncode == 1
    assert f"{port}" in ran.stderr
    assert "--port" in ran.stderr
