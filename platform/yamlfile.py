"""Small YAML files that people write: read with limits, each name once, and checked by name."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from ..methods.errors import ConfigError, UnknownName

MAX_FILE = 2**20
MERGE = "tag:yaml.org,2002:merge"


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice: the last would win in silence."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[int] = set()  # mappings whose `<<` have been followed

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a value that PyYAML itself stumbles over, such as the date 2024-13-45, with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            tag = node.tag.rpartition(":")[2]
            text = f"{str(node.value)[:80]!r} cannot be read as {tag}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error

    def get_single_node(self) -> yaml.Node | None:
        """Refuse aliases that multiply, before anything is made of them."""
        found: yaml.Node | None = super().get_single_node()
        if found is not None:
            self._size(found, {})
        return found

    def _size(self, node: yaml.Node, known: dict[int, int]) -> int:
        """Count the values below a node, each as often as an alias repeats it."""
        if id(node) not in known:
            known[id(node)] = MAX_FILE + 1  # for whoever contains itself
            parts = node.value if isinstance(node.value, list) else []
            below = chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
            known[id(node)] = 1 + sum(self._size(part, known) for part in below)
        if known[id(node)] > MAX_FILE:
            text = f"with its aliases it has more than {MAX_FILE} values, or contains itself"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return known[id(node)]

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<` names in front of a mapping's own names, which are all different and win."""
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        merged = [pair for pair in node.value if pair[0].tag == MERGE]
        own = [pair for pair in node.value if pair[0].tag != MERGE]
        names = [self.construct_object(key, deep=True) for key, _ in own]
        twice = sorted({str(name) for name in names if names.count(name) > 1} | ({"<<"} if len(merged) > 1 else set()))
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        super().flatten_mapping(node)


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
