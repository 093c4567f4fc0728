"""A fleet that is served: what Prometheus would find, and what nobody does without a token."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from everline.deploy.server import free_port
from everline.deploy.tokens import make_token
from everline.methods.errors import EverlineError
from everline.pipelines.fleet.client import Client
from everline.platform.metrics import METRICS

FLEET = """\
store: store
lines:
  mono: {method: coreset, false_reject_rate: 0.1, probation: 1, params: {size: 64, memory: 100}}
  deaf: {method: lemo, queue: 1, when_full: drop, params: {size: 64}}
"""
MAIN = [sys.executable, "-c", "from everline.pipelines.main import main; main()"]
PATIENCE_S = 300.0  # for what takes twenty seconds on a machine with nothing else to do
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Served:
    """folder: of the fleet. session: where Ray keeps its logs. tokens: by holder."""

    folder: Path
    session: Path
    port: int
    tokens: dict[str, str]

    def post(self, path: str, body: dict[str, Any], token: str = "") -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of the answer."""
        with_token = {"Authorization": f"Bearer {token}"} if token else {}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **with_token})
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read()), {name.lower(): text for name, text in answer.getheaders()}
        connection.close()
        return found

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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, port = tmp_path_factory.mktemp("metrics"), free_port()
    (folder / "fleet.yaml").write_text(FLEET)
    tokens = {name: make_token(folder / "tokens.yaml", name, (name,)) for name in ("change", "inspect")}
    command = [*MAIN, "serve", "--port", str(port), "--tokens", "tokens.yaml"]
    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as session:
        env = {**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": session}  # not the cluster of the other tests
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err)
        while f":{port}" not in (folder / "out").read_text():
            assert process.poll() is None, (folder / "err").read_text()
            time.sleep(0.2)
        yield Served(folder, Path(session), port, tokens)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def answers(served: Served, parts: list[bytes]) -> list[dict[str, Any]]:
    """What the fleet was shown before anybody looks: sixty images, some of them again, and what is none."""
    client = Client(port=served.port, timeout_s=PATIENCE_S)
    answers = [client.inspect("mono", data) for data in parts[:40]]
    give_up = time.monotonic() + PATIENCE_S
    while client.get("/lines/mono")["serving_version"] is None:
        assert time.monotonic() < give_up, "no version after forty images"
        time.sleep(0.2)
    answers += [client.inspect("mono", data) for data in parts[40:]]
    answers += [client.inspect("mono", data) for data in parts[:5]]  # known by then: timed, and not counted again
    answers.append(client.inspect("deaf", parts[0]))
    for _ in range(3):
        with pytest.raises(EverlineError, match="400"):
            client.inspect("mono", b"no image")
    with pytest.raises(EverlineError, match="404"):
        client.inspect("<none>", parts[0])
    client.close()
    form = b"--x\r\nContent-Disposition: form-data; name=a; filename=a.png\r\n\r\nnothing\r\n--x--\r\n"
    batch = HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    batch.request("POST", "/lines/mono/inspect/batch", form, {"Content-Type": "multipart/form-data; boundary=x"})
    assert batch.getresponse().status == 200
    batch.close()
    return answers


