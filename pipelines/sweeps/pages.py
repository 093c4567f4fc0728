"""What a sweep shows: tables for the terminal, a page, and the table of memory sizes for a page of results.

for table in tables(outcome): show_blocks(table.title, table.columns, table.rows, table.note)
write_report(page(outcome, out), out / "report.html")
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..comparing.labels import typed
from ..records.curves import picture as drawn
from ..records.figures import shown
from ..records.markdown import table_markdown
from ..records.report import Cell, Panel, Report, Table
from .diagrams import against_memory, best_of_methods, described, diagrams, records_of
from .objectives import OBJECTIVES
from .outcome import TOLERANCE, Outcome
from .outcome_rows import Row
from .record import SEARCH, TrialRecord

SHOWN = 10  # configurations in the table of the best
MOST_PANELS = 12  # pictures of heatmaps on a page,
MOST_BYTES = 2 * 2**20  # and of each
LONGEST = 200  # characters of an error
METRIC_HEADS = {"image_auroc": "image\nAUROC", "aupro": "AUPRO", "pixel_f1": "pixel\nF1"}
Columns = Mapping[str, Callable[[Row], Cell]]


def tables(outcome: Outcome) -> list[Table]:
    """The best first, the front, by memory, by task, and what failed; those that have rows."""
    made = [best(outcome), pareto(outcome), by_memory(outcome), by_task(outcome), failed(outcome)]
    return [table for table in made if table.rows]


def best(outcome: Outcome) -> Table:
    """The best configurations by the objective."""
    ranked = outcome.ranked(outcome.configurations)
    title = f"best configurations by {OBJECTIVES[outcome.settings.objective].title}, {_scope(outcome)}"
    more = f" {len(ranked) - SHOWN} more are in the record." if len(ranked) > SHOWN else ""
    columns = {**_objective(outcome), **COLUMNS}
    return _table(title, "configuration", described, ranked[:SHOWN], columns, outcome.note + more)


def pareto(outcome: Outcome) -> Table:
    """The front."""
    note = "No other configuration is at least as good in image AUROC, MB and ms, and better in one of them."
    return _table(f"the front, {_scope(outcome)}", "configuration", described, outcome.pareto, COLUMNS, note)


def by_memory(outcome: Outcome) -> Table:
    """The best configuration of each method and memory size, and which size is enough."""
    rows = [row for row in outcome.by_memory if row["memory"] is not None]
    enough = {(name, row["memory"]) for name, row in outcome.enough.items()}
    columns: Columns = {
        "memory": lambda row: row["memory"],
        **COLUMNS,
        "enough": lambda row: "enough" if (row["method"], row["memory"]) in enough else None,
    }
    title = f"by memory: the best configuration of each size, {_scope(outcome)}"
    note = f"{outcome.note} {_rule(outcome)}".strip()
    return _table(title, "method", lambda row: row["method"], rows, columns, note)


def by_task(outcome: Outcome) -> Table:
    """The best trial of each task; no rows for a single task."""
    found = outcome.best_by_task if len(outcome.tasks) > 1 else {}
    rows = [{**row, "named": task} for task, row in found.items()]
    columns: Columns = {"configuration": described, **_objective(outcome), **COLUMNS}
    return _table("the best trial of each task", "task", lambda row: row["named"], rows, columns)


def failed(outcome: Outcome) -> Table:
    """The trials that failed and why, a line for each."""
    rows = []
    for row in outcome.errors:
        size = "" if row["memory"] is None else f" {row['memory']}"
        on = f" on {row['task']}" if row["task"] else ""
        on += "" if row["phase"] == SEARCH else f", {row['phase']}"
        rows.append([f"{row['number']} {row['method']}{size}{on}", _line(row["error"])])
    return Table(f"failed: {len(rows)}", ["trial", "error"], rows)


def memory_markdown(outcome: Outcome, picture: str = "") -> str:
    """`by_memory` as Markdown; nothing where no memory sizes were tried. picture: the name of the curve's file."""
    table = by_memory(outcome)
    shown = f"![{table.title}]({picture})\n\n" if picture else ""
    return shown + table_markdown(table) if table.rows else ""


def memory_picture(outcome: Outcome) -> str | None:
    """Image AUROC against memory as an SVG file, on held-out images where there are such; None without sizes."""
    curve = against_memory(outcome, bool(outcome.settings.holdout))
    return None if curve is None else drawn(curve)


