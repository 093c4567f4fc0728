"""Small YAML files that people write: read with limits, each name once, and checked by name."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..methods.errors import ConfigError, UnknownName

MAX_FILE = 2**20


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice: the last would win in silence."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a value that PyYAML itself stumbles over, such as the date 2024-13-45, with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            tag = node.tag.rpartition(":")[2]
            text = f"{str(node.value)[:80]!r} cannot be read as {tag}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping whose names are all different."""
        if not isinstance(node, yaml.MappingNode):  # a tag such as `!!set` before a plain value
            return super().construct_mapping(node, deep)
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Lined(dict[Any, Any]):
    """A mapping that remembers on which line of its file each name stands."""

    lines: dict[Any, int]


class _WithLines(_Once):
    """Makes every mapping a `Lined`."""

    def lined(self, node: yaml.MappingNode) -> Iterator[Lined]:
        """Build a mapping in two steps, as PyYAML does."""
        found = Lined()
        found.lines = {}
        yield found
        found.update(self.construct_mapping(node))
        found.lines = {self.construct_object(key, deep=True): key.start_mark.line + 1 for key, _ in node.value}


_WithLines.add_constructor("tag:yaml.org,2002:map", _WithLines.lined)


def read_yaml(path: Path, what: str, sample: str, *, lines: bool = False) -> Any:
    """Read the plain values of a file; `what` it is and a small `sample` are for errors.

    lines: make each mapping a `Lined`, so that `mapping` and `check_known` name the line of what they refuse.
    Raises ConfigError.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path}: a {what} file has at most {MAX_FILE} bytes.")
        return yaml.load(path.read_text("utf-8-sig"), _WithLines if lines else _Once)  # noqa: S506 - safe loaders
    except FileNotFoundError:
        raise ConfigError(f"no {what} file {path}. A small one:\n\n{sample}") from None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error


def mapping(plain: Any, who: str) -> Mapping[str, Any]:
    """`plain` if it is names with values. Raises ConfigError."""
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{who}: expected names with values, got {type(plain).__name__}.")
    for name in plain:
        if not isinstance(name, str):
            raise ConfigError(f"{who}{line_of(plain, name)}: a name must be text, got {name!r}.")
    return plain


def line_of(plain: Any, name: Any) -> str:
    """Return `, line N` for a name of a `Lined` mapping; empty for any other."""
    line = plain.lines.get(name) if isinstance(plain, Lined) else None
    return f", line {line}" if line else ""


def check_known(given: Iterable[Any], known: Iterable[str], who: str) -> None:
    """Raises UnknownName for a name that is not among the known ones."""
    known = tuple(known)
    for name in given:
        if name not in known:
            raise UnknownName.among(f"{who}{line_of(given, name)}", "setting", str(name), known)
