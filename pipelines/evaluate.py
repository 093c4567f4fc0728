"""`everline evaluate`: a protocol with a method on folders of images, as a table and a result record."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ..methods.detector import Detector
from ..methods.errors import ConfigError, UnknownName
from ..methods.registry import METHODS, build
from .bench import Judged, Told
from .console import json_option, progress
from .course import Protocol
from .datasets import Task, read_folder
from .drift import KINDS, Drift
from .protocols import PROTOCOLS
from .readers import READERS, read_dataset
from .results import Result, TaskResult, Whole, append_arrays
from .seeds import over_seeds
from .tables import show

MANY = ("--data", "--set", "--drift")


class ManyValues(click.Command):
    """A command whose options in MANY take all words up to the next option: `--data A B C`, as a shell's A/* gives."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, MANY))


def spread(args: Sequence[str], many: Sequence[str]) -> list[str]:
    """`--data A B --seed 1` -> `--data A --data B --seed 1`, for the options in `many`.

    What stands behind any other option, and behind `--`, stays as it is.
    """
    out: list[str] = []
    current, fresh = "", False  # the option whose values are being read; whether it waits for its first
    for n, word in enumerate(args):
        if word == "--":
            return out + list(args[n:])
        if word.startswith("-") and len(word) > 1:
            name, has_value, _ = word.partition("=")
            current, fresh = (name, not has_value) if name in many else ("", False)
        elif current and not fresh:
            out.append(current)
        else:
            fresh = False
        out.append(word)
    return out


class MethodName(click.ParamType):
    """The name of a registered method; what is close is offered for what is not."""

    name = "method"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(sorted(METHODS))}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in METHODS:
            self.fail(str(UnknownName.among("everline", "method", str(value), METHODS)), param, ctx)
        return str(value)


@click.command(cls=ManyValues)
@click.argument("protocol", type=click.Choice(sorted(PROTOCOLS)))
@click.option("--method", type=MethodName(), required=True, help="The detector's method.")
@click.option(
    "--data", "folders", multiple=True, type=click.Path(path_type=Path), metavar="DIR...",
    help="Folders in MVTec layout: train/good, test/TYPE, ground_truth/TYPE/STEM_mask.png.",
)  # fmt: skip
@click.option(
    "--dataset", type=click.Choice(sorted(READERS)), help="In place of --data: every class of this data set."
)
@click.option("--root", type=click.Path(path_type=Path), help="Where the data set was unpacked.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE...", help="Parameters of the method.")
@click.option("--backbone", help="Short for --set backbone=NAME.")
@click.option("--size", type=int, help="Side of the images, in pixels.  [default: 224]")
@click.option("--seed", type=int, help="Seed of the method and of the stream's order.  [default: 0]")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, help="Run with so many seeds, from --seed on.")
@click.option("--shots", type=int, help="Of offline, fewshot: normal images learned first, drawn by the seed.")
@click.option("--ratio", type=float, help="Of fewshot: normals for each defect in the stream.  [default: 7.7]")
@click.option("--session", type=int, help="Of fewshot: images in a session.  [default: 100]")
@click.option("--batch", type=int, help="Of fewshot: images scored, then learned, at a time.  [default: 10]")
@click.option(
    "--drift", multiple=True, metavar="KIND[=LEVEL]...",
    help=f"Of drift: which, and how strong.  [default: {' '.join(f'{n}={k.level:g}' for n, k in KINDS.items())}]",
)  # fmt: skip
@click.option("--device", help="Where to compute: cpu, cuda, cuda:1, ...  [default: cpu]")
@json_option
@click.option(
    "--scores", "scores_file", type=click.Path(path_type=Path, dir_okay=False),
    help="Write image scores, labels, maps and masks (.npz), to recompute every figure from.",
)  # fmt: skip
def evaluate(
    protocol: str,
    method: str,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    settings: tuple[str, ...],
    backbone: str | None,
    size: int | None,
    seed: int | None,
    seeds: int,
    device: str | None,
    json_file: Path | None,
    scores_file: Path | None,
    **options: Any,
) -> None:
    """Run PROTOCOL with a method on folders of images: one table, and with --json one result record.

    online: one epoch over train/good, one image at a time; the test images are judged along the way.

    offline: learn all of train/good, or --shots of them; judge once.

    drift: learn clean and judge drifted, then learn and judge drifted; for each kind of --drift.

    fewshot: learn --shots normal images (10), then a stream without labels, each batch scored, then learned.
    """
    check_source(folders, dataset, root)
    given = gather(settings, {"backbone": backbone, "size": size, "seed": seed, "device": device})
    detector = build(method, **given)  # a wrong parameter ends it here, before anything is read
    options = own_options(protocol, options)
    runs = [PROTOCOLS[protocol](seed=detector.seed + n, **options) for n in range(seeds)]
    tasks = read_dataset(dataset, root) if dataset and root else read_tasks(folders)
    to_stdout = str(json_file) == "-"
    with ExitStack() as files:  # what cannot be written ends it here, not after an hour
        record = files.enter_context(Whole(json_file)) if json_file and not to_stdout else None
        arrays = files.enter_context(Whole(scores_file)) if scores_file else None
        done = run(runs, partial(build, method), given, tasks, arrays)
        result = Result(
            protocol=protocol,
            method=method,
            params=detector.params,
            backbone=detector.params.get("backbone"),
            size=detector.size,
            seed=detector.seed,
            tasks=done,
            options=runs[0].options,
            seeds=[one.seed for one in runs] if seeds > 1 else [],
            dataset=dataset,
        )
        if record:
            record.write_text(result.dumps(), "utf-8")
    if to_stdout:
        click.echo(result.dumps(), nl=False)
    else:
        show(result)


