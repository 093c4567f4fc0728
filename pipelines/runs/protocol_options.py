"""The protocols' options, for the commands that run one; which of them a protocol takes, it checks itself."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import click

from ...methods.params import table
from ..data.drift import KINDS
from ..protocols.continual import Continual

Command = Callable[..., Any]


def protocol_options(without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Adds an option for everything that a protocol can be told, but for these."""

    def added(command: Command) -> Command:
        for name, option in reversed([*_own(), *_of_sequences()]):
            if name not in without:
                command = option(command)
        return command

    return added


def _own() -> list[tuple[str, Callable[[Command], Command]]]:
    return [
        ("shots", click.option(
            "--shots", type=int,
            help="Of offline, fewshot: normal images learned first; of continual: of each task at most. Drawn by the "
            "seed.",
        )),
        ("ratio", click.option(
            "--ratio", type=float, help="Of fewshot: normals for each defect in the stream.  [default: 7.7]"
        )),
        ("session", click.option("--session", type=int, help="Of fewshot: images in a session.  [default: 100]")),
        ("batch", click.option(
            "--batch", type=int,
            help="Images at a time. Of fewshot: scored, then learned.  [default: 10]  Of continual: learned, beside "
            "as many replayed.  [default: as the method's paper does]",
        )),
        ("drift", click.option(
            "--drift", multiple=True, metavar="KIND[=LEVEL]...",
            help="Of drift: which, and how strong.  "
            f"[default: {' '.join(f'{n}={k.level:g}' for n, k in KINDS.items())}]",
        )),
        ("crop", click.option(
            "--crop", type=int, help="Resize to this side and keep the middle, as some papers do.  [default: no crop]"
        )),
    ]  # fmt: skip


def _of_sequences() -> list[tuple[str, Callable[[Command], Command]]]:
    """Those of continual that no other protocol has."""
    found: list[tuple[str, Callable[[Command], Command]]] = []
    for name, kind, default, spec in table(Continual):
        if name not in ("batch", "shots"):
            said = f"Of continual: {spec.help}." + (f"  [default: {default}]" if default else "")
            found.append((name, click.option(f"--{name}", metavar=_metavar(kind, spec.choices), help=said)))
    return found


def _metavar(kind: Any, choices: Sequence[Any] | None) -> str:
    if choices:
        return f"[{'|'.join(str(one) for one in choices if one != '')}]"
    return {int: "N", float: "SHARE"}.get(kind, "TEXT")