def page(outcome: Outcome, out: Path | None = None) -> Report:
    """The page of a sweep. out: its folder, for the heatmaps that lie in OUT/trials; None: without."""
    asked = outcome.settings
    given = {"protocol": asked.protocol, **asked.options, "seeds": asked.seeds, "samples": asked.samples}
    given |= {"holdout": asked.holdout, "seed": asked.seed, **asked.given}
    return Report(
        f"everline sweep: {', '.join(asked.methods)}",
        f"{counted(outcome)}\n\n{outcome.note}",
        tables=tables(outcome),
        curves=diagrams(outcome),
        panels=[] if out is None else panels(outcome, out),
        footer=", ".join(f"{name} {typed(value)}" for name, value in given.items()),
    )


def counted(outcome: Outcome) -> str:
    """How far the sweep came, in a line."""
    words = [f"{len(outcome.trials)} of {outcome.expected} trials in {outcome.seconds:.0f} s"]
    words += [f"{outcome.stopped} stopped early"] if outcome.stopped else []
    words += [f"{len(outcome.errors)} failed"] if outcome.errors else []
    return ", ".join(words) + ("." if outcome.finished else "; the sweep was interrupted, and can be resumed.")


def panels(outcome: Outcome, out: Path) -> list[Panel]:
    """Heatmaps of the best configuration of each method, where there are files; held-out ones before others."""
    found = []
    for row in best_of_methods(outcome):
        for record in records_of(outcome, row):
            held = outcome.judged.get((record.item.configuration, record.item.task))
            names = [one for one in (held, record) if one is not None]
            picture = next(filter(None, (read_picture(out, one) for one in names)), None)
            if picture is not None:
                where = f" on {record.item.task}" if record.item.task else ""
                note = "Each image beside its map; the scale is this picture's own."
                found.append(Panel(f"{described(row)}{where}", picture, note))
    return found[:MOST_PANELS]


def read_picture(out: Path, record: TrialRecord) -> bytes | None:
    """A trial's heatmaps, as PNG; None where there are none, or what is there is none."""
    file = out / "trials" / f"{record.stem}.png"
    try:
        data = file.read_bytes() if file.stat().st_size <= MOST_BYTES else b""
    except OSError:
        return None
    return data if data.startswith(b"\x89PNG\r\n") else None


def _metric(name: str) -> Callable[[Row], Cell]:
    return lambda row: shown(row["metrics"][name])


def _image_auroc(row: Row) -> Cell:
    """With its deviation over seeds."""
    value, spread = shown(row["metrics"]["image_auroc"]), shown(row.get("deviation", math.nan))
    return f"{value} ± {spread}" if value and spread else value


def _held(name: str) -> Callable[[Row], Cell]:
    return lambda row: None if row["held_out"] is None else shown(row["held_out"]["metrics"][name])


COLUMNS: Columns = {
    METRIC_HEADS["image_auroc"]: _image_auroc,
    f"held-out\n{METRIC_HEADS['image_auroc']}": _held("image_auroc"),
    **{METRIC_HEADS[name]: _metric(name) for name in ("aupro", "pixel_f1")},
    **{f"held-out\n{METRIC_HEADS[name]}": _held(name) for name in ("aupro", "pixel_f1")},
    "MB": lambda row: shown(row["state_bytes"] / 1e6, ".2f"),
    "ms/img": lambda row: shown(row["ms_per_image"], ".1f"),
}


def _objective(outcome: Outcome) -> Columns:
    """The objective, where no other column has it."""
    if outcome.settings.objective != "f1_per_mb":
        return {}
    return {"F1\nper MB": lambda row: shown(row["objective"])}


def _table(
    title: str, head: str, name: Callable[[Row], str], rows: Sequence[Row], columns: Columns, note: str = ""
) -> Table:
    """A row for each, of the columns in which any row has something."""
    cells = {one: [of(row) for row in rows] for one, of in columns.items()}
    kept = {one: values for one, values in cells.items() if any(value is not None for value in values)}
    body = [[name(row), *(values[n] for values in kept.values())] for n, row in enumerate(rows)]
    return Table(title, [head, *kept], body, note)


def _scope(outcome: Outcome) -> str:
    if outcome.settings.together:
        return f"sequence of {len(outcome.settings.images) or 'all'} tasks"
    return f"task {outcome.tasks[0]}" if len(outcome.tasks) == 1 else f"means over {len(outcome.tasks)} tasks"


def _rule(outcome: Outcome) -> str:
    """What `enough` means here."""
    if not outcome.enough:
        return ""
    where = sorted({row["images"] for row in outcome.enough.values()})
    return (
        f"Enough: the smallest memory whose image AUROC ({' or '.join(where)} images) is at most {TOLERANCE} below "
        "that of the method's best size."
    )


def _line(text: str) -> str:
    """On one line, and not for ever."""
    short = " ".join(text.split())
    return short if len(short) <= LONGEST else f"{short[: LONGEST - 1]}…"
