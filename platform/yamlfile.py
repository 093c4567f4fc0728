"""Small YAML files that people write: read with limits, each name once, and checked by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..methods.errors import ConfigError, UnknownName

MAX_FILE = 2**20


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice: the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str, sample: str) -> Any:
    """The plain values of a file; `what` it is and a small `sample` are for errors. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path}: a {what} file has at most {MAX_FILE} bytes.")
        return yaml.load(path.read_text("utf-8"), _Once)  # noqa: S506 - a safe loader
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
            raise ConfigError(f"{who}: a name must be text, got {name!r}.")
    return plain


def check_known(given: Iterable[Any], known: Iterable[str], who: str) -> None:
    """Raises UnknownName for a name that is not among the known ones."""
    known = tuple(known)
    for name in given:
        if name not in known:
            raise UnknownName.among(who, "setting", str(name), known)
