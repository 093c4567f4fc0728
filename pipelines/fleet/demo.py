"""`everline demo`: the main job on real images, from an empty store to HTTP answers and a report.

Two lines start with no image at all, inspect and learn a stream of solar cells, are killed, recover, publish
versions, and are asked over HTTP about cells that they never learned from.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray
import torch
import yaml

from ...deploy.server import free_port, start_server, stop_server
from ...methods.errors import ConfigError
from ...methods.metrics import image_auroc
from ...methods.registry import build
from ...platform.actor import answer, insist, start_line
from ...platform.cluster import connect, disconnect
from ...platform.images import prepare
from ...platform.line import Scorer, embed_image
from ...platform.log import LogReader, line_folder
from ...platform.reach import Reach
from ...platform.settings import Fleet, LineSettings, read_fleet
from ...platform.tracking import prepare_tracking
from ...platform.versions import Versions
from ..console import ERR, progress, write_json
from ..data.datasets import Sample, read_elpv, split_stream
from ..files import FilePath
from .client import Client
from .demo_report import Judged, choose, show_summary, write_demo_report
from .feed import Fed, feed, image_id
from .undisturbed import undisturbed

MARKER = ".everline-demo"
PARTS = (10, 25, 50, 100, 200, 300, 400, 600, 800)
KILLED = "mono"
DEFECTS = 0.05  # share of defective cells in the streams: a good line's day


@dataclass
class Run:
    """One line of the demo: what it is given, and what came of it."""

    name: str
    stream: list[Sample]
    held_out: list[Sample]
    features: Any = None  # reference to float32 (N, C, h, w) of the held-out images
    handle: Any = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    fed: list[Fed] = field(default_factory=list)
    killed_after: int | None = None
    recovery_s: float | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """bool (N,): True for a defective cell."""
        return np.array([sample.defect for sample in self.held_out])


@click.command()
@click.option("--out", type=FilePath(), default=Path("everline-demo"), show_default=True, help="Folder.")
@click.option("--images", type=click.IntRange(min=60), help="Images in each line's stream; all without it.")
@click.option(
    "--held-out", type=click.FloatRange(0.05, 0.6), default=0.3, show_default=True, help="Share kept for the test set."
)
@click.option(
    "--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="Pixels; fewer are quicker."
)
@click.option("--no-kill", is_flag=True, help="Do not kill a line half-way (compare state_digest of both runs).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split and of the detectors.")
def demo(out: Path, images: int | None, held_out: float, size: int, no_kill: bool, seed: int) -> None:
    """The main job on real solar cells: learn online, survive a kill, be versioned, served and rolled back."""
    start = time.monotonic()
    out = out.resolve()  # workers have folders of their own
    fleet = fresh_fleet(out, seed, size)
    tasks = read_elpv()
    split = partial(split_stream, seed=seed, held_out=held_out, defects=DEFECTS, limit=images)
    runs = [Run(name, *split(tasks[name])) for name in fleet.lines]
    try:
        start_lines(runs, fleet)
        learn_all(runs, fleet, out, kill=not no_kill)
        serve_all(runs, fleet)
        for run in runs:
            answer(run.handle.close.remote())
    finally:
        disconnect()
    shown = {run.name: judged(run, fleet) for run in runs}
    summary = {"seconds": round(time.monotonic() - start, 1), "lines": {run.name: run.summary for run in runs}}
    write_json(summary, out / "summary.json")
    write_demo_report(summary, shown, out / "report.html")
    show_summary(summary, fleet, out)


def fresh_fleet(out: Path, seed: int, size: int) -> Fleet:
    """An empty demo folder with its fleet file. Only a folder that an earlier demo made is emptied."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise ConfigError(f"{out} is not empty and no demo made it; give another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    line = {"method": "coreset", "publish_every": 100, "params": {"seed": seed, "size": size}}
    plain = {"store": "store", "tracking": "sqlite:///mlflow.db", "lines": {"mono": line, "poly": dict(line)}}
    (out / "fleet.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")
    return read_fleet(out / "fleet.yaml")


