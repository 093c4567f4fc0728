"""`everline mqtt`: triggers and barcodes come from a broker, verdicts go there.

A message is acknowledged when its verdict is with the broker, so after a break it comes again; the image's id in the
log keeps it from being learned twice.
"""

import json
import os
import queue
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError, LineDown, LineStopped, NoSpace, StoreDown
from ...platform.settings import read_fleet
from ...platform.volume import expanded
from ...platform.yamlfile import check_known, mapping, read_yaml
from ..console import ERR, fleet_option, terminable
from ..files import FilePath
from .doorfile import codes, loopback, text
from .station import MAX_CODE, Station, stations

try:
    import paho.mqtt.client as paho
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
except ImportError as error:
    raise ConfigError("everline mqtt needs paho-mqtt: pip install 'everline[factory]'.") from error

PASSWORD = "EVERLINE_MQTT_PASSWORD"  # noqa: S105 - the variable's name
HELD = 16  # messages that are here without an acknowledgement; the broker keeps the others
TAKEN_OVER, UNSAID = 0x8E, 0x80  # why a broker disconnects: another client has the same id; it does not say
SESSION_S = 86400  # that the broker keeps them while nobody is connected
BACK_OFF_S = (1, 60)  # between two tries to connect
PAUSE_S = 2.0  # while a line, or the broker, cannot take anything
BRIEF_S, BRIEF = 10.0, 3  # so many connections that ended as soon: another client has the same id
SAMPLE = """\
host: 127.0.0.1
client: everline-hall-1
lines:
  mono: {trigger: plant/mono/image, verdict: plant/mono/verdict, task: plant/mono/barcode}
"""


@dataclass(frozen=True)
class Topics:
    """One line's. folder: triggers are paths below it; without one they are the bytes of images."""

    trigger: str
    verdict: str
    task: str = ""
    folder: Path | None = None
    products: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Broker:
    """What the file says."""

    client: str
    lines: Mapping[str, Topics]
    host: str = "127.0.0.1"
    port: int = 0  # 0: 8883 with TLS, else 1883
    user: str = ""
    tls: Mapping[str, str] | None = None  # ca, certificate, key: files
    state: str = ""  # where "online" and, as the last will, "offline" go


@click.command()
@click.argument("file", type=FilePath())
@fleet_option
def mqtt(file: Path, fleet_file: Path) -> None:
    """Inspect what comes as MQTT messages, as FILE says (YAML), until Ctrl-C.

    For each line: a topic with triggers (the image's bytes, or its path below `folder`), one for verdicts (JSON), and
    one with barcodes or recipe numbers, which `products` maps to tasks. The password is in EVERLINE_MQTT_PASSWORD.
    """
    broker = read_broker(file)
    fleet = read_fleet(fleet_file)
    with stations(fleet, {name: topics.products for name, topics in broker.lines.items()}) as there, terminable():
        gateway = Gateway(broker, there, os.environ.get(PASSWORD, ""))
        try:
            gateway.start()
            gateway.run()
        finally:
            gateway.stop()