def until(wanted: Samples, look: Callable[[], Samples]) -> Samples:
    """The samples, once all that is wanted is among them. Ray's agents hear of new figures every ten seconds."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        samples = look()
        wrong = [
            f"{name} {dict(labels)}: {samples.get((name, labels))}, not {n}"
            for (name, labels), n in wanted.items()
            if samples.get((name, labels)) != n
        ]
        if not wrong:
            return samples
        assert time.monotonic() < give_up, "\n".join(wrong)
        time.sleep(1)


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"everline_{name}", frozenset(labels.items())


@pytest.mark.slow
def test_what_was_inspected_is_what_prometheus_finds(
    served: Served, answers: list[dict[str, Any]], scrape: Callable[[list[str]], Samples]
) -> None:
    told = Counter((one["line"], one["verdict"]) for one in answers if not one["duplicate"])
    assert sum(one["duplicate"] for one in answers) == 5
    assert told["mono", "pass"] > 0
    ps = [one["p_value"] for one in answers if one["p_value"] is not None and not one["duplicate"]]
    client = Client(port=served.port, timeout_s=PATIENCE_S)
    status = client.get("/lines/mono")  # the line has learned what it was shown before it answers
    (group,) = client.get("/metrics/targets")
    client.close()
    assert status["images_learned"] > 0 and status["version"] > 0
    verdicts: Samples = {sample("verdicts_total", line=line, verdict=v): n for (line, v), n in told.items()}
    wanted = verdicts | {
        sample("inspect_seconds_count", line="mono"): 65,
        sample("inspect_seconds_count", line="deaf"): 1,
        sample("record_seconds_count", line="mono"): 65,
        sample("p_value_count", line="mono"): len(ps),
        sample("p_value_bucket", line="mono", le="0.2"): sum(p <= 0.2 for p in ps),
        sample("errors_total", code="bad_image"): 4,
        sample("errors_total", code="unknown_line"): 1,
        sample("images_learned", line="mono"): status["images_learned"],
        sample("version", line="mono"): status["version"],
        sample("serving_version", line="mono"): status["version"],
        sample("version", line="deaf"): 0,
        sample("up", line="mono"): 1,
        sample("up", line="deaf"): 1,
        sample("false_reject_rate_promised", line="mono"): 0.1,
    }
    samples = until(wanted, lambda: scrape(group["targets"]))
    assert {key for key in samples if key[0] == "everline_verdicts_total"} == verdicts.keys()
    bases = {name.rsplit("_", 1)[0] if name.endswith(("_bucket", "_count", "_sum")) else name for name, _ in samples}
    silent = {"everline_dropped_total"}  # a counter without a count is not exported
    if status["false_rejects"]["rate"] is None:
        silent.add("everline_false_reject_rate")
    assert bases == METRICS.keys() - silent
    values = {dict(labels).get("line") for _, labels in samples}
    assert values == {"mono", "deaf", None}, "a made-up line must not become a label"


@pytest.mark.slow
def test_without_its_token_nobody_changes_a_served_line_and_no_token_is_written_anywhere(
    served: Served, answers: list[dict[str, Any]]
) -> None:
    passed = next(one for one in answers if one["verdict"] == "pass")
    changes = {
        "/lines/mono/feedback": {"id": passed["id"], "label": "ok"},
        "/lines/mono/rollback": {"version": 1},
        "/lines/mono/task": {"task": "cap"},
    }
    client = Client(port=served.port, timeout_s=PATIENCE_S)
    before = client.get("/lines/mono")
    change, inspect = served.tokens["change"], served.tokens["inspect"]
    refused = ("", 401, "no_token"), (f"{change}x", 401, "no_token"), (inspect, 403, "forbidden")
    for path, body in changes.items():
        for token, status, code in refused:
            found, answer, headers = served.post(path, body, token)
            assert (found, answer["error"]["code"]) == (status, code), path
            assert answer["error"].keys() == {"code", "message", "request_id"}
            assert answer["error"]["request_id"] == headers["x-request-id"]
            assert headers["www-authenticate"].startswith('Bearer realm="everline"')
    assert client.get("/lines/mono")["records"] == before["records"], "what was refused must not be in the log"

    taken = {path: served.post(path, body, change)[:2] for path, body in changes.items()}
    assert [status for status, _ in taken.values()] == [200, 200, 200], taken
    after = client.get("/lines/mono")
    assert (after["records"], after["version"], after["task"]) == (before["records"] + 3, 1, "cap")
    rows = client.get("/lines/mono/images?limit=60")["images"]
    assert [(row["label"], row["by"]) for row in rows if row["id"] == passed["id"]] == [("ok", "change")]

    (served.folder / "tokens.yaml").write_text("nobody: [")
    assert served.post("/lines/mono/task", {"task": "lid"}, change)[0] == 401
    client.close()
    written = served.written()
    assert any(b"nobody is let in" in text for text in written.values()), "the server's own log is not among these"
    assert {path.name for path in written} >= {"out", "err", "fleet.yaml"}
    for token in (change, inspect):
        assert not [path for path, text in written.items() if token.encode() in text]
