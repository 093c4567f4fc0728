"""The MQTT door, at a real broker: every trigger has its verdict, through any break."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from everline.methods.errors import ConfigError, LineDown
from everline.pipelines.fleet import mqtt
from everline.pipelines.fleet.mqtt import Broker, Gateway, Topics, read_broker
from everline.pipelines.fleet.station import Station
from everline.platform.log import LogReader, line_folder

from ...conftest import missing
from .test_station import Line

TOPICS = Topics("in", "out", "code", products={"17": "cap"})


class Mosquitto:
    """Debian's broker on a free port; it keeps its sessions over a restart."""

    def __init__(self, program: str, folder: Path, *more: str) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        conf = [f"listener {self.port} 127.0.0.1", *(more or ("allow_anonymous true",))]
        conf += ["persistence true", f"persistence_location {folder}/", f"user {'root' if os.getuid() == 0 else ''}"]
        (folder / "mosquitto.conf").write_text("\n".join(conf) + "\n")
        self._command = [program, "-c", str(folder / "mosquitto.conf")]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("mosquitto did not start")

    def reload(self) -> None:
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def program() -> str:
    found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        missing("there is no MQTT broker here: apt-get install mosquitto")
    return found


@pytest.fixture
def broker(program: str, tmp_path: Path) -> Iterator[Mosquitto]:
    server = Mosquitto(program, tmp_path)
    yield server
    server.stop()