class Gateway:
    """Between a broker and stations: a thread of the client's own hears, the caller of `run` works."""

    def __init__(self, broker: Broker, there: Mapping[str, Station], password: str = "") -> None:
        """Raises ConfigError for certificates that cannot be read."""
        self.broker, self._stations = broker, there
        self._waiting: queue.Queue[_Message] = queue.Queue(HELD * 2)
        self._published: dict[int, str | None] = {}  # verdict -> why the broker refuses it; empty: it has it
        self._since, self._brief = 0.0, 0  # when it connected; connections that did not last, one after the other
        self._change = threading.Condition()
        self._ended = threading.Event()
        self._topics = {topics.trigger: (name, "trigger") for name, topics in broker.lines.items()}
        self._topics |= {topics.task: (name, "task") for name, topics in broker.lines.items() if topics.task}
        client: Any = paho.Client(
            paho.CallbackAPIVersion.VERSION2, broker.client, protocol=paho.MQTTv5, manual_ack=True
        )
        client.reconnect_delay_set(*BACK_OFF_S)
        if broker.user:
            client.username_pw_set(broker.user, password or None)
        if broker.tls is not None:
            client.tls_set_context(_context(broker.tls))
        if broker.state:
            client.will_set(broker.state, json.dumps({"state": "offline"}), qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish, client.on_subscribe = self._arrived, self._sent, self._listens
        self.client = client

    def start(self) -> None:
        """Connects, again and again where nobody answers; returns at once."""
        properties: Any = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum, properties.SessionExpiryInterval = HELD, SESSION_S
        port = self.broker.port or (1883 if self.broker.tls is None else 8883)
        self.client.connect_async(self.broker.host, port, clean_start=False, properties=properties)
        self.client.loop_start()

    def run(self) -> None:
        """Works through messages in their order, until `stop`. Raises LineStopped, ..."""
        while not self._ended.is_set():
            try:
                message = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            reply = self._reply(message)
            if reply is not None and self._publish(self.broker.lines[message.line].verdict, reply):
                self.client.ack(message.mid, message.qos)

    def stop(self) -> None:
        """Says that it is offline, and goes. What is not acknowledged comes again next time."""
        self._ended.set()
        if self.broker.state and self.client.is_connected():
            self.client.publish(self.broker.state, json.dumps({"state": "offline"}), qos=1, retain=True)
        self.client.disconnect()
        self.client.loop_stop()

    def _reply(self, message: "_Message") -> dict[str, Any] | None:
        """A verdict, or the task at hand; waits for a line that is down. None: ended before."""
        station, topics, said = self._stations[message.line], self.broker.lines[message.line], ""
        while not self._ended.is_set():
            try:
                if message.kind == "task":
                    return station.switch(message.payload[: MAX_CODE + 64].decode())
                if topics.folder is not None:
                    return station.inspect_named(topics.folder, message.payload.decode(), message.id)
                return station.inspect(message.payload, message.id)
            except (ConfigError, UnicodeDecodeError) as error:
                return station.refused(error, message.id)
            except LineStopped:
                raise
            except (LineDown, NoSpace, StoreDown) as error:
                if str(error) != said:
                    said = str(error)
                    _say(f"waiting: {error}")
                self._ended.wait(PAUSE_S)
        return None

    def _publish(self, topic: str, plain: dict[str, Any]) -> bool:
        """Returns when the broker has it, which may refuse it for a while; False: ended before."""
        said = ""
        while (refusal := self._refusal(topic, plain)) != "":
            if refusal is None:
                return False
            if refusal != said:
                said = refusal
                _say(f"waiting: the broker refuses what is published to {topic}: {refusal}")
            self._ended.wait(PAUSE_S)
        return True

    def _refusal(self, topic: str, plain: dict[str, Any]) -> str | None:
        """Publishes; why the broker refuses it, empty: it has it, None: ended before."""
        with self._change:
            mid = self.client.publish(topic, json.dumps(plain, allow_nan=False), qos=1).mid
            self._published[mid] = None
            while (answer := self._published[mid]) is None and not self._ended.is_set():
                self._change.wait(0.2)
            del self._published[mid]
            return answer

    def _connected(self, client: Any, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            _say(f"the broker refuses: {reason}")
            return
        self._since = time.monotonic()
        client.subscribe([(topic, 1) for topic in self._topics])
        if self.broker.state:
            client.publish(self.broker.state, json.dumps({"state": "online"}), qos=1, retain=True)

    def _listens(self, client: Any, _: Any, mid: int, reasons: Any, properties: Any) -> None:
        """From now on no message is missed: only now is it said to be connected."""
        refused = sorted({str(reason) for reason in reasons if reason.is_failure})
        _say(f"the broker refuses a topic: {', '.join(refused)}" if refused else f"connected to {self.broker.host}")

    def _disconnected(self, client: Any, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._ended.is_set():
            return
        brief = reason.value == UNSAID and time.monotonic() - self._since < BRIEF_S
        self._brief = self._brief + 1 if brief else 0
        _say(f"disconnected: {reason}; tries again")
        if self._brief >= BRIEF or reason.value == TAKEN_OVER:
            id = self.broker.client
            _say(f"another client may use the id {id!r}, as this one does: give each gateway a `client` of its own")

    def _arrived(self, client: Any, _: Any, message: Any) -> None:
        line, kind = self._topics.get(message.topic, ("", ""))
        if not line:  # of a subscription that the session has from earlier
            client.ack(message.mid, message.qos)
            return
        given = dict(getattr(message.properties, "UserProperty", []))
        try:
            self._waiting.put_nowait(
                _Message(line, kind, message.payload, given.get("id", ""), message.mid, message.qos)
            )
        except queue.Full:  # QoS 0, of which the broker keeps none: more than can be worked on
            _say(f"{line}: a message of QoS 0 was dropped, {self._waiting.maxsize} wait already")

    def _sent(self, client: Any, _: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._change:
            if mid in self._published:
                self._published[mid] = str(reason) if reason.is_failure else ""
                self._change.notify_all()
            elif reason.is_failure:
                _say(f"the broker refuses what is published to {self.broker.state}: {reason}")


@dataclass(frozen=True)
class _Message:
    line: str
    kind: str  # trigger or task
    payload: bytes = field(repr=False)
    id: str
    mid: int
    qos: int


def read_broker(file: Path) -> Broker:
    """Raises ConfigError for what is missing, unknown or of another type, and for a password that all could read."""
    plain = mapping(read_yaml(file, "MQTT", SAMPLE), str(file))
    check_known(plain, ("client", "lines", "host", "port", "user", "tls", "state"), str(file))
    lines = {
        name: _topics(mapping(one, f"{file}: {name}"), f"{file}: {name}", file.parent)
        for name, one in mapping(plain.get("lines"), f"{file}: lines").items()
    }
    broker = Broker(
        client=text(plain, "client", str(file)),
        lines=lines,
        host=text(plain, "host", str(file), "127.0.0.1"),
        port=plain.get("port", 0),
        user=text(plain, "user", str(file), ""),
        tls=_tls(plain.get("tls"), file),
        state=text(plain, "state", str(file), ""),
    )
    if type(broker.port) is not int or not 0 <= broker.port < 65536:
        raise ConfigError(f"{file}: port is a number below 65536.")
    heard = [topic for one in lines.values() for topic in (one.trigger, one.task) if topic]
    said = [*(one.verdict for one in lines.values()), *([broker.state] if broker.state else [])]
    for topic in (*heard, *said):
        if not topic or any(sign in topic for sign in "+#\0"):
            raise ConfigError(f"{file}: {topic!r} is no topic (no + and no #).")
    if not lines or len(set(heard)) < len(heard) or set(heard) & set(said):
        raise ConfigError(f"{file}: lines have each a trigger topic and a task topic of their own.")
    if broker.user and broker.tls is None and not loopback(broker.host):
        raise ConfigError(f"{file}: a password goes to another machine by TLS only; add `tls: {{ca: FILE}}`.")
    return broker


def _topics(plain: Mapping[str, Any], who: str, base: Path) -> Topics:
    check_known(plain, ("trigger", "verdict", "task", "folder", "products"), who)
    folder = text(plain, "folder", who, "")
    return Topics(
        trigger=text(plain, "trigger", who),
        verdict=text(plain, "verdict", who),
        task=text(plain, "task", who, ""),
        folder=base / expanded(folder) if folder else None,
        products=codes(plain, who),
    )


def _tls(plain: Any, file: Path) -> Mapping[str, str] | None:
    if plain in (None, False):
        return None
    if plain is True:
        return {}
    names = mapping(plain, f"{file}: tls")
    check_known(names, ("ca", "certificate", "key"), f"{file}: tls")
    return {name: str(file.parent / expanded(text(names, name, f"{file}: tls"))) for name in names}


def _context(files: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.get("ca"))
        if "certificate" in files:
            context.load_cert_chain(files["certificate"], files.get("key"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls: {', '.join(files.values())}: cannot be read: {error}") from error
    return context


def _say(text: str) -> None:
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)
