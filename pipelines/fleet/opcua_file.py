"""The file of `everline opcua`: a server, and for each line its nodes there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...methods.errors import ConfigError
from ...platform.volume import expanded
from ...platform.yamlfile import check_known, mapping, read_yaml
from .doorfile import codes, loopback, text
from .opcua_link import Security, Server, check_node

SAMPLE = """\
endpoint: opc.tcp://127.0.0.1:4840
lines:
  mono: {trigger: ns=3;s=Image, id: ns=3;s=Part, done: ns=3;s=Done, verdict: ns=3;s=Verdict, reject: ns=3;s=Reject}
"""
KINDS = ("trigger", "id", "task", "verdict", "reject", "score", "done")


@dataclass(frozen=True)
class Nodes:
    """One line's. folder: triggers are paths below it; without one they are the bytes of images."""

    trigger: str
    verdict: str = ""
    reject: str = ""
    score: str = ""
    id: str = ""  # the part's, another for each, not 0; without it a change of `trigger` is a part
    done: str = ""  # gets what stood in `id`, when all else is written
    task: str = ""
    folder: Path | None = None
    products: Mapping[str, str] | None = None

    @property
    def heard(self) -> list[str]:
        """Nodes whose changes matter at once."""
        return [node for node in (self.id or self.trigger, self.task) if node]

    @property
    def written(self) -> list[str]:
        """Nodes that are everline's."""
        return [node for node in (self.verdict, self.reject, self.score, self.done) if node]


@dataclass(frozen=True)
class Plc:
    """What the file says."""

    server: Server
    lines: Mapping[str, Nodes]


def read_plc(file: Path) -> Plc:
    """Raises ConfigError for what is missing, unknown or of another type, and for a password that all could read."""
    plain = mapping(read_yaml(file, "OPC UA", SAMPLE), str(file))
    check_known(plain, ("endpoint", "user", "security", "lines"), str(file))
    lines = {
        name: _nodes(mapping(one, f"{file}: {name}"), f"{file}: {name}", file.parent)
        for name, one in mapping(plain.get("lines"), f"{file}: lines").items()
    }
    endpoint, host = _endpoint(text(plain, "endpoint", str(file)), str(file))
    server = Server(endpoint, text(plain, "user", str(file), ""), _security(plain.get("security"), file))
    own = [node for one in lines.values() for node in (one.trigger, one.id) if node]
    written = [node for one in lines.values() for node in one.written]
    if not lines or len(set(own) | set(written)) < len(own) + len(written):
        raise ConfigError(f"{file}: each line has nodes of its own, and each of them one purpose.")
    if set(written) & {one.task for one in lines.values()}:
        raise ConfigError(f"{file}: everline writes to no `task` node.")
    if server.user and server.security is None and not loopback(host):
        raise ConfigError(f"{file}: a password goes to another machine encrypted only; add `security`.")
    return Plc(server, lines)


def _endpoint(given: str, who: str) -> tuple[str, str]:
    """With its port; and the host."""
    try:
        url = urlsplit(given)
        host, port = url.hostname, url.port or 4840
    except ValueError:
        host, port = None, 0
    if not host or url.scheme != "opc.tcp" or "@" in url.netloc:
        raise ConfigError(f"{who}: endpoint is opc.tcp://HOST:PORT/PATH without user or password, got {given!r}.")
    shown = f"[{host}]" if ":" in host else host
    return f"opc.tcp://{shown}:{port}{url.path}", host


def _security(plain: Any, file: Path) -> Security | None:
    if plain is None:
        return None
    who = f"{file}: security"
    names = mapping(plain, who)
    check_known(names, ("certificate", "key", "server"), who)
    return Security(*(file.parent / expanded(text(names, name, who)) for name in ("certificate", "key", "server")))


def _nodes(plain: Mapping[str, Any], who: str, base: Path) -> Nodes:
    check_known(plain, (*KINDS, "folder", "products"), who)
    named: dict[str, Any] = {kind: text(plain, kind, who, None if kind == "trigger" else "") for kind in KINDS}
    for node in filter(None, named.values()):
        try:
            check_node(node)
        except ConfigError as error:
            raise ConfigError(f"{who}: {error}") from error
    folder = text(plain, "folder", who, "")
    nodes = Nodes(**named, folder=base / expanded(folder) if folder else None, products=codes(plain, who))
    if bool(nodes.id) != bool(nodes.done):
        raise ConfigError(f"{who}: `id` and `done` go together: what comes in `id` goes back in `done`.")
    if (nodes.reject or nodes.score) and not nodes.done:
        raise ConfigError(f"{who}: `reject` and `score` do not say of which part; they want `id` and `done`.")
    if not nodes.verdict and not nodes.reject:
        raise ConfigError(f"{who}: `verdict` (text, JSON) or `reject` (Boolean) is needed for the answer.")
    return nodes
