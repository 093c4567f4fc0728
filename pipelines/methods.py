"""`everline methods`: what is registered."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..methods.errors import UnknownName
from ..methods.params import table, type_name
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
        rows = [(key, m["summary"], *(_yes(v) for v in m["traits"].values())) for key, m in found.items()]
        traits = next(iter(found.values()))["traits"]
        show_table("methods", ["name", "what it is", *(t.replace("_", " ") for t in traits)], rows)
        OUT.print("[dim]everline methods NAME lists a method's parameters[/dim]")
        return
    OUT.print(METHODS[name].__doc__ or "", markup=False)
    rows = [(p["name"], p["default"], p["range"], p["unit"], p["help"]) for p in found[name]["params"]]
    show_table(f"parameters of {name}", ["name", "default", "range", "unit", "help"], rows)


def describe(name: str) -> dict[str, Any]:
    """A method as plain values: summary, traits, parameters."""
    cls = METHODS[name]
    rows = [
        {
            "name": key,
            "type": type_name(kind),
            "default": list(default) if isinstance(default, tuple) else default,
            "range": spec.range,
            "unit": spec.unit,
            "help": spec.help,
        }
        for key, kind, default, spec in table(cls)
    ]
    return {"summary": (cls.__doc__ or "").strip().splitlines()[0], "traits": asdict(cls.traits), "params": rows}


def _yes(value: bool) -> str:
    return "yes" if value else "-"
