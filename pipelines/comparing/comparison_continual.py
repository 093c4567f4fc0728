"""What a comparison of sequences adds: the thesis' table (5.1 to 5.4), its figure 5.4, and every record's matrix."""

from collections.abc import Callable, Sequence

from ..records.continual_tables import (
    TITLES,
    additional_mb,
    common_f1,
    f1_per_mb,
    heat,
    sequences,
    shared_scopes,
    step_names,
    value,
)
from ..records.continued import Continued
from ..records.curves import Curve
from ..records.figures import Value, shown
from ..records.report import Heat, Table
from .comparison import Comparison, Record
from .comparison_curves import lowest

Row = Callable[[Continued], str | None]


def records(comparison: Comparison) -> list[tuple[Record, Continued]]:
    """The records with what a sequence adds to them; none of any other protocol."""
    return [(record, record.result.continued) for record in comparison.records if record.result.continued]


def f1_of(comparison: Comparison) -> str:
    """The F1 that all are spoken of by: of pixels, or of images where a record has no other."""
    return common_f1(one for _, one in records(comparison))


def overview(comparison: Comparison) -> Table:
    """A row for each record."""
    title = f"{comparison.setting}, {comparison.size} pixels: {comparison.scope}"
    return sequences(title, {record.label: one for record, one in records(comparison)})


def continual(comparison: Comparison) -> list[Table]:
    """The thesis' table, and how two figures went as tasks were added."""
    trends = [trend_table(comparison, name) for name in (f1_of(comparison), "image_auroc")]
    return [performance(comparison), *trends]


def performance(comparison: Comparison) -> Table:
    """Rows as in the thesis' tables 5.1 to 5.4, then what these leave out; a column for each record."""
    both, f1 = records(comparison), f1_of(comparison)
    rows = [[title, *(cell(one) for _, one in both)] for title, cell in performance_rows(f1).items()]
    notes = [
        f"Means over tasks after the last step; gap, forgetting, intransigence and F1 per MB are of the {TITLES[f1]}. "
        "Architecture: networks. Additional: all else that was learned, and the replay memory. The gap is to a model "
        "for each task; forgetting in % is of each task's best value, forgetting itself the difference to it."
    ]
    if any(one.deviation for _, one in both):
        notes.append("±: the deviation over seeds.")
    notes += shared_scopes({record.label: one for record, one in both})
    if comparison.shared != comparison.tasks:
        notes.append("Not all have the same tasks, and each has means over its own: these do not compare.")
    title = f"{comparison.setting}, {comparison.size} pixels: performance overview"
    return Table(title, ["", *(record.label for record, _ in both)], rows, " ".join(notes))


def performance_rows(f1: str) -> dict[str, Row]:
    """Title of a row -> what stands there of a record."""

    def measured(name: str, measure: str, form: str = ".3f", scale: float = 1) -> Row:
        def cell(one: Continued) -> str | None:
            found = value(one, name, measure)
            return Value(found.value * scale, found.deviation * scale).text(form)

        return cell

    return {
        **{title: measured(name, "average") for name, title in TITLES.items()},
        "training, s": lambda one: shown(one.training_s, ".1f"),
        "inference, ms an image": lambda one: shown(one.inference_ms, ".2f"),
        "architecture memory, MB": lambda one: shown(one.memory_bytes["networks"] / 1e6, ".2f"),
        "additional memory, MB": lambda one: shown(additional_mb(one), ".2f"),
        "relative gap, %": measured(f1, "relative_gap", ".2f", 100),
        "average forgetting, %": measured(f1, "forgetting_relative", ".2f", 100),
        "average forgetting": measured(f1, "forgetting"),
        "intransigence": measured(f1, "intransigence", "+.3f"),
        f"{TITLES[f1]} per MB": lambda one: f1_per_mb(one, f1),
    }


def alike(comparison: Comparison) -> tuple[list[tuple[Record, Continued]], str]:
    """The records of the first one's sequence, which compare step by step, and a note on those of another."""
    both = records(comparison)
    own = [(record, one) for record, one in both if _orders(one) == _orders(both[0][1])]
    others = [record.label for record, one in both if _orders(one) != _orders(both[0][1])]
    return own, f"Other tasks, or in another order, and so not in here: {', '.join(others)}." if others else ""


def trend_table(comparison: Comparison, name: str) -> Table:
    """The mean over the tasks learned by then, after each step."""
    own, others = alike(comparison)
    names = step_names(own[0][1])
    rows = [[record.label, *(shown(at) for at in one.trend(name))] for record, one in own]
    said = "; ".join(f"{n} {', '.join(step)}" for n, step in enumerate(names, 1) if step)
    note = " ".join(filter(None, [f"Learned in the steps: {said}." if said else "", others]))
    title = f"{TITLES[name]} as tasks are added: mean over the tasks learned by each step"
    return Table(title, ["record", *(str(n) for n in range(1, len(names) + 1))], rows, note)


def trends(comparison: Comparison) -> list[Curve]:
    """Figure 5.4: the F1, and image AUROC, as tasks are added, a series for each record."""
    own, others = alike(comparison)
    return [_trend(own, name, others) for name in (f1_of(comparison), "image_auroc") if own]


def heats(comparison: Comparison) -> list[Heat]:
    """Every record's matrices; none for another protocol."""
    names = (f1_of(comparison), "image_auroc")
    return [heat(one, name, record.label) for name in names for record, one in records(comparison)]


def _trend(own: Sequence[tuple[Record, Continued]], name: str, note: str) -> Curve:
    series = {record.label: [(float(n), at) for n, at in enumerate(one.trend(name), 1)] for record, one in own}
    title = f"{TITLES[name]} as tasks are added"
    return Curve(title, "step", f"mean {TITLES[name]}", series, (lowest(series.values()), 1.0), note=note)


def _orders(one: Continued) -> set[str]:
    """The sequences that its seeds went through."""
    return {str((list(run.columns), [list(step) for step in run.steps])) for run in one.runs or [one]}
