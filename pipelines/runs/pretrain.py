"""`everline pretrain`; its `teacher` distils a backbone into the teacher that EfficientAD needs."""

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...methods.backbones import BACKBONES
from ...methods.distil import Distiller, Recipe, drawing, halved
from ...methods.errors import ConfigError, StoreError
from ...methods.pdn import MODELS
from ...methods.teacher import MAX_PICTURES
from ..console import ERR, OUT, progress, teller
from ..data.datasets import images_below
from ..data.view import View
from ..files import FilePath, Whole
from ..options import ManyImages, images_option
from .textures import textures

SAVE_EVERY = 200  # steps between two writings of what is unfinished
FIRST = 256  # images by which the backbone's features are normalised
LAST = 2000  # images over which the teacher's outputs are normalised, at most
AVERAGED = 20  # steps whose mean is the loss at start and at end
FORMAT = "everline-unfinished-teacher-1"
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """All that decides which bits the teacher has, but the images."""

    recipe: Recipe
    size: int
    steps: int
    batch: int
    threads: int

    def picture(self, file: Path) -> Tensor:
        """uint8 (3, 2S, 2S), as the backbone sees it. Raises DataError for a file that is no image."""
        return View(2 * self.size).picture(file)


@click.group()
def pretrain() -> None:
    """Make the files that methods start from, out of pictures that you have."""


pretrain.add_command(textures)


@pretrain.command(cls=ManyImages)
@images_option(
    "Folders of images, searched with all folders below them. Many kinds of things make a good teacher; defects do no "
    "harm."
)
@click.option("--out", type=FilePath(), required=True, help="The teacher file to make (safetensors).")
@click.option(
    "--model", type=click.Choice(MODELS), default="small", show_default=True, help="Four or six convolutions."
)
@click.option(
    "--width",
    type=click.FloatRange(0.01, 4),
    default=1.0,
    show_default=True,
    help="Share of the published kernels; the detector's width must be the same.",
)
@click.option(
    "--backbone",
    type=click.Choice(sorted(BACKBONES)),
    default="efficientnet_lite0",
    show_default=True,
    help="What the teacher learns from.",
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    help="Of the backbone: default, none (random, to test with), or a weights file.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 512),
    default=256,
    show_default=True,
    help="Side of the image that the teacher sees, a multiple of 4; the backbone sees twice that.",
)
@click.option("--steps", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(1, 256), default=16, show_default=True, help="Images a step.")
@click.option("--lr", type=click.FloatRange(0, 1, min_open=True), default=1e-4, show_default=True, help="Of Adam.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--keep",
    type=click.IntRange(0, MAX_PICTURES),
    default=200,
    show_default=True,
    help="Images that go into the file (3 SIZE^2 bytes each), and into every state that learns with it.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, ...")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="CPU threads.")
