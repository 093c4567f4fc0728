"""`everline methods`: what is registered."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..methods.errors import UnknownName
from ..methods.params import Param, ranged, table, type_name
from ..methods.registry import METHODS
from .console import OUT, json_option, show_table, write_json


@click.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, json_file: Path | None) -> None:
    """The registered methods with their traits; with NAME, its parameters."""
    if name is not None and name not in METHODS:
        raise UnknownName.among("everline", "method", name, METHODS)
    found = {key: describe(key) for key in sorted(METHODS) if name in (None, key)}
    write_json(found, json_file)
    if json_file is not None and str(json_file) == "-":
        return
    if name is None:
        rows = [(key, m["summary"], *(_trait(v) for v in m["traits"].values())) for key, m in found.items()]
        traits = next(iter(found.values()))["traits"]
        show_table("methods", ["name", "what it is", *(t.replace("_", " ") for t in traits)], rows)
        OUT.print("[dim]everline methods NAME lists a method's parameters[/dim]")
        return
    OUT.print(METHODS[name].__doc__ or "", markup=False)
    specs = {key: searched(kind, spec) for key, kind, _, spec in table(METHODS[name])}
    rows = [
        (p["name"], p["default"], p["range"], specs[p["name"]], p["unit"], p["help"]) for p in found[name]["params"]
    ]
    show_table(f"parameters of {name}", ["name", "default", "range", "searched", "unit", "help"], rows)


def describe(name: str) -> dict[str, Any]:
    """A method as plain values: summary, traits, parameters."""
    cls = METHODS[name]
    rows = [
        {
            "name": key,
            "type": type_name(kind),
            "default": list(default) if isinstance(default, tuple) else default,
            "range": spec.range,
            "search": list(spec.search),
            "log": spec.log,
            "when": None if spec.when is None else {"name": spec.when[0], "values": list(spec.when[1])},
            "unit": spec.unit,
            "help": spec.help,
        }
        for key, kind, default, spec in table(cls)
    ]
    return {"summary": (cls.__doc__ or "").strip().splitlines()[0], "traits": asdict(cls.traits), "params": rows}


def searched(kind: Any, spec: Param) -> str:
    """What a sweep tries of a parameter, in words; "" where it tries nothing."""
    if not spec.search:
        return ""
    if ranged(kind, spec):
        tried = f"{spec.search[0]:g} to {spec.search[1]:g}{', log' if spec.log else ''}"
    else:
        tried = " | ".join(map(str, spec.search))
    if spec.when is None:
        return tried
    name, values = spec.when
    some = " or ".join(map(str, values)) if len(values) < 5 else f"{values[0]} to {values[-1]}"
    return f"{tried} (where {name} is {some})"


def _trait(value: bool | int | str) -> str:
    return ("yes" if value else "-") if isinstance(value, bool) else str(value) or "-"