def own_options(protocol: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given. Raises ConfigError for one that this protocol does not have."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    own = PROTOCOLS[protocol].option_names()
    for name in given:
        if name not in own:
            has = f"its options are {', '.join(f'--{one}' for one in own)}" if own else "it has no options of its own"
            raise ConfigError(f"evaluate: --{name} is no option of the protocol {protocol}; {has}.")
    if "drift" in given:
        given["drift"] = tuple(Drift.parse(text) for text in given["drift"])
    return given


def run(
    protocols: Sequence[Protocol],
    construct: Callable[..., Detector],
    given: dict[str, Any],
    tasks: Sequence[Task],
    arrays: Path | None,
) -> list[TaskResult]:
    """Runs a protocol, with each of its seeds, on tasks in turn, with progress bars.

    construct: builds a detector from parameters; given: those of the user, all but the seed. The arrays of each
    judgement are added to the file `arrays`.
    """
    done = []

    def make(seed: int) -> partial[Detector]:
        return partial(construct, **given | {"seed": seed})

    with progress() as bars:
        for task in tasks:

            def told(seed: int, name: str = task.name) -> Told:
                return teller(bars, name if len(protocols) == 1 else f"{name} seed {seed}")

            def sink(name: str, judged: Judged, task: str = task.name) -> None:
                if arrays:
                    append_arrays(arrays, named_arrays(f"{task}/{name}".rstrip("/"), judged))

            done.append(over_seeds(protocols, make, task, told, sink))
    return done


def teller(bars: Progress, name: str) -> Told:
    """A progress bar for a task: it shows the stage at hand, and restarts with the next stage."""
    bar = bars.add_task(name, total=None)
    last = ""

    def told(stage: str, done: int, of: int) -> None:
        nonlocal last
        if stage != last:
            bars.reset(bar, total=of, description=f"{name}: {stage}")
            last = stage
        bars.update(bar, completed=done)

    return told


def named_arrays(task: str, judged: Judged) -> dict[str, NDArray]:
    """The arrays of one task under the names TASK/scores, TASK/labels, TASK/names, TASK/maps, TASK/masks.

    A task without masks, or a method without maps, has no such array.
    """
    found = {
        "scores": judged.scores,
        "labels": judged.labels,
        "names": np.array(judged.names),
        "maps": judged.maps,
        "masks": judged.masks,
    }
    return {f"{task}/{name}": array for name, array in found.items() if array is not None}


def check_source(folders: Sequence[Path], dataset: str | None, root: Path | None) -> None:
    """Raises ConfigError unless there is either --data, or --dataset with --root."""
    if (dataset is None) != (root is None):
        raise ConfigError("evaluate: --dataset and --root belong together: which data set, and where it lies.")
    if bool(folders) == (dataset is not None):
        raise ConfigError("evaluate: give either --data DIR..., or --dataset NAME with --root DIR.")


def read_tasks(folders: Sequence[Path]) -> list[Task]:
    """The tasks of all folders. Raises DataError for a wrong folder, ConfigError for two of one name."""
    tasks = [read_folder(folder) for folder in folders]
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"evaluate: two folders are called {twice[0]!r}; a record needs a name for each task.")
    return tasks


def gather(settings: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """NAME=VALUE words and the options that were given, as one set of parameters.

    Raises ConfigError for a word that is no NAME=VALUE, and for a parameter that is given twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"evaluate: --set takes NAME=VALUE, got {word!r}.")
        if name in given:
            raise ConfigError(f"evaluate: {name} is given twice.")
        given[name] = value
    return given
