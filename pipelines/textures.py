"""`everline pretrain textures`: packs a folder of pictures into the file that a method draws textures from."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..methods.errors import ConfigError, DataError
from ..methods.textures import MAX_BYTES, SIDES
from .console import progress
from .datasets import SUFFIXES, folder_images
from .files import Whole
from .options import spread
from .view import View


class _ManyImages(click.Command):
    """--images takes all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, ["--images"]))


@click.command(cls=_ManyImages)
@click.option(
    "--images",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR...",
    help="Folders of pictures, such as the Describable Textures Dataset; folders within them too.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The safetensors file to write.")
@click.option("--size", type=click.IntRange(*SIDES), default=256, show_default=True, help="Side, in pixels.")
@click.option(
    "--most", type=click.IntRange(min=1), default=1000, show_default=True, help="Of more pictures, these many by lot."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the lot.")
def textures(folders: tuple[Path, ...], out: Path, size: int, most: int, seed: int) -> None:
    """Pack pictures into one file that draem takes as --set textures=FILE.

    Each is resized to a square. 1000 of 256 pixels are 197 MB, which is what a process that trains needs for them.
    """
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file.")
    files = lot(list(dict.fromkeys(path for folder in folders for path in pictures_in(folder))), most, seed)
    packed = pack(files, size)
    with Whole(out) as half:
        half.write_bytes(save({"pictures": packed}))
    click.echo(f"{out}: {len(packed)} pictures of {size} x {size}.", err=True)


def pictures_in(folder: Path) -> Iterator[Path]:
    """Image files in a folder and in all folders within it, sorted, no hidden ones. Raises DataError for none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    found = False
    for here, inner, _ in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for path in folder_images(Path(here)):
            found = True
            yield path
    if not found:
        raise DataError(f"{folder}: no images in it or below (looked for {', '.join(SUFFIXES)}).")


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
    with progress() as bars:
        bar = bars.add_task("textures", total=len(files))
        for n, path in enumerate(files):
            packed[n] = View(size).picture(path)
            bars.advance(bar)
    return packed
