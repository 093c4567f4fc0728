"""`everline evaluate`: a protocol with a method on folders of images, as a table and a result record."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ...methods.errors import UnknownName
from ...methods.registry import METHODS
from ..console import ERR, json_option, progress, teller
from ..data.datasets import Task
from ..data.masks import check_masks
from ..files import FilePath, Whole
from ..options import ManyValues, check_source, data_of, gather, read_sources, set_option, source_options
from ..protocols.course import nowhere
from ..protocols.judging import Judged, Told
from ..protocols.protocols import PROTOCOLS
from ..protocols.trial import Trial
from ..records.results import Result, append_arrays
from ..records.tables import reasons, show
from .protocol_options import protocol_options
from .succession import beside_options, check_together, run_together
from .tracked import landed, prepare, track, tracking_option


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
@source_options
@set_option
@click.option("--backbone", help="Short for --set backbone=NAME.")
@click.option("--size", type=int, help="Side of the images, in pixels.  [default: 224]")
@click.option("--bits", type=int, help="Bits in use in images of 16-bit files.  [default: as the file says, else 16]")
@click.option("--seed", type=int, help="Seed of the method and of the stream's order.  [default: 0]")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, help="Run with so many seeds, from --seed on.")
@protocol_options()
@beside_options
@click.option("--device", help="Where to compute: cpu, cuda, cuda:1, ...  [default: cpu]")
@json_option
@click.option(
    "--scores", "scores_file", type=FilePath(dir_okay=False),
    help="Write image scores, labels, maps and masks (.npz), to recompute every figure from.",
)  # fmt: skip
@tracking_option
def evaluate(
    protocol: str,
    method: str,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    settings: tuple[str, ...],
    backbone: str | None,
    size: int | None,
    bits: int | None,
    seed: int | None,
    seeds: int,
    device: str | None,
    json_file: Path | None,
    scores_file: Path | None,
    tracking: str | None,
    references: tuple[str, ...],
    work: Path | None,
    **options: Any,
) -> None:
    """Run PROTOCOL with a method on folders of images: one table, a run in MLflow, and with --json one record.

    online: one epoch over train/good, one image at a time; the test images are judged along the way.

    offline: learn all of train/good, or --shots of them; judge once.

    drift: learn clean and judge drifted, then learn and judge drifted; for each kind of --drift.

    fewshot: learn --shots normal images (10), then a stream without labels, each batch scored, then learned.

    continual: learn one folder after the other under a --strategy; judge all of them after each. Beside it a model for
    each task and joint models are run, to tell how much is lost (--references none: without).
    """
    check_source(folders, dataset, root)
    given = gather(settings, {"backbone": backbone, "size": size, "bits": bits, "seed": seed, "device": device})
    trial = Trial(protocol, method, given, options, seeds)  # what is wrong ends it here, before anything is read
    check_together(trial, references, work)
    tasks = read_sources(folders, dataset, root)
    for task in tasks:
        check_masks(task.name, task.test)
    to_stdout = str(json_file) == "-"
    with ExitStack() as files:  # what cannot be written ends it here, not after an hour
        record = files.enter_context(Whole(json_file)) if json_file and not to_stdout else None
        arrays = files.enter_context(Whole(scores_file)) if scores_file else None
        if tracking is not None:
            prepare(tracking, protocol)
        result = run(trial, tasks, arrays, data_of(folders, dataset), references, work)
        if record:
            record.write_text(result.dumps(), "utf-8")
    for reason in reasons(tasks, [result]):
        click.echo(reason, err=True)
    deliver(result, tracking, to_stdout)


def deliver(result: Result, tracking: str | None, to_stdout: bool = False) -> None:
    """Shows a result, as a table or as JSON, and then records it in the store `tracking`, if any.

    Last, so that a store that fails by then takes nothing with it. Raises TrackingError, NoSpace.
    """
    if to_stdout:
        click.echo(result.dumps(), nl=False)
    else:
        show(result)
    if tracking is not None:
        where = landed(result, tracking, track(result, tracking))
        ERR.print(where, markup=False, highlight=False, soft_wrap=True)  # one line, to be copied


def run(
    trial: Trial,
    tasks: Sequence[Task],
    arrays: Path | None,
    dataset: str | None = None,
    references: Sequence[str] = (),
    work: Path | None = None,
) -> Result:
    """Runs a trial on tasks in turn, with progress bars; the arrays of each judgement go to the file `arrays`."""
    if trial.together:

        def keep(file: Path, name: str, judged: Judged) -> None:
            append_arrays(file, named_arrays(name, judged))

        return run_together(trial, tasks, partial(keep, arrays) if arrays else nowhere, dataset, references, work)
    done = []
    with progress() as bars:
        for task in tasks:

            def told(seed: int, name: str = task.name) -> Told:
                return teller(bars, name if trial.seeds == 1 else f"{name} seed {seed}")

            def sink(name: str, judged: Judged, task: str = task.name) -> None:
                if arrays:
                    append_arrays(arrays, named_arrays(f"{task}/{name}".rstrip("/"), judged))

            done.append(trial.on(task, told, sink))
    return trial.result(done, dataset)


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
