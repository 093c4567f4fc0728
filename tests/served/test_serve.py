"""`everline serve` as a user runs it: a stream that joins, the README's examples, a port that is taken."""

import json
import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from everline.methods.errors import EverlineError

from ..conftest import MAIN
from .conftest import FLEET, Served, Taught

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_a_line_learns_what_it_is_sent_and_answers_with_its_versions(
    served: Served, taught: Taught, parts: list[bytes]
) -> None:
    first = taught.first
    assert (first["verdict"], first["version"], first["record"], first["admitted"]) == ("learning", None, 0, True)
    assert taught.streamed["acknowledged"] == 100

    client = served.client(served.tokens["inspect"])
    assert {one["line"] for one in client.get("/lines")["lines"]} == set(served.fleet.lines)
    answer = client.inspect("mono", parts[0], learn=False)
    assert answer["duplicate"] and answer["version"] >= 1
    assert isinstance(answer["score"], float)
    assert 0 < answer["p_value"] <= 1
    versions = [v["version"] for v in client.get("/lines/mono/versions")["versions"]]
    assert versions == sorted(versions, reverse=True)
    assert len(versions) > 1

    before = client.get("/lines/mono")
    stranger = served.client()
    foreign = stranger.inspect("mono", parts[0], id="strange")
    stranger.close()
    assert (foreign["id"], foreign["admitted"]) == ("unknown:strange", False)
    after = client.get("/lines/mono")
    client.close()
    names = ("images_learned", "threshold", "version", "drift", "false_rejects")
    assert [after[name] for name in names] == [before[name] for name in names]
    assert after["records"] == before["records"] + 1 and served.log("mono")[-1].data["unknown_sender"] is True


@pytest.mark.slow
def test_what_is_wrong_is_said_and_changes_nothing(served: Served, parts: list[bytes]) -> None:
    client = served.client()
    with pytest.raises(EverlineError, match=r"404.*mono, "):
        client.inspect("momo", parts[0])
    with pytest.raises(EverlineError, match="400"):
        client.inspect("mono", b"no image")
    assert client.get("/health")["status"] == "ok"
    client.close()


@pytest.mark.slow
def test_the_examples_of_the_readme(served: Served, taught: Taught, parts: list[bytes]) -> None:
    (served.folder / "part.png").write_bytes(parts[1])
    shown = README.read_text("utf-8").split("## HTTP")[1]
    commands = [line[2:] for line in shown.splitlines() if line.startswith("$ curl")]
    assert len(commands) == 3
    newest = served.ask("GET", "/lines/mono/versions")[2]["versions"][0]["version"]  # one of them turns back from it
    assert served.post("/lines/mono/rollback", {"version": newest}, served.tokens["change"])[0] == 200
    for command in commands:
        words = [*shlex.split(command.replace(":8000", f":{served.port}")), "-s"]
        words += ["-H", f"Authorization: Bearer {served.tokens['change']}"]
        answer = json.loads(subprocess.run(words, cwd=served.folder, capture_output=True, check=True).stdout)
        assert "error" not in answer, answer


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words, env = [*MAIN, "serve", "--port", str(port)], {**os.environ, "RAY_ADDRESS": "local"}
        ran = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"{port}" in ran.stderr
    assert "--port" in ran.stderr
