"""Options that several commands share: the data to run on, and parameters of methods."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ..methods.errors import ConfigError
from ..platform.settings import with_home
from .data.datasets import Task, read_folder
from .data.readers import INSTALLED, READERS, check_root, read_dataset
from .files import FilePath

MANY = ("--data", "--set", "--drift", "--references")


Command = Callable[..., Any]

set_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE...", help="Parameters of the method."
)


def source_options(command: Command) -> Command:
    """Adds --data, --dataset and --root; `check_source` and `read_sources` take what they give."""
    for option in (
        click.option(
            "--root", type=FilePath(),
            help=f"Where the data set was unpacked; not of {', '.join(INSTALLED)}, which a package brings along.",
        ),
        click.option(
            "--dataset", type=click.Choice(sorted([*READERS, *INSTALLED])),
            help="Every class of this data set, behind the folders of --data. `folder`: any folder of good images.",
        ),
        click.option(
            "--data", "folders", multiple=True, type=FilePath(), metavar="DIR...",
            help="Folders in MVTec layout: train/good, test/TYPE, ground_truth/TYPE/STEM_mask.png.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


class ManyValues(click.Command):
    """A command whose options in `many` take all words up to the next option: `--data A B C`, as A/* gives."""

    many: tuple[str, ...] = MANY

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, self.many))


class ManyImages(ManyValues):
    """`--images A B C`; see `images_option`."""

    many = ("--images",)


def images_option(help_: str) -> Callable[[Command], Command]:
    """Adds --images, folders that `images_below` searches, to a command of the class ManyImages."""
    return click.option(
        "--images", "folders", multiple=True, required=True, type=FilePath(), metavar="DIR...",
        help=help_,
    )  # fmt: skip


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


def check_source(folders: Sequence[Path], dataset: str | None, root: Path | None) -> None:
    """Raises ConfigError unless there is --data, or --dataset with the --root that it needs, or both."""
    if not folders and dataset is None:
        raise ConfigError("give --data DIR..., or --dataset NAME with --root DIR, or both.")
    if dataset is not None:
        check_root(dataset, root)
    elif root is not None:
        raise ConfigError("--root is where a data set lies; say which with --dataset, or leave it out.")


def read_sources(folders: Sequence[Path], dataset: str | None, root: Path | None) -> list[Task]:
    """The tasks of all folders, then those of a data set; see `check_source`. Raises ConfigError for two of a name."""
    found = [read_folder(folder) for folder in folders] + (read_dataset(dataset, root) if dataset else [])
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--data: two tasks are called {twice[0]!r}; a record needs a name for each.")
    return found


def data_of(folders: Sequence[Path], dataset: str | None) -> str | None:
    """The data set that a record is of: none, where there are folders of one's own beside it."""
    return None if folders else dataset


def gather(settings: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """NAME=VALUE words and the options that were given, as one set of parameters.

    Raises ConfigError for a word that is no NAME=VALUE, and for a parameter that is given twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes NAME=VALUE, got {word!r}.")
        if name in given:
            raise ConfigError(f"{name} is given twice.")
        given[name] = value
    return with_home(given)
