"""The OPC UA door, at a real server that plays the PLC: each part is judged once, through any break."""

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import UserManager
from everline.methods.errors import ConfigError, ImageError, LineDown, LineStopped
from everline.pipelines.fleet import opcua, opcua_file, opcua_link
from everline.pipelines.fleet.opcua import Gateway
from everline.pipelines.fleet.opcua_file import Nodes, Plc, read_plc
from everline.pipelines.fleet.opcua_link import Security
from everline.pipelines.fleet.opcua_link import Server as Address
from everline.pipelines.fleet.station import Station
from everline.platform.images import image_id
from everline.platform.log import LogReader, line_folder

from .test_station import Line

NAMES = ("trigger", "id", "done", "verdict", "reject", "score", "task")
PLAIN = Nodes(**{name: f"ns=2;s={name}" for name in NAMES}, products={"17": "cap", "18": "nut"})  # type: ignore[arg-type]
BARE = Nodes("ns=2;s=trigger", "ns=2;s=verdict")
WAIT_S = 20.0
START = {
    "trigger": ua.Variant(None, ua.VariantType.ByteString),
    "path": ua.Variant(None, ua.VariantType.String),
    "id": ua.Variant(0, ua.VariantType.UInt16),
    "done": ua.Variant(0, ua.VariantType.UInt16),
    "verdict": ua.Variant("", ua.VariantType.String),
    "reject": ua.Variant(False, ua.VariantType.Boolean),
    "score": ua.Variant(0.0, ua.VariantType.Double),
    "task": ua.Variant("", ua.VariantType.String),
    "recipe": ua.Variant(0, ua.VariantType.Int32),
}


class Panel:
    """The PLC: a server on a free port, with the nodes of one line. What stands in them outlives its restarts."""

    async def make(self) -> None:
        """Takes seconds: its address space is large."""
        self.server = Server()
        await self.server.init()
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.endpoint = f"opc.tcp://127.0.0.1:{free.getsockname()[1]}"
        self.server.set_endpoint(self.endpoint)
        index = await self.server.register_namespace("urn:plant")
        assert index == 2
        self.nodes = {}
        for name, value in START.items():
            self.nodes[name] = await self.server.nodes.objects.add_variable(
                ua.NodeId(name, index), f"{index}:{name}", value, varianttype=value.VariantType
            )
            await self.nodes[name].set_writable()

    async def start(self, *policies: ua.SecurityPolicyType) -> None:
        self.server.set_security_policy(list(policies or (ua.SecurityPolicyType.NoSecurity,)))
        await self.server.start()

    async def stop(self) -> None:
        """All sessions are gone."""
        await self.server.bserver.stop()

    async def put(self, name: str, value: Any) -> None:
        await self.nodes[name].write_value(ua.Variant(value, START[name].VariantType))

    async def get(self, name: str) -> Any:
        return await self.nodes[name].read_value()

    async def part(self, number: int, image: Any, node: str = "trigger", wait_s: float = WAIT_S) -> dict[str, Any]:
        """One part, as a PLC does it: the image, then the id; then waits for `done`, then reads the verdict."""
        await self.put(node, image)
        await self.put("id", number)
        await self.done(number, wait_s)
        return json.loads(await self.get("verdict"))

    async def done(self, number: int, wait_s: float = WAIT_S) -> None:
        await until(lambda: self.reads("done", number), wait_s)

    async def reads(self, name: str, value: Any) -> bool:
        return bool(await self.get(name) == value)


async def until(what: Callable[[], Awaitable[bool]], wait_s: float = WAIT_S) -> None:
    async with asyncio.timeout(wait_s):
        while not await what():
            await asyncio.sleep(0.01)


class Running:
    """A gateway at work beside the test, in the test's loop."""

    def __init__(self, panel: Panel, line: Any, nodes: Nodes = PLAIN, password: str = "", **more: Any) -> None:
        plc = Plc(Address(panel.endpoint, **more), {"mono": nodes})
        self._gateway = Gateway(plc, {"mono": Station("mono", line, nodes.products)}, password)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._gateway.work())

    async def __aexit__(self, *_: Any) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


