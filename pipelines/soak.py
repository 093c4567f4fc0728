"""`python -m everline.pipelines.soak`: many images, many kills, a store that is slow; nothing lost, nothing twice."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import psutil
import ray
import yaml

from ..methods.errors import StoreDown
from ..platform.actor import answer, insist, line_handle, start_line
from ..platform.cluster import connect, disconnect
from ..platform.fold import Fold
from ..platform.line import embed_image
from ..platform.log import LogReader, line_folder, verify
from ..platform.reach import Reach
from ..platform.settings import Fleet, LineSettings, read_fleet
from ..platform.statefiles import digest
from ..platform.tracking import prepare_tracking
from .console import ERR, json_option, launch, progress, show_table, write_json
from .data.datasets import list_images
from .files import FilePath
from .fleet.slow_store import Weather, bucket_of_its_own
from .fleet.undisturbed import undisturbed
from .options import ManyValues, gather, set_option

MIB = 2**20
RSS_EVERY = 50  # images of a line between two looks at its memory
SPELLS = 2  # times that the store is slow, at a third and at two thirds


@dataclass
class Run:
    """A line, what it is sent, and what was seen of it."""

    name: str
    files: Sequence[Path]
    first: int
    count: int
    rss: list[tuple[int, float]] = field(default_factory=list)  # images, MiB
    kills: int = 0
    back_s: list[float] = field(default_factory=list)  # from a kill to the next answer
    refused: int = 0

    def images(self) -> Iterator[tuple[bytes, str]]:
        """Files over and over, each time as another image."""
        for n in range(self.count):
            path = self.files[(self.first + n) % len(self.files)]
            yield path.read_bytes(), f"{n:07d}-{path.name}"[:200]


@click.command(cls=ManyValues)
@click.option("--data", "folders", multiple=True, required=True, type=FilePath(), metavar="DIR...",
    help="Folders of images, sent over and over.",
)  # fmt: skip
@click.option("--images", type=click.IntRange(20), default=20_000, show_default=True, help="Of all lines together.")
@click.option("--lines", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--kill-every", type=click.IntRange(5), default=500, show_default=True, help="Images of all lines.")
@click.option("--method", default="coreset", show_default=True)
@set_option
@click.option("--s3", is_flag=True, help="Keep the logs in an S3 server of its own (moto), which is slow twice.")
@click.option("--slow-s", type=click.FloatRange(0), default=20.0, show_default=True, help="Seconds of each such time.")
@json_option
def soak(
    folders: tuple[Path, ...],
    images: int,
    lines: int,
    kill_every: int,
    method: str,
    settings: tuple[str, ...],
    s3: bool,
    slow_s: float,
    json_file: Path | None,
) -> None:
    """Send images to lines whose processes are killed all the time, and count what became of them.

    Exit status 1 where an image was lost or learned twice, a log is damaged, or a line's state is not that of one
    that was left alone.
    """
    files = [path for folder in folders for path in list_images(folder)]
    with ExitStack() as stack:
        out = Path(stack.enter_context(TemporaryDirectory(prefix="everline-")))
        weather = Weather(slow_s)
        store = stack.enter_context(bucket_of_its_own(weather)) if s3 else "store"
        fleet = write_fleet(out, store, [f"line{n}" for n in range(lines)], method, gather(settings, {}))
        runs = [Run(name, files, n * len(files) // lines, images // lines) for n, name in enumerate(fleet.lines)]
        prepare_tracking(fleet.tracking)
        connect(own=True)  # it will kill processes
        stack.callback(disconnect)
        start = time.monotonic()
        kept = drive(runs, fleet, kill_every, weather)
        seconds = time.monotonic() - start
        rows = account_all(runs, fleet, out)
        del kept
    found = {
        "images": sum(run.count for run in runs),
        "seconds": round(seconds, 1),
        "store": "s3" if s3 else "disk",
        "slow_spells": weather.spells,
        "slowed_requests": weather.slowed,
        "lines": rows,
    }
    write_json(found, json_file)
    if str(json_file) != "-":
        shown = ["line", "sent", "kills", "refused", "lost", "learned_twice", "same_as_its_log", "same_as_undisturbed"]
        show_table(f"{found['images']} images in {seconds:.0f} s", shown, [[row[n] for n in shown] for row in rows])
        measured = [
            "line",
            "back_s_median",
            "back_s_most",
            "rss_mib_most_before",
            "rss_mib_most_after",
            "rss_mib_per_1000",
        ]
        show_table("coming back, and memory", measured, [[row[n] for n in measured] for row in rows])
    if not all(row["ok"] for row in rows):
        raise SystemExit(1)


def write_fleet(out: Path, store: str, names: Sequence[str], method: str, params: dict[str, Any]) -> Fleet:
    """A fleet of like lines in a folder of its own."""
    line = {"method": method, "publish_every": 500, "params": params}
    plain = {"store": store, "tracking": "sqlite:///mlflow.db", "lines": dict.fromkeys(names, line)}
    (out / "fleet.yaml").write_text(yaml.safe_dump(plain), "utf-8")
    return read_fleet(out / "fleet.yaml")


def drive(runs: Sequence[Run], fleet: Fleet, kill_every: int, weather: Weather) -> Any:
    """Sends everything, each line from a thread of its own; kills in turns. Returns what the lines live by."""
    total, sent, lock = sum(run.count for run in runs), 0, threading.Lock()
    slow = {total * (n + 1) // (SPELLS + 1) for n in range(SPELLS)}
    kept = [start_line(run.name, fleet) for run in runs]  # a line lives as long as its handle
    with progress() as bars, ThreadPoolExecutor(len(runs)) as pool:

        def one(run: Run, bar: Any) -> None:
            nonlocal sent
            reach = Reach(partial(line_handle, run.name, fleet.store), patience_s=300)
            pid, killed_at = watched(run, fleet, 0), 0.0
            for n, (data, id) in enumerate(run.images(), 1):
                run.refused += until_recorded(reach, data, id)
                if killed_at:
                    run.back_s.append(time.monotonic() - killed_at)
                    pid, killed_at = watched(run, fleet, n), 0.0
                elif n % RSS_EVERY == 0:
                    pid = watched(run, fleet, n)
                bars.advance(bar)
                with lock:
                    sent += 1
                    doomed, spell = sent % kill_every == 0, sent in slow
                if spell:
                    weather.begin()
                if doomed:
                    run.kills += 1
                    killed_at = time.monotonic()
                    threading.Timer(0.01, os.kill, (pid, signal.SIGKILL)).start()  # in the middle of the next image

        asked = [pool.submit(one, run, bars.add_task(run.name, total=run.count)) for run in runs]
        for future in asked:
            future.result()
    return kept


def until_recorded(reach: Reach, data: bytes, id: str) -> int:
    """Sends an image again while the store is away, as a camera would; how often it was refused."""
    refused = 0
    while True:
        try:
            reach.inspect(data, id)
            return refused
        except StoreDown:
            refused += 1


def watched(run: Run, fleet: Fleet, images: int) -> int:
    """Notes the memory of the line's process; returns which one it is."""
    pid = int(insist(line_handle(run.name, fleet.store).status.remote)["pid"])
    run.rss.append((images, psutil.Process(pid).memory_info().rss / MIB))
    return pid