def teacher(
    folders: tuple[Path, ...], out: Path, size: int, steps: int, batch: int, keep: int, threads: int, **recipe: Any
) -> None:
    """Distil a backbone into a teacher for the method efficientad.

    Progress is written to OUT.part every 200 steps and on Ctrl-C: the same command goes on from there, and ends with
    the same weights, to the last bit, as if it had never been stopped. What to do with it then:
    everline evaluate PROTOCOL --method efficientad --set teacher=OUT --data DIR (with model=, width=, where they
    are not the defaults).
    """
    if size % 4:
        raise ConfigError(f"--size must be a multiple of 4, got {size}.")
    if out.is_dir() or out.suffix == ".part":
        raise ConfigError(f"--out names the file to make, got {out}.")
    if out.exists():
        raise ConfigError(f"--out {out}: it is there already; name another file, or remove it.")
    _check_device(recipe["device"])
    torch.set_num_threads(threads)
    files = images_below(folders)
    job = Job(Recipe(**recipe), size, steps, batch, threads)
    with progress() as shown:
        start, end = make(job, files, out, keep, teller(shown, "teacher"))
    OUT.print(
        f"{out}: a {job.recipe.model} teacher of width {job.recipe.width:g}, distilled from {job.recipe.backbone} on "
        f"{len(files)} images of {size} pixels in {steps} steps of {batch}; loss {start:.4f} at start, "
        f"{end:.4f} at end (means of {min(AVERAGED, steps)} steps).",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ConfigError(f"--device {device}: torch cannot compute there ({str(error).splitlines()[0]}).") from error


def make(job: Job, files: Sequence[Path], out: Path, keep: int, told: Told) -> tuple[float, float]:
    """Trains, writes `out`, and removes OUT.part. Returns the loss at start and at end."""
    part = out.with_name(f"{out.name}.part")
    settings = described(job, files)
    distiller = Distiller(job.recipe)
    losses = _resume(distiller, part, settings, job.steps)
    if losses is None:
        losses = torch.zeros(job.steps, dtype=torch.float64)
        _begin(distiller, job, files, told)
    _train(distiller, job, files, losses, lambda: _save(distiller, part, settings, losses), told)
    made = {"backbone": job.recipe.backbone, "steps": str(job.steps), "images": str(len(files))}
    kept = [halved(job.picture(file)[None]) for file in _some(files, keep)]
    pictures = torch.cat(kept) if kept else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    found = distiller.teacher(_batches(_some(files, LAST), job, told, "normalising"), pictures, made)
    with Whole(out) as half:
        save_file({name: t.contiguous() for name, t in found.tensors().items()}, half, found.metadata())
    part.unlink(missing_ok=True)
    few = min(AVERAGED, job.steps)
    return float(losses[:few].mean()), float(losses[-few:].mean())


def _begin(distiller: Distiller, job: Job, files: Sequence[Path], told: Told) -> None:
    """Reads every image once, so that a bad one does not come up after hours; then the features of some."""
    for number, file in enumerate(files):
        job.picture(file)
        told("checking images", number + 1, len(files))
    distiller.begin(_batches(_some(files, FIRST), job, told, "looking at features"))


def _train(
    distiller: Distiller, job: Job, files: Sequence[Path], losses: Tensor, save: Callable[[], None], told: Told
) -> None:
    """The remaining steps. Ctrl-C ends it between two steps, saved; whatever else ends it, the last saving stays."""
    with _stop() as stopped:
        while distiller.steps < job.steps:
            now = distiller.steps
            chosen = drawing(now, job.batch, len(files), job.recipe.seed)
            losses[now] = distiller.step(torch.stack([job.picture(files[n]) for n in chosen]))
            told("training", now + 1, job.steps)
            if stopped.is_set() or distiller.steps % SAVE_EVERY == 0 or distiller.steps == job.steps:
                save()
            if stopped.is_set():
                ERR.print(f"stopped after {now + 1} steps; the same command goes on from there.", highlight=False)
                raise KeyboardInterrupt


@contextmanager
def _stop() -> Iterator[threading.Event]:
    """Set by Ctrl-C (and SIGTERM), which would otherwise come in the middle of a step."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def asked(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _some(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many, spread evenly."""
    count = min(most, len(files))
    return [files[n * len(files) // count] for n in range(count)]


def _batches(files: Sequence[Path], job: Job, told: Told, stage: str) -> Iterator[Tensor]:
    for start in range(0, len(files), job.batch):
        some = [job.picture(file) for file in files[start : start + job.batch]]
        yield torch.stack(some)
        told(stage, start + len(some), len(files))


# -- what is unfinished


def described(job: Job, files: Sequence[Path]) -> dict[str, Any]:
    """What a rerun must have in common with the run that it goes on with; the images by names and bytes' count."""
    names = json.dumps([[str(file), file.stat().st_size] for file in files])
    plain = {**asdict(job.recipe), **{name: getattr(job, name) for name in ("size", "steps", "batch", "threads")}}
    return {**plain, "images": hashlib.sha256(names.encode()).hexdigest()}


def _save(distiller: Distiller, part: Path, settings: dict[str, Any], losses: Tensor) -> None:
    tensors = {k: t.detach().cpu().contiguous() for k, t in distiller.tensors().items()}
    with Whole(part) as half:
        save_file({**tensors, "losses": losses}, half, {"format": FORMAT, "settings": json.dumps(settings)})


def _resume(distiller: Distiller, part: Path, settings: dict[str, Any], steps: int) -> Tensor | None:
    """Fills the distiller from OUT.part and gives the losses; None where there is none.

    Raises ConfigError for one of other settings, StoreError for one that cannot be used.
    """
    if not part.exists():
        return None
    try:
        with safe_open(part, "pt") as file:
            meta = dict(file.metadata() or {})
            theirs = json.loads(meta.get("settings", "{}"))
            if meta.get("format") != FORMAT or not isinstance(theirs, dict):
                raise ValueError("it is no unfinished teacher of this version")
            differ = sorted(k for k in settings.keys() | theirs.keys() if settings.get(k) != theirs.get(k))
            if differ:
                raise ConfigError(
                    f"{part} is of a run with other settings ({', '.join(differ)}): give the same ones to go on with "
                    f"it, remove it to begin anew, or name another --out."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        losses = tensors.pop("losses")
        if losses.shape != (steps,) or losses.dtype != torch.float64:
            raise ValueError(f"losses must be float64 ({steps},)")
        distiller.load(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{part}: cannot be gone on with ({error}); remove it to begin anew.") from error
    return losses