Play = Callable[[Callable[[Panel], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[asyncio.Runner, Panel]]:
    panel = Panel()
    with asyncio.Runner() as runner:
        runner.run(panel.make())
        yield runner, panel
        runner.run(panel.server.stop())


@pytest.fixture
def play(made: tuple[asyncio.Runner, Panel]) -> Play:
    """Plays a story at a server that runs, whose nodes are as in the beginning."""
    runner, panel = made

    def whole(story: Callable[[Panel], Coroutine[Any, Any, None]]) -> None:
        async def all_of_it() -> None:
            for name, value in START.items():
                await panel.nodes[name].write_value(value)
            await panel.start()
            try:
                await story(panel)
            finally:
                await panel.stop()

        runner.run(all_of_it())

    return whole


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcua_link, "BACK_OFF_S", (0.05, 0.05))
    monkeypatch.setattr(opcua_link, "PAUSE_S", 0.05)
    monkeypatch.setattr(opcua, "PAUSE_S", 0.01)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the gateway tells people."""
    heard: list[str] = []
    monkeypatch.setattr(opcua, "_say", heard.append)
    return heard


def calls_of(line: Line) -> list[str]:
    """The ids that a line is asked about from now on, those that come again too."""
    calls: list[str] = []
    inspect = line.inspect

    def counted(data: bytes, id: str) -> dict[str, Any]:
        calls.append(id)
        return inspect(data, id)

    line.inspect = counted  # type: ignore[method-assign]
    return calls


async def has_said(said: list[str], words: str) -> bool:
    return any(words in one for one in said)


def test_a_part_has_its_verdict_and_done_comes_last(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    line, written = Line(), []
    write = opcua.Link.write

    async def watched(self: Any, values: Any) -> None:
        written.append({node[7:] for node in values})
        await write(self, values)

    monkeypatch.setattr(opcua.Link, "write", watched)

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            good = await plc.part(1, b"good")
            assert (good["part"], good["verdict"], good["id"]) == (1, "pass", image_id("1", b"good"))
            assert (await plc.get("reject"), await plc.get("score")) == (False, 0.5)
            assert (await plc.part(2, b"bad"))["verdict"] == "reject"
            assert await plc.get("reject") is True
            broken = await plc.part(3, b"broken")
            assert (broken["part"], broken["verdict"], broken["error"]["code"]) == (3, "error", "bad_image")
            assert await plc.get("reject") is True
            assert math.isnan(await plc.get("score"))
            assert (await plc.part(4, None))["verdict"] == "error"
            await plc.put("id", 0)  # no part
            await plc.part(5, b"good")

    play(story)
    assert line.ids == [image_id("1", b"good"), image_id("2", b"bad"), image_id("5", b"good")]
    assert written == [{"verdict", "reject", "score"}, {"done"}] * 5


def test_a_large_image_comes_whole(play: Play) -> None:
    line, image = Line(), b"good" * 2**20

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            assert (await plc.part(1, image))["verdict"] == "pass"

    play(story)
    assert line.ids == [image_id("1", image)]


def test_equal_images_of_two_parts_are_two_images(play: Play) -> None:
    line = Line()

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            for number in (1, 2):
                assert not (await plc.part(number, b"good"))["duplicate"]

    play(story)
    assert len(line.ids) == 2


def test_a_node_is_found_by_the_uri_of_its_namespace(play: Play) -> None:
    nodes = Nodes(**{name: f"nsu=urn:plant;s={name}" for name in NAMES})  # type: ignore[arg-type]

    async def story(plc: Panel) -> None:
        async with Running(plc, Line(), nodes):
            assert (await plc.part(1, b"good"))["verdict"] == "pass"

    play(story)


def test_an_index_means_the_namespace_that_it_meant_first() -> None:
    known: dict[int, str] = {}
    a, b = "ns=1;s=Part", "ns=2;s=Part"
    first = opcua_link.resolved([a, b], ["ua", "urn:a", "urn:b"], known)
    assert [first[a].NamespaceIndex, first[b].NamespaceIndex] == [1, 2]
    swapped = opcua_link.resolved([a, b, "i=85"], ["ua", "urn:b", "urn:a"], known)
    assert [swapped[name].NamespaceIndex for name in (a, b, "i=85")] == [2, 1, 0]
    with pytest.raises(ua.UaError, match="no namespace urn:a; it has ua, urn:b"):
        opcua_link.resolved([a], ["ua", "urn:b"], known)
    with pytest.raises(ua.UaError, match="no namespace number 7"):
        opcua_link.resolved(["ns=7;s=Part"], ["ua"], known)
    with pytest.raises(ua.UaError, match="are one node"):
        opcua_link.resolved([a, "nsu=urn:a;s=Part"], ["ua", "urn:a"], known)


def test_a_server_that_numbers_its_namespaces_anew_swaps_no_stations(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line()

    async def story(plc: Panel) -> None:
        array = plc.server.get_node(ua.ObjectIds.Server_NamespaceArray)
        before = await array.read_value()
        async with Running(plc, line):
            assert (await plc.part(1, b"good"))["verdict"] == "pass"
            await plc.stop()
            await array.write_value([*before[:2], "urn:another", *before[2:]])
            await plc.put("trigger", b"bad")  # of what is at the old index now
            await plc.put("id", 2)
            await plc.server.start()
            said = ""
            while "namespace 2 was urn:plant and is another one now" not in " ".join(said.split()):
                said += capsys.readouterr().err
                await asyncio.sleep(0.01)
        await array.write_value(before)

    play(story)
    assert line.ids == [image_id("1", b"good")]


def test_a_path_is_read_below_its_folder_only(play: Play, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"good")
    (tmp_path / "secret").write_bytes(b"good")
    line = Line()
    nodes = replace(PLAIN, trigger="ns=2;s=path", folder=tmp_path / "images")

    async def story(plc: Panel) -> None:
        async with Running(plc, line, nodes):
            paths = ["a.png", "../secret", "a.png", "", None, str(tmp_path / "secret")]
            told = [await plc.part(n, path, "path") for n, path in enumerate(paths, 1)]
        assert [one["verdict"] for one in told] == ["pass", "error", "pass", "error", "error", "error"]
        assert "not below" in told[1]["error"]["message"]

    play(story)
    assert line.ids == [image_id("1 a.png", b"good"), image_id("3 a.png", b"good")]


def test_a_code_switches_the_product_before_the_next_image(play: Play) -> None:
    line, order = Line(), []
    inspect, switch = line.inspect, line.switch

    def inspected(data: bytes, id: str) -> dict[str, Any]:
        order.append(id[:1])
        return inspect(data, id)

    def switched(task: str) -> int:
        order.append(task)
        return switch(task)

    line.inspect, line.switch = inspected, switched  # type: ignore[method-assign]

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            await plc.put("task", "17")
            await plc.part(1, b"good")
            await plc.part(2, b"good")
            await plc.put("task", "18")
            await plc.part(3, b"good")
            await plc.put("task", "17")  # without a part, too
            await until(lambda: has_said(line.tasks[2:], "cap"))

    play(story)
    assert order == ["cap", "1", "2", "nut", "3", "cap"]


def test_a_recipe_number_is_a_code(play: Play) -> None:
    line = Line()

    async def story(plc: Panel) -> None:
        async with Running(plc, line, replace(PLAIN, task="ns=2;s=recipe", products={"0": "nut", "17": "cap"})):
            await plc.part(1, b"good")
            await plc.put("recipe", 17)
            await plc.part(2, b"good")

    play(story)
    assert line.tasks == ["nut", "cap"]


def test_of_an_unknown_product_no_image_is_judged(play: Play, said: list[str]) -> None:
    line = Line()

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            await plc.put("task", "99")
            wrong = await plc.part(1, b"good")
            assert (wrong["part"], wrong["verdict"], wrong["error"]["code"]) == (1, "error", "invalid")
            assert "'99'" in wrong["error"]["message"]
            assert await plc.get("reject") is True
            await plc.put("task", "17")
            assert (await plc.part(2, b"good"))["verdict"] == "pass"

    play(story)
    assert len(line.ids) == 1
    assert len([one for one in said if "'99'" in one]) == 1


def test_a_server_that_goes_away_loses_no_verdict_and_no_part_is_judged_twice(play: Play, said: list[str]) -> None:
    line, asked, go, calls = Line(), threading.Event(), threading.Event(), []
    inspect = line.inspect

    def slow(data: bytes, id: str) -> dict[str, Any]:
        calls.append(id)
        asked.set()
        assert go.wait(WAIT_S)
        return inspect(data, id)

    line.inspect = slow  # type: ignore[method-assign]

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            await plc.put("task", "17")
            await plc.put("trigger", b"good")
            await plc.put("id", 1)
            assert await asyncio.to_thread(asked.wait, WAIT_S)
            await plc.stop()
            go.set()
            await until(lambda: has_said(said, "tries again"))
            assert await plc.get("done") == 0
            await plc.start()
            await plc.done(1)
            assert json.loads(await plc.get("verdict"))["verdict"] == "pass"
            assert (await plc.part(2, b"good"))["verdict"] == "pass"

    play(story)
    assert calls == [image_id("1", b"good"), image_id("2", b"good")]
    assert line.tasks == ["cap"]


def test_started_again_it_judges_what_waits_and_nothing_twice(play: Play) -> None:
    line = Line()
    calls = calls_of(line)

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            await plc.part(1, b"good")
            await look_again(plc)
        await plc.put("trigger", b"bad")
        await plc.put("id", 2)
        async with Running(plc, line):
            await plc.done(2)
        async with Running(plc, line):
            await look_again(plc)
            await plc.part(3, b"good")

    async def look_again(plc: Panel) -> None:
        """Two codes, one after the other: between them the gateway has looked for parts."""
        for code, task in (("17", "cap"), ("18", "nut")):
            await plc.put("task", code)
            await until(lambda task=task: has_said(line.tasks[-1:], task))  # type: ignore[misc]

    play(story)
    assert [one[0] for one in calls] == ["1", "2", "3"]


def test_a_line_that_is_down_is_waited_for(play: Play, said: list[str]) -> None:
    line = Line()
    line.plan = [LineDown("down"), LineStopped("it kept dying"), LineStopped("it kept dying")]

    async def story(plc: Panel) -> None:
        async with Running(plc, line):
            assert (await plc.part(1, b"good"))["verdict"] == "pass"

    play(story)
    assert [one for one in said if "waiting" in one] == ["waiting: down", "waiting: it kept dying"]


def test_a_slow_line_does_not_hold_another(play: Play) -> None:
    slow, quick, go = Line(), Line(), threading.Event()

    def held(data: bytes, id: str) -> dict[str, Any]:
        assert go.wait(WAIT_S)
        raise ImageError("late")

    slow.inspect = held  # type: ignore[method-assign]

    async def story(plc: Panel) -> None:
        other = Nodes("ns=2;s=path", "ns=2;s=task", folder=Path("/"))
        stations = {"mono": Station("mono", quick), "slow": Station("slow", slow)}
        gateway = Gateway(
            Plc(Address(plc.endpoint), {"slow": other, "mono": replace(PLAIN, task="", products=None)}), stations
        )
        await plc.put("path", "etc/hostname")
        task = asyncio.create_task(gateway.work())
        assert (await plc.part(1, b"good"))["verdict"] == "pass"
        assert await plc.get("task") == ""
        go.set()
        await until(lambda: has_said_error(plc))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def has_said_error(plc: Panel) -> bool:
        return "late" in await plc.get("task")

    play(story)


def test_without_an_id_each_change_of_the_image_is_a_part(play: Play, said: list[str]) -> None:
    line = Line()

    async def story(plc: Panel) -> None:
        async with Running(plc, line, BARE):
            await until(lambda: has_said(said, "connected"))
            for image in (b"good 1", b"bad 2", b"good 3"):
                await plc.put("trigger", image)
            await until(lambda: judged(3))
            await plc.put("trigger", None)
            await plc.stop()
            await plc.start()
            await plc.put("trigger", b"good 4")
            await until(lambda: judged(4))

    async def judged(count: int) -> bool:
        return len(line.ids) == count

    play(story)
    assert line.ids == [image_id("", data) for data in (b"good 1", b"bad 2", b"good 3", b"good 4")]


def test_without_an_id_what_stands_there_after_a_break_is_no_new_part(play: Play, said: list[str]) -> None:
    line = Line()
    calls = calls_of(line)

    async def has_answer(plc: Panel, verdict: str) -> bool:
        return verdict in await plc.get("verdict")

    async def story(plc: Panel) -> None:
        async with Running(plc, line, BARE):
            await plc.put("trigger", b"good")
            await until(lambda: has_answer(plc, "pass"))
            await plc.stop()
            await until(lambda: has_said(said, "tries again"))
            await plc.start()
            await until(lambda: has_said(said[2:], "connected"))
            await plc.put("trigger", b"bad")
            await until(lambda: has_answer(plc, "reject"))

    play(story)
    assert calls == [image_id("", b"good"), image_id("", b"bad")]


def test_more_images_without_an_id_than_may_wait_are_dropped_and_told(
    play: Play, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua, "HELD", 2)
    line, go = Line(), threading.Event()
    inspect = line.inspect

    def slow(data: bytes, id: str) -> dict[str, Any]:
        assert go.wait(WAIT_S)
        return inspect(data, id)

    line.inspect = slow  # type: ignore[method-assign]

    async def story(plc: Panel) -> None:
        async with Running(plc, line, BARE):
            await until(lambda: has_said(said, "connected"))
            for number in range(8):
                await plc.put("trigger", b"good %d" % number)
            await until(lambda: has_said(said, "dropped"))
            go.set()

    play(story)


def test_a_node_that_is_not_there_is_named_and_waited_for(play: Play, said: list[str]) -> None:
    async def story(plc: Panel) -> None:
        async with Running(plc, Line(), replace(PLAIN, verdict="ns=2;s=verdikt")):
            await until(lambda: has_said(said, "ns=2;s=verdikt: BadNodeIdUnknown"))
        assert not any("connected" in one for one in said)

    play(story)


def test_a_node_of_another_type_is_named_and_nothing_is_done(play: Play, said: list[str]) -> None:
    async def story(plc: Panel) -> None:
        async with Running(plc, Line(), replace(PLAIN, reject="", verdict="ns=2;s=recipe")):
            await plc.put("trigger", b"good")
            await plc.put("id", 1)
            await until(lambda: has_said(said, "ns=2;s=recipe: BadTypeMismatch"))
            assert await plc.get("done") == 0

    play(story)


class Users(UserManager):
    """Let one in."""

    def get_user(
        self, iserver: Any, username: Any = None, password: Any = None, certificate: Any = None
    ) -> User | None:
        return User(UserRole.Admin) if (username, password) == ("everline", "se:cr@t") else None


def certificate(folder: Path, name: str, uri: str) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -addext extendedKeyUsage=clientAuth,serverAuth"
    names = f"subjectAltName=URI:{uri},DNS:{socket.gethostname()}"
    files = ["-keyout", folder / f"{name}.key.pem", "-out", folder / f"{name}.pem"]
    command = ["openssl", *words.split(), "-subj", f"/CN={name}", "-addext", names, *files]
    subprocess.run(command, check=True, capture_output=True)


def test_certificates_and_a_password(
    play: Play, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, uri in (("plc", "urn:freeopcua:python:server"), ("us", "urn:everline"), ("thief", "urn:everline")):
        certificate(tmp_path, name, uri)
    line = Line()
    monkeypatch.setattr(opcua_link, "TIMEOUT_S", 3.0)

    def files(server: str) -> Security:
        return Security(tmp_path / "us.pem", tmp_path / "us.key.pem", tmp_path / f"{server}.pem")

    async def story(plc: Panel) -> None:
        await plc.stop()
        monkeypatch.setattr(plc.server.iserver, "user_manager", Users())
        await plc.server.load_certificate(tmp_path / "plc.pem")
        await plc.server.load_private_key(tmp_path / "plc.key.pem")
        await plc.start(ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt)
        right = Running(plc, line, user="everline", password="se:cr@t", security=files("plc"))
        async with right:
            assert (await plc.part(1, b"good"))["verdict"] == "pass"
        for wrong in (
            {"password": "no", "user": "everline", "security": files("plc")},
            {"password": "se:cr@t", "user": "everline", "security": files("thief")},
        ):
            said.clear()
            async with Running(plc, line, **wrong):  # type: ignore[arg-type]
                await until(lambda: has_said(said, "tries again"))
                assert not await has_said(said, "connected")
        with pytest.raises(ConfigError, match=r"nobody\.pem"):
            await Gateway(Plc(Address(plc.endpoint, security=files("nobody")), {}), {}).work()

    play(story)


def written(folder: Path, more: str = "", nodes: str = "trigger: ns=2;i=1, verdict: ns=2;s=b") -> Path:
    first = "" if "endpoint" in more else "endpoint: opc.tcp://plc.plant:4840/x"
    (folder / "plc.yaml").write_text(f"{first}\n{more}\nlines:\n  mono: {{{nodes}}}\n")
    return folder / "plc.yaml"


def test_a_file_is_read_relative_to_itself(tmp_path: Path) -> None:
    nodes = 'trigger: \'ns=2;s="DB"."image"\', id: ns=2;i=2, done: ns=2;i=3, reject: ns=2;i=4, folder: images'
    more = "user: us\nsecurity: {certificate: us.der, key: us.pem, server: plc.der}"
    plc = read_plc(written(tmp_path, more, nodes + ", products: {'017': cap}"))
    assert plc.server.endpoint == "opc.tcp://plc.plant:4840/x"
    assert plc.server.security == Security(tmp_path / "us.der", tmp_path / "us.pem", tmp_path / "plc.der")
    assert plc.lines["mono"].folder == tmp_path / "images"
    assert plc.lines["mono"].products == {"017": "cap"}
    assert read_plc(written(tmp_path, "endpoint: 'opc.tcp://[::1]'")).server.endpoint == "opc.tcp://[::1]:4840"


def test_the_files_that_are_shown_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text("utf-8")
    (shown,) = re.findall(r"```text\n(endpoint: .*?)```", text, re.DOTALL)
    for one in (shown, opcua_file.SAMPLE):
        (tmp_path / "plc.yaml").write_text(one)
        assert read_plc(tmp_path / "plc.yaml").lines["mono"].trigger.startswith("ns=3;s=")


@pytest.mark.parametrize(
    ("more", "nodes", "why"),
    [
        ("endpont: 1", "trigger: ns=2;i=1, verdict: ns=2;i=2", "did you mean endpoint"),
        ("endpoint: http://plc", "trigger: ns=2;i=1, verdict: ns=2;i=2", "opc.tcp://HOST"),
        ("endpoint: opc.tcp://me:secret@plc", "trigger: ns=2;i=1, verdict: ns=2;i=2", "without user"),
        ("endpoint: opc.tcp://plc:x", "trigger: ns=2;i=1, verdict: ns=2;i=2", "opc.tcp://HOST"),
        ("user: me", "trigger: ns=2;i=1, verdict: ns=2;i=2", "encrypted only"),
        ("security: {certificate: a}", "trigger: ns=2;i=1, verdict: ns=2;i=2", "key is needed"),
        ("", "trigger: ns=2;i=1, verdct: ns=2;i=2", "did you mean verdict"),
        ("", "verdict: ns=2;i=2", "trigger is needed"),
        ("", "trigger: ns=2;i=1", "needed for the answer"),
        ("", "trigger: image, verdict: ns=2;i=2", "no node's id"),
        ("", "trigger: 'svr=1;nsu=urn:plant;s=a', verdict: ns=2;i=2", "one of this server"),
        ("", "trigger: 'nsu=urn:plant;srv=1;s=a', verdict: ns=2;i=2", "one of this server"),
        ("", "trigger: 'ns=1;nsu=urn:plant;s=a', verdict: ns=2;i=2", "one of this server"),
        ("", "trigger: 'nsu=;s=a', verdict: ns=2;i=2", "one of this server"),
        ("", "trigger: ns=2;i=1, verdict: ns=2;i=1", "one purpose"),
        ("", "trigger: ns=2;i=1, verdict: ns=2;i=2, task: ns=2;i=2", "writes to no"),
        ("", "trigger: ns=2;i=1, verdict: ns=2;i=2, id: ns=2;i=3", "go together"),
        ("", "trigger: ns=2;i=1, verdict: ns=2;i=2, reject: ns=2;i=3", "do not say of which part"),
        ("", "trigger: ns=2;i=1, verdict: ns=2;i=2, products: {017: cap}", "name must be text"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, more: str, nodes: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        read_plc(written(tmp_path, more, nodes))


FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""
FILE = """\
endpoint: ENDPOINT
lines:
  mono:
    {trigger: ns=2;s=trigger, id: ns=2;s=id, done: ns=2;s=done, verdict: ns=2;s=verdict, reject: ns=2;s=reject,
     score: ns=2;s=score, task: ns=2;s=task, products: {"17": cap, "18": nut}}
"""


@pytest.mark.slow
def test_from_the_command_line_to_the_log_until_ctrl_c_and_again(
    play: Play, tmp_path: Path, parts: list[bytes], ray_session: str, tracking_uri: str
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from everline.pipelines.main import main; main()"

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, "opcua", "plc.yaml"),
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": ray_session},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    async def end(process: asyncio.subprocess.Process, by: signal.Signals) -> None:
        process.send_signal(by)
        _, err = await asyncio.wait_for(process.communicate(), 280)
        assert process.returncode == 130, err.decode()
        assert b"Traceback" not in err

    async def story(plc: Panel) -> None:
        started: list[asyncio.subprocess.Process] = []
        try:
            await shifts(plc, started)
        finally:
            for process in started:
                if process.returncode is None:
                    process.kill()
                    print((await process.communicate())[1].decode())  # noqa: T201 - why it did not end

    async def shifts(plc: Panel, started: list[asyncio.subprocess.Process]) -> None:
        (tmp_path / "plc.yaml").write_text(FILE.replace("ENDPOINT", plc.endpoint))
        await plc.put("task", "17")
        await plc.put("trigger", parts[0])
        await plc.put("id", 1)
        first = await start()
        started.append(first)
        await plc.done(1, 280)
        told = json.loads(await plc.get("verdict"))
        assert (told["part"], told["line"], told["verdict"]) == (1, "mono", "learning")
        assert await plc.get("reject") is False
        assert (await plc.part(2, b"no image", wait_s=280))["verdict"] == "error"
        await plc.part(3, parts[1], wait_s=280)
        await end(first, signal.SIGINT)
        await plc.put("trigger", parts[1])
        await plc.put("id", 4)
        again = await start()
        started.append(again)
        await plc.done(4, 280)
        await plc.put("task", "18")
        await plc.part(5, parts[2], wait_s=280)
        await end(again, signal.SIGTERM)

    play(story)
    records = list(LogReader(line_folder(tmp_path / "store", "mono")).records())
    seen = [(one.id.split(":")[0], one.task) for one in records if one.kind == "image"]
    assert seen == [("1", "cap"), ("3", "cap"), ("4", "cap"), ("5", "nut")]
    assert len([one for one in records if one.kind == "task"]) == 2