def start_lines(runs: Sequence[Run], fleet: Fleet) -> None:
    """MLflow, Ray, the lines' actors; meanwhile the held-out images are embedded, once."""
    _say("MLflow and Ray start ...")
    prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    connect(own=True)  # it will kill a process
    _say("the held-out images are embedded once, the lines start ...")
    for run in runs:
        run.features = _embed_held_out.remote([s.path for s in run.held_out], fleet.line(run.name))
        run.handle, _ = start_line(run.name, fleet)
    ray.wait([run.features for run in runs], num_returns=len(runs))


def learn_all(runs: Sequence[Run], fleet: Fleet, out: Path, *, kill: bool) -> None:
    """All lines at the same time, each fed by a thread of its own."""
    if kill:
        _say(f"half-way the process of line {KILLED} is killed; Ray reports that below, and the line comes back ...")
    with progress() as bars, ThreadPoolExecutor(len(runs)) as pool:

        def one(run: Run, bar: Any) -> None:
            learn(run, kill=kill and run.name == KILLED, told=lambda: bars.advance(bar))
            run.summary = account(run, fleet)
            if kill:
                bars.update(bar, description=f"{run.name}: the same again, undisturbed")
                again = _undisturbed.remote(
                    run.name, fleet.line(run.name), [s.path for s in run.stream], out / "undisturbed"
                )
                run.summary["resumed_identical"] = answer(again) == run.summary["state_digest"]
            bars.update(bar, description=run.name)

        bars_of = [bars.add_task(run.name, total=len(run.stream)) for run in runs]
        for future in [pool.submit(one, run, bar) for run, bar in zip(runs, bars_of, strict=True)]:
            future.result()


def learn(run: Run, *, kill: bool, told: Callable[[], None]) -> None:
    """Feeds the stream in parts; after each, the held-out images are scored. Half-way the process may be killed."""
    pid = insist(run.handle.status.remote)["pid"]
    seen, killed_at = 0, 0.0

    def on_answer(path: Path, reply: dict[str, Any] | None) -> None:
        nonlocal seen, killed_at
        seen += 1
        told()
        if killed_at and run.recovery_s is None and reply is not None and seen > (run.killed_after or 0) + 1:
            run.recovery_s = round(time.monotonic() - killed_at, 2)
        if kill and seen == len(run.stream) // 2:
            run.killed_after, killed_at = seen, time.monotonic()
            threading.Timer(0.01, os.kill, (pid, signal.SIGKILL)).start()  # in the middle of the next image

    for first, last in _parts(len(run.stream)):
        run.fed.append(feed(Reach(lambda: run.handle), [s.path for s in run.stream[first:last]], told=on_answer))
        scores = insist(lambda: run.handle.score.remote(run.features))
        run.curve.append((last, image_auroc(scores, run.labels)))


def account(run: Run, fleet: Fleet) -> dict[str, Any]:
    """What the log, the line and its versions say about the stream that was sent."""
    digest = insist(run.handle.digest.remote)
    status = insist(run.handle.status.remote)
    reader = LogReader(line_folder(fleet.store, run.name))
    logged = [record for record in reader.records(images=False) if record.kind == "image"]
    admitted = sum(bool(record.admitted) for record in logged)
    sent = {image_id(s.path.name, s.path.read_bytes()) for s in run.stream}
    ids = [record.id for record in logged]
    return {
        "images_streamed": len(run.stream),
        "defects_streamed": sum(s.defect for s in run.stream),
        "images_learned": status["images_learned"],
        "not_admitted": len(logged) - admitted,
        "auroc_curve": [[images, round(auroc, 4)] for images, auroc in run.curve],
        "images_per_s": round(sum(f.acknowledged for f in run.fed) / sum(f.seconds for f in run.fed), 2),
        "versions": [
            {"version": v.version, "images_learned": v.images_learned, "calibrated": v.calibrated}
            for v in reversed(Versions(fleet.tracking, run.name).list())
        ],
        "state_bytes": status["state_bytes"],
        "state_digest": digest,
        "killed_after": run.killed_after,
        "recovery_s": run.recovery_s,
        "lost": len(sent - set(ids)) + max(0, admitted - status["images_learned"]),
        "learned_twice": len(ids) - len(set(ids)) + max(0, status["images_learned"] - admitted),
        "resumed_identical": None,
    }


