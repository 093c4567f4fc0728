"""A sweep's answer for a line: the entry to put into its fleet file."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import yaml

from ...methods import params as table
from ...methods.errors import ConfigError
from ...methods.registry import build, method
from ...platform.settings import LineSettings, parse_line

LINES = ("device", "bits")  # parameters of every method that are settings of a line


def fleet_entry(line: str, settings: LineSettings, name: str, params: Mapping[str, Any]) -> str:
    """The line's entry as YAML, with the method `name` and its parameters; what else the line sets is kept.

    params: as the sweep gave them; what is a default of the method's is left out, and so are settings of the line.
    Parameters that the line has now belong to its method, and stay only where `name` is the same.
    Raises ConfigError, UnknownName for what method or line refuse.
    """
    kept = settings.params if name == settings.method else {}
    given = {key: value for key, value in {**kept, **params}.items() if key not in LINES}
    rest = {
        key: getattr(settings, key)
        for key, _, default, _ in table.table(LineSettings)
        if key != "method" and getattr(settings, key) != default
    }
    own = _plain(_changed(name, given))
    entry = {"method": name, **rest, **({"params": own} if own else {})}
    text = yaml.safe_dump({line: entry}, sort_keys=False, default_flow_style=False, allow_unicode=True)
    _check(line, text, name, given, settings)
    return text


def _changed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the parameters is no default, checked and of the right types."""
    usual = {field.name: field.default for field in fields(method(name)) if field.default is not MISSING}
    made = build(name, **given).params
    return {key: made[key] for key in given if key in made and made[key] != usual[key]}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _check(line: str, text: str, name: str, given: Mapping[str, Any], settings: LineSettings) -> None:
    """What is recommended can be read, and is what was meant. Raises ConfigError."""
    read = parse_line(line, yaml.safe_load(text)[line], "recommended entry")
    same = all(
        getattr(read, field.name) == getattr(settings, field.name)
        for field in fields(LineSettings)
        if field.name not in ("method", "params")
    )
    if not same or build(read.method, **read.params).params != build(name, **given, bits=settings.bits).params:
        raise ConfigError(f"line {line}: the recommended entry does not read back as what it says:\n{text}")
