"""Parameters as data: name, type, default, range, unit and help of every setting in one place.

A configurable class is a keyword-only dataclass whose fields are made by `param`. The same table then
checks values, fills `--help`, and (later) spans the search space of a sweep.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .errors import ConfigError, UnknownName


@dataclass(frozen=True)
class Param:
    """What is known of one setting. `low`/`high` are inclusive unless `open_low`."""

    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[Any, ...] | None = None
    unit: str = ""
    log: bool = False  # a sweep should walk it on a logarithmic scale
    search: tuple[Any, ...] = ()  # what a sweep tries: two numbers, all between them; else these; empty: nothing
    when: tuple[str, tuple[Any, ...]] | None = None  # searched only where that parameter has one of these values
    recorded: bool = True  # False: says where to run, not what is learned; not part of a version
    later: bool = False  # came after the first versions: recorded only where it is not the default, so that those stay

    @property
    def range(self) -> str:
        """The allowed values in words, empty when anything of the type goes."""
        if self.choices is not None:
            return " | ".join(str(c) for c in self.choices)
        if self.low is None and self.high is None:
            return ""
        left = "(-inf" if self.low is None else f"{'(' if self.open_low else '['}{self.low:g}"
        return f"{left}, {'inf)' if self.high is None else f'{self.high:g}]'}"

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is in range."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        if not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


def param(default: Any, help: str, **spec: Any) -> Any:
    """A dataclass field with its `Param`; `spec` holds the other fields of `Param`."""
    return dataclasses.field(default=default, metadata={"param": Param(help, **spec)})


def table(cls: type) -> Iterator[tuple[str, Any, Any, Param]]:
    """Yields (name, type, default, Param) for every setting of a class, in the order of its fields."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "param" in field.metadata:
            yield field.name, hints[field.name], field.default, field.metadata["param"]


def ranged(kind: Any, spec: Param) -> bool:
    """Whether a sweep tries all between two numbers; otherwise it chooses among what `search` lists."""
    return kind in (int, float) and len(spec.search) == 2


def parse(cls: type, given: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Values for a class's constructor from outside (YAML values or command-line strings).

    Raises UnknownName for a name that is no setting, ConfigError for a wrong type or range.
    """
    rows = {name: (kind, spec) for name, kind, _, spec in table(cls)}
    out = {}
    for name, value in given.items():
        if name not in rows:
            raise UnknownName.among(who, "parameter", str(name), rows)
        kind, spec = rows[name]
        out[name] = check(_coerce(kind, value, who, name), kind, spec, who, name)
    return out


def check(value: Any, kind: Any, spec: Param, who: str, name: str) -> Any:
    """`value` if it is of type `kind` and in range; raises ConfigError otherwise."""
    if not _is_a(value, kind):
        raise ConfigError(f"{who}: {name} must be {type_name(kind)}, got {value!r}.")
    for item in value if isinstance(value, tuple) else (value,):
        if not spec.allows(item):
            unit = f" {spec.unit}" if spec.unit else ""
            raise ConfigError(f"{who}: {name} must be in {spec.range}{unit}, got {value!r}.")
    return float(value) if kind is float else value


def type_name(kind: Any) -> str:
    """A type in words for people."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, "whole numbers with commas between")


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return isinstance(value, tuple) and bool(value) and all(_is_a(v, item) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _coerce(kind: Any, value: Any, who: str, name: str) -> Any:
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(_coerce(get_args(kind)[0], part, who, name) for part in parts)
    if isinstance(value, str) and kind is not str:
        try:
            return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise ConfigError(f"{who}: {name} must be {type_name(kind)}, got {value!r}.") from None
    return value
