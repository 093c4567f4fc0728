"""`python -m everline.pipelines.runs.batches`: what it costs to take images through a frozen backbone together."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor

from ...methods.backbones import BACKBONES, Backbone
from ..console import json_option, launch, show_table, write_json
from ..options import ManyValues

ROUNDS = 30
SEED = 0


class Many(ManyValues):
    """`--size 64 128 224`."""

    many = ("--backbone", "--size", "--batch")


@click.command(cls=Many)
@click.option(
    "--backbone",
    "names",
    multiple=True,
    type=click.Choice(tuple(BACKBONES)),
    default=["efficientnet_lite0"],
    show_default=True,
)
@click.option(
    "--size", "sizes", multiple=True, type=click.IntRange(32, 1024), default=[64, 128, 224], show_default=True,
    help="Side of an image, in pixels.",
)  # fmt: skip
@click.option("--batch", "batches", multiple=True, type=click.IntRange(2, 64), default=[4, 8], show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Of a CPU.")
@json_option
def batches(
    names: tuple[str, ...],
    sizes: tuple[int, ...],
    batches: tuple[int, ...],
    device: str,
    threads: int,
    json_file: Path | None,
) -> None:
    """Time images through a backbone one at a time and in batches, and see whether their bits stay what they were.

    ALONE: as everline does it. AS IT IS: a pass of one image. In a batch of N: milliseconds of each image; whether
    bits are those of a pass of one; whether they are the same at every place of such a batch, in other company.
    Random weights, except for the embedded backbone.
    """
    torch.set_num_threads(threads)
    rows = [row for name in names for size in sizes for row in measured(name, size, batches, device)]
    write_json(rows, json_file)
    if str(json_file) != "-":
        where = torch.cuda.get_device_name(device) if device != "cpu" else f"CPU, {threads} threads"
        show_table(f"a frozen backbone on {where}", list(rows[0]), [list(row.values()) for row in rows])


def measured(name: str, size: int, batches: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    """A row for each number of images in a batch."""
    weights = "default" if name == "efficientnet_lite0" else "none"
    backbone = Backbone.shared(name, weights, (4, 8, 16), device)
    rng = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (2 * max(batches), 3, size, size), dtype=torch.uint8, generator=rng)
    alone, as_it_is = _ms(backbone, images[:1]), _ms(backbone.passed, images[:1])
    found = []
    for count in batches:
        one = torch.cat([backbone.passed(image[None]) for image in images[:count]])
        row = {"backbone": name, "size": size, "alone": alone, "as it is": as_it_is, "batch": count}
        row["ms an image"] = round(_ms(backbone.passed, images[:count]) / count, 3)
        row["bits of one"] = _same(backbone.passed(images[:count]), one)
        row["bits anywhere"] = _anywhere(backbone.passed, images, count)
        found.append(row)
    return found


def _anywhere(passed: Callable[[Tensor], Tensor], images: Tensor, count: int) -> str:
    """Whether the first image has the same features at each place of a batch, whoever fills the others."""
    first, company = images[:1], images[count : 2 * count]
    blank = torch.cat([first, torch.zeros_like(company[1:])])
    wanted = passed(blank)[0]
    for place in range(count):
        mixed = company.clone()
        mixed[place] = first[0]
        if not torch.equal(passed(mixed)[place], wanted):
            return "no"
    return "yes"


def _same(a: Tensor, b: Tensor) -> str:
    return "yes" if torch.equal(a, b) else "no"


def _ms(work: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Median, with the copy to the device and back."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work(images).cpu()
        took.append((time.perf_counter() - began) * 1000)
    return round(median(took[ROUNDS // 5 :]), 3)


if __name__ == "__main__":
    launch(batches)
