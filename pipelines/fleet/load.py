"""`everline load`: many lines under load over HTTP while versions are promoted and rolled back; nothing may fail."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import yaml
from PIL import Image

from ...deploy.server import free_port, start_server, stop_server
from ...methods.conformance import images as made_images
from ...methods.errors import EverlineError
from ...methods.registry import build
from ...platform.actor import answer, start_line
from ...platform.calibration import Calibration
from ...platform.cluster import connect, disconnect
from ...platform.images import decode
from ...platform.line import Scorer, embed_image
from ...platform.settings import Fleet, read_fleet
from ...platform.threads import threads
from ...platform.tracking import prepare_tracking
from ...platform.versions import Versions
from ..console import ERR, json_option, show_table, write_json
from ..data.datasets import list_images
from ..files import FilePath
from ..options import ManyValues
from .client import Client

METHODS = ("coreset", "padim", "subspace", "lemo")
SIZES = (224, 128, 64)
PHASES = ("before", "during", "after")
IMAGES = 24  # of each line, sent over and over; half of them teach its first version, all its second
PATIENCE_S = 30.0  # for a version to be served


@dataclass
class Sent:
    """What became of the requests of one phase."""

    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass
class Moves:
    """What became of promotions and roll backs. `stale`: answers that named another version after a roll back."""

    promoted_s: list[float] = field(default_factory=list)  # from the request to the first answer that names it
    rolled_back_s: list[float] = field(default_factory=list)
    stale: int = 0
    checked: int = 0  # answers that were looked at for it


@click.command(cls=ManyValues)
@click.option("--data", "folders", multiple=True, type=FilePath(), metavar="DIR...",
    help="Folders of images to send; made-up ones without it.",
)  # fmt: skip
@click.option("--lines", "count_", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True, help="Of the lines, in turn.")
@click.option("--size", "sizes", multiple=True, type=int, default=SIZES, show_default=True, help="Likewise, pixels.")
@click.option(
    "--clients", type=click.IntRange(1, 256), default=4, show_default=True, help="Each waits for its answer."
)
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=20.0, show_default=True, help="Of each phase, at least."
)
@click.option("--replicas", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where lines and server compute: cpu, cuda, ...")
@json_option
def load(
    folders: tuple[Path, ...],
    count_: int,
    methods: tuple[str, ...],
    sizes: tuple[int, ...],
    clients: int,
    seconds: float,
    replicas: int,
    device: str,
    json_file: Path | None,
) -> None:
    """Hold load on many lines over HTTP; promote and roll back versions meanwhile; count what failed.

    Three phases: before, during (every line gets another version and is rolled back, again and again), after. Each
    client waits for its answer. Then the same versions judge the same images in a bare loop: latency and throughput
    are given as ratios to it, too. Lines and server are its own, in a folder that goes with them. Exit status 1 where
    a request failed, or an answer after a roll back named another version.
    """
    with ExitStack() as stack:
        out = Path(stack.enter_context(TemporaryDirectory(prefix="everline-")))
        fleet = write_fleet(out, count_, methods, sizes, device)
        pictures = pictures_of(fleet, [path for folder in folders for path in list_images(folder)])
        prepare_tracking(fleet.tracking)
        ERR.print(f"[dim]{count_} lines learn and start ...[/dim]")
        numbers = {name: publish_two(name, fleet, pictures[name]) for name in fleet.lines}
        connect(own=True)
        stack.callback(disconnect)
        kept = [start_line(name, fleet)[0] for name in fleet.lines]  # a line lives as long as its handle
        handles = dict(zip(fleet.lines, kept, strict=True))
        for name, (first, _) in numbers.items():
            answer(handles[name].rollback.remote(first))
        port = free_port()
        start_server(fleet, port=port, replicas=replicas)
        stack.callback(stop_server)
        phases, moves = drive(fleet, pictures, numbers, handles, port, clients, seconds, replicas)
        bare = bare_loop(fleet, pictures, numbers)
        with closing(Client(port=port)) as client:
            served = client.get("/health")["lines"]
    found = {
        "lines": {n: {"method": s.method, "size": build(s.method, **s.params).size} for n, s in fleet.lines.items()},
        "clients": clients,
        "replicas": replicas,
        "device": device,
        "phases": {name: summary(sent, bare) for name, sent in phases.items()},
        "bare_loop": {"p50_ms": _percentile(bare, 50), "p99_ms": _percentile(bare, 99), "per_s": _rate(bare)},
        "promotions": len(moves.promoted_s),
        "promoted_s_median": _percentile(moves.promoted_s, 50),
        "promoted_s_most": round(max(moves.promoted_s, default=0.0), 3),
        "rollbacks": len(moves.rolled_back_s),
        "rolled_back_s_median": _percentile(moves.rolled_back_s, 50),
        "rolled_back_s_most": round(max(moves.rolled_back_s, default=0.0), 3),
        "checked_after_rollback": moves.checked,
        "stale_after_rollback": moves.stale,
        "served": {name: line["version"] for name, line in served.items()},
        "failures": sorted({text for sent in phases.values() for text in sent.failed})[:10],
    }
    write_json(found, json_file)
    if str(json_file) != "-":
        show(found)
    if moves.stale or any(sent.failed for sent in phases.values()):
        raise SystemExit(1)


def write_fleet(out: Path, lines: int, methods: Sequence[str], sizes: Sequence[int], device: str = "cpu") -> Fleet:
    """A fleet in a folder of its own: methods and sizes in turn. On a GPU the lines reserve half of one together."""
    where = {} if device == "cpu" else {"device": device, "gpus": round(0.5 / lines, 3)}
    turns = zip(range(lines), cycle(methods), cycle(sizes), strict=False)
    plain = {
        "store": "store",
        "tracking": "sqlite:///mlflow.db",
        "lines": {f"line{n}": {"method": method, "params": {"size": size}, **where} for n, method, size in turns},
    }
    (out / "fleet.yaml").write_text(yaml.safe_dump(plain), "utf-8")
    return read_fleet(out / "fleet.yaml")


def pictures_of(fleet: Fleet, files: Sequence[Path]) -> dict[str, list[bytes]]:
    """What each line is sent: files in turn, or made-up parts, twice as large as the line's detector takes them."""
    found, turn = {}, cycle(files)
    for n, (name, settings) in enumerate(fleet.lines.items()):
        side = 2 * build(settings.method, **settings.params).size
        if files:
            found[name] = [next(turn).read_bytes() for _ in range(IMAGES)]
            decode(found[name][0])  # says at once what is no image
        else:
            found[name] = [_png(one.permute(1, 2, 0).numpy(), side) for one in made_images(IMAGES, seed=n)]
    return found


