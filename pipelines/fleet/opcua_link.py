"""A session with an OPC UA server that comes back by itself: whoever reads or writes through it waits meanwhile."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...methods.errors import ConfigError
from ...platform.images import MAX_BYTES

try:
    from asyncua import Client, ua
    from asyncua.client.ua_client import UaClientState
    from asyncua.common.subscription import DataChangeEvent
    from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
except ImportError as error:
    raise ConfigError("everline opcua needs asyncua: pip install 'everline[factory]'.") from error

NAME = "urn:everline"  # of the application; stands in its certificate too
BACK_OFF_S = (1.0, 60.0)  # between two tries to connect
PAUSE_S = 2.0  # after a request that the server refused
TIMEOUT_S = 10.0  # of one request
SESSION_S = 60.0  # until the server forgets a session that fell silent
PUBLISH_MS = 20.0  # between two looks of the server at its nodes; it takes the nearest that it can
MAX_MESSAGE = MAX_BYTES + 2**20  # that a server is asked to keep to
QUEUE = 16  # changes of a node that it holds between two looks
TROUBLE = (OSError, TimeoutError, ua.UaError)
T = TypeVar("T")


@dataclass(frozen=True)
class Security:
    """Basic256Sha256, signed and encrypted. Files, DER or PEM by their suffix; server: the certificate of its own."""

    certificate: Path
    key: Path
    server: Path


@dataclass(frozen=True)
class Server:
    """Where it is, and who we are there."""

    endpoint: str
    user: str = ""
    security: Security | None = None


class Link:
    """One session for all lines. Everything but `run` waits for it, and says why."""

    def __init__(
        self,
        server: Server,
        heard: Mapping[str, Callable[[str, Any], None]],
        others: Sequence[str],
        say: Callable[[str], None],
        password: str = "",
    ) -> None:
        """heard: node -> called with it and each new value, and with the present one after each connect.

        others: nodes that must be there, too. say: for people.
        """
        self._server, self._heard, self._others, self._say, self._password = server, heard, others, say, password
        self._client: Client | None = None
        self._nodes: dict[str, ua.NodeId] = {}  # as the server has them since the last connect
        self._uris: dict[int, str] = {}  # index -> the namespace that it meant first
        self._up = asyncio.Event()

    async def run(self) -> None:
        """Connects, again and again, until it is cancelled. Raises ConfigError for certificates it cannot read."""
        pause, said = BACK_OFF_S[0], ""
        while True:
            client = await self._prepared()
            try:
                await client.connect()
                try:
                    listening = await self._subscribed(client)
                    self._client, pause, said = client, BACK_OFF_S[0], ""
                    self._up.set()
                    self._say(f"connected to {self._server.endpoint}")
                    await listening
                finally:
                    self._up.clear()
                    with suppress(*TROUBLE):
                        await asyncio.wait_for(client.disconnect(), TIMEOUT_S)
            except TROUBLE as error:
                why = str(error) or type(error).__name__
                if why != said:
                    self._say(f"no connection to {self._server.endpoint}: {why}; tries again")
                    said = why
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACK_OFF_S[1])

    async def read(self, *nodes: str) -> list[Any]:
        """Their values, as variants: `.Value` is the plain one, None for null."""

        async def ask(client: Client) -> list[Any]:
            found = await client.read_attributes([client.get_node(self._nodes[node]) for node in nodes])
            for node, one in zip(nodes, found, strict=True):
                _check(node, one.StatusCode)
            return [one.Value or ua.Variant() for one in found]

        return await self._insist(ask)

    async def write(self, values: Mapping[str, Any]) -> None:
        """Writes values: text, bool, float, or a variant as it was read. Returns when the server has them."""

        async def ask(client: Client) -> None:
            plain = [ua.DataValue(one if isinstance(one, ua.Variant) else ua.Variant(one)) for one in values.values()]
            done = await client.write_values([client.get_node(self._nodes[node]) for node in values], plain, False)
            for node, status in zip(values, done, strict=True):
                _check(node, status)

        await self._insist(ask)

    async def _insist(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        said = ""
        while True:
            await self._up.wait()
            assert self._client is not None
            try:
                return await ask(self._client)
            except (OSError, TimeoutError):  # `run` sees it too, and says it
                await asyncio.sleep(0.1)
            except ua.UaError as error:
                if str(error) != said:
                    said = str(error)
                    self._say(f"waiting: {error}")
                await asyncio.sleep(PAUSE_S)

    async def _prepared(self) -> Client:
        client = Client(self._server.endpoint, timeout=TIMEOUT_S, watchdog_intervall=TIMEOUT_S / 2)
        client.name = client.description = "everline"
        client.application_uri = NAME
        client.max_messagesize = MAX_MESSAGE
        client.session_timeout = SESSION_S * 1000
        if self._server.user:
            client.set_user(self._server.user)
            client.set_password(self._password)
        files = self._server.security
        if files is not None:
            try:
                await client.set_security(
                    SecurityPolicyBasic256Sha256,
                    str(files.certificate),
                    str(files.key),
                    server_certificate=str(files.server),
                )
            except (OSError, ValueError, TypeError, ua.UaError) as error:
                names = ", ".join(map(str, (files.certificate, files.key, files.server)))
                raise ConfigError(f"security: {names}: cannot be read: {error}") from error
        return client

    async def _subscribed(self, client: Client) -> Awaitable[None]:
        """What listens until the connection breaks. Raises UaError for a node that is not there."""
        names = list(dict.fromkeys([*self._heard, *self._others]))
        before, uris = dict(self._uris), await client.get_namespace_array()
        self._nodes = resolved(names, uris, self._uris)
        for index, uri in before.items():
            if uris[index : index + 1] != [uri]:
                self._say(
                    f"namespace {index} was {uri} and is another one now; its nodes are looked for where {uri} is"
                )
        nodes = [client.get_node(self._nodes[name]) for name in names]
        for name, one in zip(names, await client.read_attributes(nodes), strict=True):
            if one.StatusCode.value in (ua.StatusCodes.BadNodeIdUnknown, ua.StatusCodes.BadNodeIdInvalid):
                _check(name, one.StatusCode)
        subscription = await client.create_subscription(PUBLISH_MS)
        heard = {client.get_node(self._nodes[name]): name for name in self._heard}
        made = await subscription.subscribe_data_change(list(heard), queuesize=QUEUE, sampling_interval=PUBLISH_MS)
        for name, one in zip(self._heard, made, strict=True):
            if isinstance(one, ua.StatusCode):
                _check(name, one)

        async def listen() -> None:
            while True:
                event = await subscription.next_event(1.0)
                if isinstance(event, DataChangeEvent):
                    self._heard[heard[event.node]](heard[event.node], event.value)
                elif event is not None or client.state is not UaClientState.CONNECTED:
                    raise ConnectionError("it broke")

        return listen()


def resolved(names: Sequence[str], uris: Sequence[str], known: dict[int, str]) -> dict[str, ua.NodeId]:
    """Returns names of nodes -> ids on a server whose namespaces are `uris`, in its order, which a restart may change.

    A name with an index alone means the namespace that had the index first: `known` has it from then on. Raises
    UaError where a namespace is not there, and where two names are of one node.
    """
    found: dict[str, ua.NodeId] = {}
    for name in names:
        node = ua.NodeId.from_string(name)
        uri = node.NamespaceUri if isinstance(node, ua.ExpandedNodeId) else None
        if uri is None and node.NamespaceIndex:
            if node.NamespaceIndex < len(uris):
                known.setdefault(node.NamespaceIndex, uris[node.NamespaceIndex])
            uri = known.get(node.NamespaceIndex, f"number {node.NamespaceIndex}")
        if uri is not None and uri not in uris:
            raise ua.UaError(f"{name}: the server has no namespace {uri}; it has {', '.join(uris)}")
        found[name] = ua.NodeId(node.Identifier, 0 if uri is None else list(uris).index(uri), node.NodeIdType)
    if len(set(found.values())) < len(found):
        twice = [name for name, node in found.items() if list(found.values()).count(node) > 1]
        raise ua.UaError(f"{' and '.join(twice)} are one node")
    return found


def check_node(text: str) -> None:
    """Raises ConfigError for what is no node's id, such as `nsu=urn:plant;s=Part` or `ns=3;s=Part`."""
    try:
        found = ua.NodeId.from_string(text)
    except (ua.UaError, ValueError) as error:
        raise ConfigError(f"{text!r} is no node's id; one is nsu=URI;s=NAME, ns=3;s=NAME or ns=3;i=NUMBER.") from error
    parts = [part.partition("=")[0].strip() for part in re.split(r";[sigb]=", text)[0].split(";")]
    if isinstance(found, ua.ExpandedNodeId) and (parts != ["nsu"] or not found.NamespaceUri):
        raise ConfigError(f"{text!r}: a node is one of this server, as nsu=URI;s=NAME.")


def _check(node: str, status: Any) -> None:
    if status is not None and status.is_bad():
        raise ua.UaError(f"{node}: {status.name}")
