"""Files: as a command's option names them, and written whole or not at all."""

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from ..methods.errors import StoreError
from ..platform.volume import expanded


class FilePath(click.Path):
    """A path on the command line: `~` is the home folder also where the shell leaves it, as in `--out=~/x`."""

    def __init__(self, **checks: Any) -> None:
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(os.fspath(value)), param, ctx)


class Whole:
    """A context that gives a temporary path and, if all went well, moves it to `path` (fsync, then rename)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        one = f"{os.getpid()}-{secrets.token_hex(4)}"  # two machines that share a folder may have the same process id
        self.half = path.with_name(f".{path.name}.{one}.tmp")

    def __enter__(self) -> Path:
        if self.path.is_dir():
            raise StoreError(f"{self.path}: cannot be written: it is a folder; name a file.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.half.touch()
        except OSError as error:
            raise self._failed(error) from error
        return self.half

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if isinstance(error, OSError):
                raise self._failed(error) from error
            if kind is None:
                self._move()
        finally:
            self.half.unlink(missing_ok=True)

    def _move(self) -> None:
        try:
            with self.half.open("rb+") as file:
                os.fsync(file.fileno())
            self.half.replace(self.path)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(f"{self.path}: cannot be written: {error}")