class Plc:
    """The plant's side: hears everything."""

    def __init__(self, port: int) -> None:
        self.heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client: Any = paho.Client(paho.CallbackAPIVersion.VERSION2, "plc", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        ready = threading.Event()
        self.client.on_connect = lambda *_: self.client.subscribe([("out", 1), ("state", 1)])
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = lambda _, __, m: self.heard.put((m.topic, json.loads(m.payload)))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(20)

    def send(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1)

    def hear(self, topic: str = "out") -> Any:
        while True:
            got, plain = self.heard.get(timeout=280)
            if got == topic:
                return plain

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def plc(broker: Mosquitto) -> Iterator[Plc]:
    one = Plc(broker.port)
    yield one
    one.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways; all are stopped at the end."""
    monkeypatch.setattr(mqtt, "BACK_OFF_S", (1, 1))
    monkeypatch.setattr(mqtt, "PAUSE_S", 0.01)
    running: list[tuple[Gateway, threading.Thread]] = []

    def start(port: int, line: Any, topics: Topics = TOPICS, password: str = "", **more: Any) -> Gateway:
        settings = Broker("gate", {"mono": topics}, port=port, state="state", **more)
        gateway = Gateway(settings, {"mono": Station("mono", line, topics.products)}, password)
        thread = threading.Thread(target=gateway.run)
        gateway.start()
        thread.start()
        running.append((gateway, thread))
        return gateway

    yield start
    for gateway, thread in running:
        gateway.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_triggers_and_codes_are_answered_in_their_order(
    broker: Mosquitto, plc: Plc, run: Callable[..., Gateway]
) -> None:
    line = Line()
    run(broker.port, line)
    assert plc.hear("state") == {"state": "online"}
    for topic, payload in [("in", b"good"), ("code", b"17"), ("in", b"bad"), ("code", b"18"), ("in", b"broken")]:
        plc.send(topic, payload)
    told = [plc.hear() for _ in range(5)]
    assert [one.get("verdict") for one in told] == ["pass", None, "reject", "error", "error"]
    assert told[1] == {"line": "mono", "task": "cap", "record": 0}
    assert "18" in told[3]["error"]["message"]
    assert line.tasks == ["cap"]


def test_a_path_is_read_below_its_folder_only(
    broker: Mosquitto, plc: Plc, run: Callable[..., Gateway], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"good")
    run(broker.port, Line(), Topics("in", "out", folder=tmp_path / "images"))
    plc.hear("state")
    for path in (b"a.png", b"../mosquitto.conf", b"\xff"):
        plc.send("in", path)
    assert [plc.hear()["verdict"] for _ in range(3)] == ["pass", "error", "error"]


def test_a_broker_that_goes_away_loses_no_verdict_and_nothing_is_learned_twice(
    broker: Mosquitto, plc: Plc, run: Callable[..., Gateway]
) -> None:
    line, asked, go = Line(), threading.Event(), threading.Event()
    inspect = line.inspect

    def slow(data: bytes, id: str) -> dict[str, Any]:
        asked.set()
        assert go.wait(60)
        return inspect(data, id)

    line.inspect = slow  # type: ignore[method-assign]
    run(broker.port, line)
    plc.hear("state")
    plc.send("in", b"good")
    assert asked.wait(20)
    broker.stop()
    go.set()
    broker.start()
    assert plc.hear()["verdict"] == "pass"
    assert len(line.ids) == 1


def test_what_was_not_answered_comes_to_the_next_process(
    broker: Mosquitto, plc: Plc, run: Callable[..., Gateway]
) -> None:
    down, asked = Line(), threading.Event()

    def fail(data: bytes, id: str) -> dict[str, Any]:
        asked.set()
        raise LineDown("down")

    down.inspect = fail  # type: ignore[method-assign]
    first = run(broker.port, down)
    plc.hear("state")
    plc.send("in", b"good")
    assert asked.wait(20)
    first.stop()
    line = Line()
    run(broker.port, line)
    assert plc.hear()["verdict"] == "pass"
    assert len(line.ids) == 1


def test_a_connection_that_breaks_is_the_last_will_and_comes_back(
    broker: Mosquitto, plc: Plc, run: Callable[..., Gateway]
) -> None:
    gateway = run(broker.port, Line())
    assert plc.hear("state") == {"state": "online"}
    gateway.client.socket().shutdown(socket.SHUT_RDWR)
    assert {plc.hear("state")["state"], plc.hear("state")["state"]} == {"offline", "online"}


def test_tls_and_a_password(program: str, tmp_path: Path, run: Callable[..., Gateway]) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "ca.pem"]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users", "everline", "se:cr@t"], check=True)
    conf = [f"certfile {tmp_path}/ca.pem", f"keyfile {tmp_path}/key.pem", f"password_file {tmp_path}/users"]
    server = Mosquitto(program, tmp_path, *conf, "allow_anonymous false")
    try:
        tls = {"ca": str(tmp_path / "ca.pem")}
        right = run(server.port, Line(), password="se:cr@t", user="everline", tls=tls)
        for _ in range(200):
            if right.client.is_connected():
                break
            time.sleep(0.05)
        assert right.client.is_connected()
        assert "se:cr@t" not in repr(right.broker)
    finally:
        server.stop()


def test_a_verdict_that_the_broker_refuses_is_said_and_goes_out_once_it_may(
    program: str, tmp_path: Path, run: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite in\ntopic readwrite state\ntopic read out\n")
    server = Mosquitto(program, tmp_path, "allow_anonymous true", f"acl_file {rules}")
    plc = Plc(server.port)
    try:
        line = Line()
        run(server.port, line)
        plc.hear("state")
        plc.send("in", b"good")
        said = ""
        while "refuses what is published to out: Not authorized" not in " ".join(said.split()):
            said += capsys.readouterr().err
        assert plc.heard.empty()
        rules.write_text("topic readwrite #\n")
        server.reload()
        assert plc.hear()["verdict"] == "pass"
        assert len(line.ids) == 1
    finally:
        plc.close()
        server.stop()


def test_two_gateways_with_one_client_id_are_told_so(
    broker: Mosquitto, run: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""
    for _ in range(2):
        run(broker.port, Line())
    while "another client may use the id 'gate'" not in " ".join(said.split()):
        said += capsys.readouterr().err


def written(folder: Path, more: str = "", topics: str = "trigger: a, verdict: b") -> Path:
    (folder / "mqtt.yaml").write_text(f"client: c\n{more}\nlines:\n  mono: {{{topics}}}\n")
    return folder / "mqtt.yaml"


def test_a_file_is_read_relative_to_itself(tmp_path: Path) -> None:
    topics = "trigger: a, verdict: b, task: c, folder: images, products: {'017': cap}"
    broker = read_broker(written(tmp_path, "tls: {ca: ca.pem}", topics))
    assert broker.lines["mono"].folder == tmp_path / "images"
    assert broker.lines["mono"].products == {"017": "cap"}
    assert broker.tls == {"ca": str(tmp_path / "ca.pem")}


@pytest.mark.parametrize(
    ("more", "topics"),
    [
        ("prot: 1", "trigger: a, verdict: b"),
        ("port: 99999", "trigger: a, verdict: b"),
        ("host: broker.plant\nuser: me", "trigger: a, verdict: b"),
        ("", "trigger: a"),
        ("", "trigger: a, verdict: a"),
        ("", "trigger: 'a/#', verdict: b"),
        ("", "trigger: a, verdict: b, task: a"),
        ("", "trigger: a, verdict: b, products: {017: cap}"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, more: str, topics: str) -> None:
    with pytest.raises(ConfigError):
        read_broker(written(tmp_path, more, topics))


FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""


@pytest.mark.slow
def test_from_the_command_line_to_the_log_until_ctrl_c_and_again(
    broker: Mosquitto,
    plc: Plc,
    tmp_path: Path,
    parts: list[bytes],
    request: pytest.FixtureRequest,
    ray_session: str,
    tracking_uri: str,
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    written(
        tmp_path, f"port: {broker.port}", "trigger: in, verdict: out, task: code, products: {'17': cap, '18': nut}"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from everline.pipelines.main import main; main()"

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code, "mqtt", "mqtt.yaml"],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": ray_session},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    def end(process: "subprocess.Popen[str]", by: signal.Signals) -> None:
        process.send_signal(by)
        _, err = process.communicate(timeout=280)
        assert process.returncode == 130, err
        assert "Traceback" not in err

    first = start()
    while first.stderr is not None and "connected" not in first.stderr.readline():
        assert first.poll() is None
    plc.send("code", b"17")
    for data in (parts[0], b"no image", parts[1]):
        plc.send("in", data)
    told = [plc.hear(), *(plc.hear()["verdict"] for _ in range(3))]
    assert told == [{"line": "mono", "task": "cap", "record": 0}, "learning", "error", "learning"]
    end(first, signal.SIGINT)
    for topic, data in [("in", parts[1]), ("code", b"17"), ("code", b"18"), ("in", parts[2])]:
        plc.send(topic, data)
    again = start()
    told = [plc.hear()]
    while told[-1].get("duplicate") is not False:
        told.append(plc.hear())
    assert told[0]["duplicate"] is True  # more than one, if Ctrl-C came between a verdict and its acknowledgement
    assert [one["task"] for one in told if "task" in one] == ["cap", "nut"]
    end(again, signal.SIGTERM)
    records = list(LogReader(line_folder(tmp_path / "store", "mono")).records())
    assert [one.task for one in records if one.kind == "image"] == ["cap", "cap", "nut"]
    assert len([one for one in records if one.kind == "task"]) == 2
