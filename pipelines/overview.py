"""All records of a plan in one table: a row for each method, each protocol's figures, cost and size."""

from collections.abc import Callable, Mapping

from .continual import Continual
from .continual_tables import value
from .figures import FIGURES, GAINS, METRIC_TITLES, Figure, admitted, metric, still
from .plan import Names
from .report import Table
from .results import ADMITTED, Result

WITHOUT = {"fewshot": "not learning", "drift": "not under drift"}  # what a protocol calls its figures `offline`
SEQUENCE = {"average": "average\nF1", "forgetting": "forgetting", "relative_gap": "relative\ngap"}  # of continual
COSTS = {"ms/img": FIGURES["ms_per_image"], "MB": FIGURES["state_mb"]}

Shown = Callable[[Result], str | None]


def overview(records: Mapping[Names, Result]) -> Table:
    """Means over tasks, with their deviation where there are several seeds; costs are those of its first protocol."""
    columns: list[tuple[str, str, Shown]] = []  # head, the protocol's name in the plan, what is shown
    for where, protocol in {names[0]: result.protocol for names, result in records.items()}.items():
        for name in GAINS:
            head = f"{where}\n{METRIC_TITLES[name]}"
            if protocol in WITHOUT:
                columns.append((f"{head}\n{WITHOUT[protocol]}", where, _mean(metric("", name, still))))
            columns.append((head, where, _mean(metric("", name))))
        if protocol == Continual.name:
            columns += [(f"{where}\n{head}", where, _measure(measure)) for measure, head in SEQUENCE.items()]
        if any(task.admitted for (which, _), result in records.items() if which == where for task in result.tasks):
            columns += [(f"{where}\nadmitted\n{kind}", where, _mean(admitted(kind))) for kind in ADMITTED]
    rows = []
    for method in dict.fromkeys(name for _, name in records):
        own = {where: result for (where, name), result in records.items() if name == method}
        cells = [show(own[where]) if where in own else None for _, where, show in columns]
        rows.append([method, *cells, *(_mean(figure)(next(iter(own.values()))) for figure in COSTS.values())])
    result = next(iter(records.values()))
    note = (
        "ms/img: to score and learn, aside from the backbone, and MB: state, both in the first protocol that it has "
        "here. ±: the deviation over seeds."
    )
    if any("admitted" in head for head, _, _ in columns):
        note += " Admitted: the share of such patches in the stream that was believed to be normal."
    if any(one.continued for one in records.values()):
        note += " F1, forgetting (best value less the last) and gap to single models: of pixels, or of images without."
    sizes = " or ".join(str(size) for size in sorted({one.size for one in records.values()}))
    title = f"means over {len(result.tasks)} tasks, {sizes} pixels"
    return Table(title, ["method", *(head for head, _, _ in columns), *COSTS], rows, note)


def _mean(figure: Figure) -> Shown:
    return lambda result: figure.mean(result.tasks).text(figure.form)


def _measure(name: str) -> Shown:
    """What was kept of a sequence, in the F1 that its record is spoken of by."""

    def show(result: Result) -> str | None:
        own = result.continued
        return None if own is None else value(own, own.f1, name).text(".3f")

    return show