def publish_two(name: str, fleet: Fleet, pictures: Sequence[bytes]) -> tuple[int, int]:
    """Two versions of a line, as another learner made them: one of half the images, one of all."""
    settings, versions, numbers = fleet.line(name), Versions(fleet.tracking, name), []
    detector = build(settings.method, **settings.params, device=settings.device)
    with threads(settings.threads):
        for n, data in enumerate(pictures, 1):
            detector.learn(embed_image(detector, data))
            if n in (len(pictures) // 2, len(pictures)):
                scores = [float(detector.score(embed_image(detector, one)).image[0]) for one in pictures]
                calibration = Calibration.of(scores, settings.false_reject_rate)
                numbers.append(versions.publish(detector.state(), calibration, watermark=-1, key=f"load-{n}"))
    return numbers[0], numbers[1]


def drive(
    fleet: Fleet,
    pictures: dict[str, list[bytes]],
    numbers: dict[str, tuple[int, int]],
    handles: dict[str, Any],
    port: int,
    clients: int,
    seconds: float,
    replicas: int,
    token: str = "",
) -> tuple[dict[str, Sent], Moves]:
    """Load without a pause through all phases; in the middle one, versions move. token: that may change them."""
    phases, moves = {name: Sent() for name in PHASES}, Moves()
    now, stop, lock = PHASES[0], threading.Event(), threading.Lock()
    jobs = _jobs(pictures)

    def one() -> None:
        client = Client(port=port)
        while not stop.is_set():
            with lock:
                line, data = next(jobs)
            phase, began = phases[now], time.perf_counter()
            try:
                client.inspect(line, data, learn=False)
                phase.latency_ms.append((time.perf_counter() - began) * 1000)
            except (EverlineError, OSError, HTTPException, ValueError) as error:
                phase.failed.append(f"{line}: {type(error).__name__}: {error}"[:200])
                client.close()
        client.close()

    with ThreadPoolExecutor(clients) as pool:
        workers = [pool.submit(one) for _ in range(clients)]
        try:
            for now in PHASES:
                ERR.print(f"[dim]{now} ...[/dim]")
                began = time.perf_counter()
                if now == "during":
                    while time.perf_counter() - began < seconds:
                        for line in fleet.lines:
                            move(
                                line,
                                numbers[line],
                                handles[line],
                                Client(port=port, token=token),
                                pictures[line][0],
                                moves,
                                replicas,
                            )
                else:
                    time.sleep(seconds)
                phases[now].seconds = time.perf_counter() - began
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    return phases, moves


def move(
    line: str, numbers: tuple[int, int], handle: Any, client: Client, data: bytes, moves: Moves, replicas: int
) -> None:
    """The line's second version becomes current by a promotion, then the first again by a roll back over HTTP.

    With one replica, all answers behind the roll back's must name its version; others hear of it at their next look.
    """
    first, second = numbers

    def served() -> Any:
        return client.inspect(line, data, learn=False)["version"]

    began = time.perf_counter()
    answer(handle.promote.remote(second, first))
    _until(lambda: served() == second)
    moves.promoted_s.append(time.perf_counter() - began)
    began = time.perf_counter()
    client.rollback(line, first)
    if replicas > 1:
        _until(lambda: served() == first)
    found = served()
    moves.rolled_back_s.append(time.perf_counter() - began)
    for version in (found, served(), served()):
        moves.checked += 1
        moves.stale += replicas == 1 and version != first
    client.close()


def bare_loop(fleet: Fleet, pictures: dict[str, list[bytes]], numbers: dict[str, tuple[int, int]]) -> list[float]:
    """Milliseconds of each image: decoded, embedded and judged here, one after the other, by the same versions."""
    scorers = {
        name: Scorer(first, *Versions(fleet.tracking, name).load(first), fleet.line(name).device)
        for name, (first, _) in numbers.items()
    }
    found = []
    for turn, data in enumerate(zip(*pictures.values(), strict=True)):
        for (name, scorer), one in zip(scorers.items(), data, strict=True):
            with threads(fleet.line(name).threads):
                began = time.perf_counter()
                scorer.judge(embed_image(scorer.detector, one))
                found += [(time.perf_counter() - began) * 1000] if turn else []  # the first also makes what is kept
    return found


def summary(sent: Sent, bare: list[float]) -> dict[str, Any]:
    """A phase in figures; ratios to the bare loop, whose images do not wait for each other."""
    per_s = len(sent.latency_ms) / sent.seconds
    return {
        "requests": len(sent.latency_ms) + len(sent.failed),
        "failed": len(sent.failed),
        "p50_ms": _percentile(sent.latency_ms, 50),
        "p99_ms": _percentile(sent.latency_ms, 99),
        "per_s": round(per_s, 1),
        "p50_ratio": round(_percentile(sent.latency_ms, 50) / _percentile(bare, 50), 2),
        "per_s_ratio": round(per_s / _rate(bare), 2),
    }


def show(found: dict[str, Any]) -> None:
    """Tables of it."""
    columns = ["requests", "failed", "p50_ms", "p99_ms", "per_s", "p50_ratio", "per_s_ratio"]
    rows = [[name, *(phase[c] for c in columns)] for name, phase in found["phases"].items()]
    bare = found["bare_loop"]
    rows.append(["bare loop", None, None, bare["p50_ms"], bare["p99_ms"], bare["per_s"], 1.0, 1.0])
    title = f"{len(found['lines'])} lines, {found['clients']} clients (ratios: to the bare loop)"
    show_table(title, ["phase", *columns], rows)
    rows = [
        [what, found[what], found[f"{one}_s_median"], found[f"{one}_s_most"]]
        for what, one in (("promotions", "promoted"), ("rollbacks", "rolled_back"))
    ]
    show_table("until an answer names the other version", ["", "how many", "median, s", "most, s"], rows)
    for text in found["failures"]:
        ERR.print(text, markup=False)


def _jobs(pictures: dict[str, list[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Line and image, line by line; each time as another image, by a few bytes behind its end."""
    for turn in count():
        for name, own in pictures.items():
            yield name, own[turn % len(own)] + turn.to_bytes(8, "big")


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise EverlineError(f"a version was not served within {PATIENCE_S:g} s.")


def _png(pixels: np.ndarray, side: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(out, "png")
    return out.getvalue()


def _percentile(values: Sequence[float], at: int) -> float:
    return round(float(np.percentile(values, at)), 2) if values else float("nan")


def _rate(values: Sequence[float]) -> float:
    return round(1000 * len(values) / sum(values), 1)
