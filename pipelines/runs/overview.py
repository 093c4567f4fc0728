"""All records of a plan in a table or two: a row for each method, or for each sequence that one went through."""

from collections.abc import Mapping

from ..records.continual_tables import sequences
from ..records.figures import FIGURES, GAINS, METRIC_TITLES, Figure, admitted, metric, still
from ..records.report import Table
from ..records.results import ADMITTED, Result
from .plan import Names

WITHOUT = {"fewshot": "not learning", "drift": "not under drift"}  # what a protocol calls its figures `offline`
COSTS = {"ms/img": FIGURES["ms_per_image"], "MB": FIGURES["state_mb"]}


def overviews(records: Mapping[Names, Result]) -> list[Table]:
    """One table of the protocols that take each task for itself, one of the sequences."""
    alone = {names: result for names, result in records.items() if result.continued is None}
    found = {f"{name}, {where}": one.continued for (where, name), one in records.items() if one.continued}
    made = [overview(alone)] if alone else []
    if found:
        result = next(one for one in records.values() if one.continued)
        title = f"sequences of {len(result.tasks)} tasks, {_sizes(records)} pixels"
        made.append(sequences(title, dict(sorted(found.items(), key=lambda one: one[0].split(", ")[0]))))
    return made


def overview(records: Mapping[Names, Result]) -> Table:
    """Means over tasks, with their deviation where there are several seeds; costs are those of its first protocol."""
    columns: list[tuple[str, str, Figure]] = []  # head, the protocol's name in the plan, what is shown
    for where, protocol in {names[0]: result.protocol for names, result in records.items()}.items():
        for name in GAINS:
            head = f"{where}\n{METRIC_TITLES[name]}"
            if protocol in WITHOUT:
                columns.append((f"{head}\n{WITHOUT[protocol]}", where, metric("", name, still)))
            columns.append((head, where, metric("", name)))
        if any(task.admitted for (which, _), result in records.items() if which == where for task in result.tasks):
            columns += [(f"{where}\nadmitted\n{kind}", where, admitted(kind)) for kind in ADMITTED]
    rows = []
    for method in dict.fromkeys(name for _, name in records):
        own = {where: result for (where, name), result in records.items() if name == method}
        cells = [_text(own.get(where), figure) for _, where, figure in columns]
        rows.append([method, *cells, *(_text(next(iter(own.values())), figure) for figure in COSTS.values())])
    result = next(iter(records.values()))
    note = (
        "ms/img: to score and learn, aside from the backbone, and MB: state, both in the first protocol that it has "
        "here. ±: the deviation over seeds."
    )
    if any("admitted" in head for head, _, _ in columns):
        note += " Admitted: the share of such patches in the stream that was believed to be normal."
    title = f"means over {len(result.tasks)} tasks, {_sizes(records)} pixels"
    return Table(title, ["method", *(head for head, _, _ in columns), *COSTS], rows, note)


def _text(result: Result | None, figure: Figure) -> str | None:
    return None if result is None else figure.mean(result.tasks).text(figure.form)


def _sizes(records: Mapping[Names, Result]) -> str:
    return " or ".join(str(size) for size in sorted({one.size for one in records.values()}))