def account_all(runs: Sequence[Run], fleet: Fleet, out: Path) -> list[dict[str, Any]]:
    """What logs and lines say of what was sent, and what lines say that were left alone."""
    rows = []
    for run in runs:
        handle = line_handle(run.name, fleet.store)
        state, status = insist(handle.digest.remote), insist(handle.status.remote)
        answer(handle.close.remote())
        ray.kill(handle)
        rows.append(account(run, fleet, state, status))
    ERR.print("the same images again, undisturbed ...")
    alone = [_alone.remote(run, fleet.line(run.name), out / "undisturbed") for run in runs]
    for row, other in zip(rows, ray.get(alone), strict=True):
        row["same_as_undisturbed"] = row["digest"] == other
        clean = not row["lost"] and not row["learned_twice"] and row["log_ok"] and row["same_as_its_log"]
        row["ok"] = clean and row["same_as_undisturbed"]
    return rows


def account(run: Run, fleet: Fleet, state: str, status: dict[str, Any]) -> dict[str, Any]:
    """One line: every image that was sent is in its log once, and its state is the fold over that log."""
    folder = line_folder(fleet.store, run.name)
    reader = LogReader(folder)
    logged = [record for record in reader.records(images=False) if record.kind == "image"]
    admitted, ids = sum(bool(record.admitted) for record in logged), [record.id for record in logged]
    sent = {id for _, id in run.images()}
    memory = np.array(run.rss)
    later = memory[memory[:, 0] >= run.count / 5]  # without what is allocated once
    return {
        "line": run.name,
        "sent": run.count,
        "kills": run.kills,
        "refused": run.refused,
        "lost": len(sent - set(ids)) + max(0, admitted - status["images_learned"]),
        "learned_twice": len(ids) - len(set(ids)) + max(0, status["images_learned"] - admitted),
        "versions": status["published"],
        "log_ok": verify(folder).ok,
        "digest": state,
        "same_as_its_log": folded(reader, fleet.line(run.name)) == state,
        "back_s_median": round(float(np.median(run.back_s)), 2) if run.back_s else None,
        "back_s_most": round(max(run.back_s), 2) if run.back_s else None,
        "rss_mib_most_before": most(memory[: len(memory) // 2]),  # in the first half
        "rss_mib_most_after": most(memory[len(memory) // 2 :]),
        "rss_mib_per_1000": slope(later),
        "rss_mib": [[images, round(mib, 1)] for images, mib in run.rss],
    }


def slope(memory: np.ndarray) -> float | None:
    """MiB in 1000 images, by least squares; None for fewer than three looks (N, 2)."""
    images, mib = memory.T
    return None if len(set(images)) < 3 else round(1000 * float(np.polyfit(images, mib, 1)[0]), 2)


def most(memory: np.ndarray) -> float | None:
    """MiB at most, of looks (N, 2): a process that was killed begins anew, so the last look says little."""
    return round(float(memory[:, 1].max()), 1) if len(memory) else None


def folded(reader: LogReader, settings: LineSettings) -> str:
    """The digest of the state that a log leads to, from its first record."""
    fold = Fold.of(settings)
    for record in reader.records():
        fold.apply(record, lambda one: embed_image(fold.learner, one.image or b""))
    return digest(fold.learner.state())


@ray.remote(num_cpus=1)
def _alone(run: Run, settings: LineSettings, store: Path) -> str:
    return undisturbed(run.name, settings, run.images(), store)


if __name__ == "__main__":
    launch(soak)