def serve_all(runs: Sequence[Run], fleet: Fleet) -> None:
    """Everything that goes over HTTP: the held-out images, then a roll-back."""
    port = free_port()
    _say(f"Serve starts on port {port} ...")
    start_server(fleet, port=port)
    try:
        ask_all(runs, port)
        roll_back(runs[0], port)
    finally:
        stop_server()


def ask_all(runs: Sequence[Run], port: int) -> None:
    """Sends the held-out images over HTTP, one client for each line, and measures from the client's side."""
    with progress() as bars, ThreadPoolExecutor(len(runs)) as pool:

        def one(run: Run, bar: Any) -> None:
            client = Client(port=port)
            for sample in run.held_out:
                run.answers.append(client.inspect(run.name, sample.path.read_bytes(), learn=False))
                bars.advance(bar)
            client.close()

        bars_of = [bars.add_task(f"HTTP {run.name}", total=len(run.held_out)) for run in runs]
        for future in [pool.submit(one, run, bar) for run, bar in zip(runs, bars_of, strict=True)]:
            future.result()
    for run in runs:
        latency = np.percentile([a["latency_ms"] for a in run.answers], [50, 99])
        rejected = np.array([a["verdict"] == "reject" for a in run.answers])
        run.summary |= {
            "auroc_http": round(image_auroc(np.array([a["score"] for a in run.answers]), run.labels), 4),
            "latency_ms": {"p50": round(float(latency[0]), 2), "p99": round(float(latency[1]), 2)},
            "false_rejects": round(float(rejected[~run.labels].mean()), 4),
            "defects_found": round(float(rejected[run.labels].mean()), 4),
            "version_served": run.answers[-1]["version"],
            "calibrated": run.answers[-1]["calibrated"],
        }


def roll_back(run: Run, port: int) -> None:
    """One version back over HTTP; the next answers must carry the older version's id."""
    client = Client(port=port)
    before = run.answers[-1]["version"]
    to = client.rollback(run.name)["version"]
    seen = {client.inspect(run.name, s.path.read_bytes(), learn=False)["version"] for s in run.held_out[:5]}
    client.close()
    run.summary["rollback"] = {
        "from": before,
        "to": to,
        "answered_by": sorted(seen),
        "ok": seen == {to} and to < before,
    }


def judged(run: Run, fleet: Fleet) -> dict[str, list[Judged]]:
    """The images worth showing, with maps by the version that answered over HTTP."""
    version = run.summary["version_served"]
    scorer = Scorer(version, *Versions(fleet.tracking, run.name).load(version))

    def one(index: int) -> Judged:
        sample = run.held_out[index]
        image = prepare(sample.path.read_bytes(), scorer.detector.size)
        _, anomaly = scorer.judge(scorer.detector.embed(image[None]))
        picture = image.permute(1, 2, 0).numpy()
        return Judged(sample.path.name, sample.defect, run.answers[index], picture, anomaly.numpy())

    return {title: [one(i) for i in chosen] for title, chosen in choose(run.labels, run.answers).items()}


@ray.remote(num_cpus=1)
def _embed_held_out(files: list[Path], settings: LineSettings) -> np.ndarray:
    """float32 (N, C, h, w) of all files, one backbone pass each."""
    torch.set_num_threads(settings.threads)
    detector = build(settings.method, **settings.params)
    return torch.cat([embed_image(detector, f.read_bytes()) for f in files]).numpy()


@ray.remote(num_cpus=0)
def _undisturbed(name: str, settings: LineSettings, files: list[Path], store: Path) -> str:
    """The digest of a line that inspects the same stream in a store of its own and is never disturbed."""
    images = ((data, image_id(path.name, data)) for path in files for data in (path.read_bytes(),))
    return undisturbed(name, settings, images, store)


def _parts(count: int) -> list[tuple[int, int]]:
    """(first, last) of each part of the stream, short ones first."""
    ends = [end for end in PARTS if end < count] + [count]
    return list(zip([0, *ends], ends, strict=False))


def _say(text: str) -> None:
    ERR.print(f"[dim]{text}[/dim]")
