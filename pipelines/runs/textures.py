"""`everline pretrain textures`: packs a folder of pictures into the file that a method draws textures from."""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ...methods.errors import ConfigError
from ...methods.textures import MAX_BYTES, SIDES
from ..console import progress
from ..data.datasets import images_below
from ..data.view import View
from ..files import FilePath, Whole
from ..options import ManyImages, images_option


@click.command(cls=ManyImages)
@images_option("Folders of pictures, such as the Describable Textures Dataset, searched with all folders below them.")
@click.option("--out", required=True, type=FilePath(), help="The texture file to make (safetensors).")
@click.option("--size", type=click.IntRange(*SIDES), default=256, show_default=True, help="Side, in pixels.")
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Pictures to pack; of more, a lot decides.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the lot.")
def textures(folders: tuple[Path, ...], out: Path, size: int, most: int, seed: int) -> None:
    """Pack pictures into the textures of the method draem.

    Each is resized to a square. 1000 of 256 pixels are 197 MB, which is what a process that trains needs for them.
    What to do with the file then: everline evaluate PROTOCOL --method draem --set textures=OUT --data DIR.
    """
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file.")
    files = lot(images_below(folders), most, seed)
    packed = pack(files, size)
    with Whole(out) as half:
        half.write_bytes(save({"pictures": packed}))
    click.echo(f"{out}: {len(packed)} pictures of {size} x {size}.", err=True)


def lot(files: Sequence[Path], most: int, seed: int) -> list[Path]:
    """All of them, or `most` drawn by lot, in the order given."""
    if len(files) <= most:
        return list(files)
    drawn = np.random.default_rng(seed).choice(len(files), most, replace=False)
    return [files[n] for n in sorted(drawn)]


def pack(files: Sequence[Path], size: int) -> Tensor:
    """uint8 (N, 3, size, size). Raises DataError for a file that is no image, ConfigError for more than fit."""
    fit = (MAX_BYTES - 2**20) // (3 * size * size)  # some room for the file's header
    if len(files) > fit:
        raise ConfigError(f"--most must be at most {fit} with --size {size}, or the file is larger than is read back.")
    packed = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    view = View(size)
    with progress() as bars:
        bar = bars.add_task("textures", total=len(files))
        for n, path in enumerate(files):
            packed[n] = view.picture(path)
            bars.advance(bar)
    return packed
