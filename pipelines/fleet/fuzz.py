"""`python -m everline.pipelines.fleet.fuzz`: thousands of hostile requests to a served fleet, over raw sockets.

Nothing may be answered by a 500, no process may die, and none may grow.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil

from ...deploy.server import free_port, start_server, stop_server
from ...methods.errors import EverlineError
from ...platform.actor import start_line
from ...platform.cluster import connect, disconnect
from ...platform.tracking import prepare_tracking
from ..console import json_option, launch, progress, show_table, write_json
from .hostile import Hostile, Maker, is_problem
from .load import pictures_of, publish_two, write_fleet

MIB = 2**20
TIMEOUT_S = 60.0  # for an answer
WAIT_S = 2.0  # ... to what is not a whole request
PAUSE_S = 0.05  # between the pieces of a slow request
LOOKS = 20  # at the memory, in each run
WARM = 0.25  # share of the requests after which memory is compared: caches are full by then
PROCESSES = {"ProxyActor": "proxy", "ServeReplica": "replica", "LineActor": "line"}  # in the names that Ray gives
FIGURES = ("first_mib", "warm_mib", "last_mib", "most_mib")  # of the memory that a process takes
DECLARED = (503, 504, 507)  # what may be told that is not the request's fault; any other from 500 on is a fault


@dataclass
class Found:
    """What came back. answers: by kind, then by status, or by what came in place of one."""

    answers: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@click.command()
@click.option("--requests", type=click.IntRange(40), default=5000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same requests again.")
@click.option("--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="At a time.")
@click.option(
    "--growth-mib", type=click.FloatRange(0), default=64.0, show_default=True,
    help="That a process may take more at the end than after the first quarter.",
)  # fmt: skip
@click.option("--honest", is_flag=True, help="Only honest requests: what the memory does then, to compare.")
@json_option
def fuzz(requests: int, seed: int, clients: int, growth_mib: float, honest: bool, json_file: Path | None) -> None:
    """Send hostile requests to a server of its own: Ray Serve, one line with a real detector, a log and versions.

    Exit status 1 where one was answered by a 500, not at all, or in another shape than ours; where a process died;
    and where one has grown.
    """
    with ExitStack() as stack:
        out = Path(stack.enter_context(TemporaryDirectory(prefix="everline-")))
        fleet = write_fleet(out, 1, ("padim",), (64,))
        (line,) = fleet.lines
        images = pictures_of(fleet, [])[line]
        prepare_tracking(fleet.tracking)
        publish_two(line, fleet, images)
        connect(own=True)
        stack.callback(disconnect)
        handle, _ = start_line(line, fleet)
        port = free_port()
        start_server(fleet, port=port)
        stack.callback(stop_server)
        memory = Memory()
        began = time.monotonic()
        maker = Maker(line, images)
        found = drive(port, maker.good if honest else maker.make, requests, seed, clients, memory.look)
        seconds = time.monotonic() - began
        rows = memory.rows()
        del handle
    result = {
        "requests": requests,
        "seed": seed,
        "clients": clients,
        "honest": honest,
        "seconds": round(seconds, 1),
        "answers": {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.answers.items())},
        "processes": rows,
        "wrong": found.wrong,
    }
    write_json(result, json_file)
    if str(json_file) != "-":
        show(result)
    grown = any(row["last_mib"] - row["warm_mib"] > growth_mib for row in rows)
    if found.wrong or grown or any(row["died"] for row in rows):
        raise SystemExit(1)


def drive(
    port: int,
    make: Callable[[Random], Hostile],
    requests: int,
    seed: int,
    clients: int,
    look: Callable[[float], None] | None = None,
) -> Found:
    """Sends so many requests, each made of the seed and its number. look: called with the share that is done."""
    found = Found()

    def one(number: int) -> None:
        sent = make(Random(f"{seed}-{number}"))  # noqa: S311 - the same again
        status, body = ask(port, sent)
        found.answers.setdefault(sent.kind, Counter())[status] += 1
        if trouble := fault(sent, status, body):
            found.wrong.append(f"{number}, {sent.kind}: {trouble} to {sent.data[:120]!r}")

    with progress() as bars, ThreadPoolExecutor(clients) as pool:
        bar = bars.add_task("requests", total=requests)
        step = max(1, requests // LOOKS)
        for start in range(0, requests, step):
            for future in [pool.submit(one, number) for number in range(start, min(start + step, requests))]:
                future.result()
                bars.advance(bar)
            if look:
                look(min(1.0, (start + step) / requests))
    return found


def ask(port: int, sent: Hostile) -> tuple[str, bytes]:
    """The answer's status and body; in place of a status `gone` for a connection that ended, `silent` for none."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        try:
            size = max(1, -(-len(sent.data) // sent.pieces))
            for start in range(0, len(sent.data), size):
                connection.sendall(sent.data[start : start + size])
                if sent.pieces > 1:
                    time.sleep(PAUSE_S)
            if sent.leaves:
                return "left", b""
            if not sent.whole:  # it may wait for more, which does not come
                connection.settimeout(WAIT_S)
        except OSError:
            pass  # the server has heard enough; its answer may be there
        return _answer(connection)


def _answer(connection: socket.socket) -> tuple[str, bytes]:
    came = b""
    try:
        while part := connection.recv(2**16):
            came += part
            head, end, body = came.partition(b"\r\n\r\n")
            if end and b"text/event-stream" in head:
                return head[9:12].decode("latin-1"), b""
    except TimeoutError:
        return "silent", b""
    except OSError:
        pass
    head, _, body = came.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    return (head[9:12].decode("latin-1"), body) if head.startswith(b"HTTP/1.") else ("gone", came)


def fault(sent: Hostile, status: str, body: bytes) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if sent.whole and status in ("silent", "gone"):
        return f"no answer ({status})"
    if status.isdecimal() and int(status) >= 500 and int(status) not in DECLARED:
        return f"{status}: {body[:200]!r}"
    if sent.kind in ("good", "slow") and status != "200":
        return f"{status}: {body[:200]!r}"
    if sent.whole and int(status) >= 400 and not sent.data.startswith(b"HEAD") and not is_problem(body):
        return f"{status} in another shape: {body[:200]!r}"
    return ""


class Memory:
    """The processes that serve, and what they take; all are below this one, whose Ray cluster it is."""

    def __init__(self) -> None:
        self.seen: dict[psutil.Process, tuple[str, list[tuple[float, float]]]] = {}
        for process in psutil.Process().children(recursive=True):
            title = " ".join(process.cmdline())
            for part, name in PROCESSES.items():
                if title.startswith("ray::") and part in title:
                    self.seen[process] = (name, [])
        if {name for name, _ in self.seen.values()} != set(PROCESSES.values()):
            raise EverlineError(f"not all processes that serve were found, only {self.seen}.")

    def look(self, share: float) -> None:
        """Notes what each takes. share: of the requests that were sent."""
        for process, (_, looks) in self.seen.items():
            if process.is_running():
                looks.append((share, process.memory_info().rss / MIB))

    def rows(self) -> list[dict[str, Any]]:
        """Each process: MiB when it was warm, at the end, and at most."""
        rows = []
        for process, (name, looks) in self.seen.items():
            mib = [round(one, 1) for _, one in looks] or [0.0]
            warm = next((one for (share, _), one in zip(looks, mib, strict=False) if share >= WARM), 0.0)
            figures = dict(zip(FIGURES, (mib[0], warm, mib[-1], max(mib)), strict=True))
            rows.append({"process": name, **figures, "died": not process.is_running(), "mib": mib})
        return sorted(rows, key=lambda row: row["process"])


def show(found: dict[str, Any]) -> None:
    """Tables of it."""
    statuses = sorted({status for counts in found["answers"].values() for status in counts})
    rows = [[kind, *(counts.get(status) for status in statuses)] for kind, counts in found["answers"].items()]
    show_table(f"{found['requests']} requests, seed {found['seed']}, {found['seconds']} s", ["kind", *statuses], rows)
    columns: Sequence[str] = ["process", *FIGURES, "died"]
    show_table("memory", columns, [[row[column] for column in columns] for row in found["processes"]])
    for text in found["wrong"][:20]:
        click.echo(text, err=True)


if __name__ == "__main__":
    launch(fuzz)
