"""A record beside what papers print of the same run, as tables on standard output."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..console import OUT, show_table
from .figures import METRIC_TITLES, shown
from .published import CLASSES, Figures, Published, published
from .results import Result

WIDE = 2  # groups beside each other: 80 columns hold no more

Rows = Mapping[str, Figures]


@dataclass(frozen=True)
class Side:
    """A run's figures with learning, or without; `rows`: of classes or, for the protocol drift, of drifts."""

    heading: str
    ours: Rows
    paper: Rows
    our_mean: Figures
    paper_mean: Figures

    @property
    def shared(self) -> list[str]:
        """The rows that both have, in the order of ours."""
        return [name for name in self.ours if name in self.paper]


@dataclass(frozen=True)
class Group:
    """Columns of a table: ours, the paper's and their difference, by row."""

    heading: str
    ours: Figures
    paper: Figures

    def cells(self, row: str, comparable: bool) -> tuple[str | None, ...]:
        """The three of one row; no difference where it would say nothing."""
        ours, paper = self.ours.get(row, math.nan), self.paper.get(row, math.nan)
        return shown(ours), shown(paper), shown(ours - paper if comparable else math.nan, "+.3f")


def show_beside(result: Result) -> None:
    """Our figures beside every published row that answers for this run; nothing where there is none."""
    if result.dataset is None:
        return
    for row in published(result.dataset, result.protocol, result.method, result.params, result.options):
        title, both = f"{row.label} ({row.source}), {row.backbone or 'backbone not said'}", sides(result, row)
        show_groups(f"ours beside {title}: means", [means(side) for side in both], comparable(result, row))
        if result.protocol != "drift":
            show_groups(f"ours beside {title}: each class", by_class(both))
        for text in remarks(result, row):
            OUT.print(text, markup=False, highlight=False)


def show_groups(title: str, groups: Sequence[Group], comparable: bool = True) -> None:
    """Tables with a row for each figure that the paper has."""
    for start in range(0, len(groups), WIDE):
        some = groups[start : start + WIDE]
        names = dict.fromkeys(name for group in some for name in group.paper)
        heads = [f"{group.heading}{whose}" for group in some for whose in ("ours", "paper", "diff.")]
        body = [(name, *(cell for group in some for cell in group.cells(name, comparable))) for name in names]
        show_table(title, ["", *heads], body)


def sides(result: Result, row: Published) -> list[Side]:
    """What the paper has of a run: with learning, and without where it has that too."""
    ours, still = own_rows(result)
    if not row.offline and not row.offline_rows:
        return [Side("", ours, row.rows, result.mean, row.mean)]
    learning = Side("learning\n", ours, row.rows, result.mean, row.mean)
    return [learning, Side("not\n", still, row.offline_rows, result.offline or {}, row.offline)]


def own_rows(result: Result) -> tuple[Rows, Rows]:
    """Our figures of each class (protocol drift: of each drift, means over classes), and those without learning."""
    if result.protocol != "drift":
        still = {task.task: task.offline for task in result.tasks if task.offline is not None}
        return {task.task: task.metrics for task in result.tasks}, still
    still = {part.name: part.offline for part in result.parts if part.offline is not None}
    return {part.name: part.metrics for part in result.parts}, still


def means(side: Side) -> Group:
    """A row for each figure that the paper has a mean of; over the shared classes only, where these are fewer."""
    shared, ours, paper = side.shared, side.our_mean, side.paper_mean
    if not paper:  # of the protocol drift every row is a mean
        keys = [(row, metric) for row in shared for metric in side.paper[row]]
        of_ours, of_paper = (
            {f"{METRIC_TITLES[metric]}, {row}": rows[row][metric] for row, metric in keys}
            for rows in (side.ours, side.paper)
        )
        return Group(side.heading, of_ours, of_paper)
    if shared and not len(shared) == len(side.ours) == len(side.paper):
        ours, paper = _mean(side.ours, shared, paper), _mean(side.paper, shared, paper)
    known = [metric for metric in METRIC_TITLES if metric in paper]
    return Group(
        side.heading,
        {METRIC_TITLES[one]: ours[one] for one in known},
        {METRIC_TITLES[one]: paper[one] for one in known},
    )


def by_class(both: Sequence[Side]) -> list[Group]:
    """For each figure that the paper has of classes: a row for each class that both have."""
    found = []
    for metric, title in METRIC_TITLES.items():
        head = title.replace(" ", "\n")  # narrow columns
        for side in both:
            rows = [name for name in side.shared if metric in side.paper[name]]
            if rows:
                ours, paper = ({name: of[name][metric] for name in rows} for of in (side.ours, side.paper))
                found.append(Group(f"{head}\n{side.heading}", ours, paper))
    return found


def comparable(result: Result, row: Published) -> bool:
    """Whether our means are over the paper's classes, or can be made so."""
    shared = any(task.task in row.rows for task in result.tasks)
    return shared or len(result.tasks) == CLASSES[row.dataset]


def remarks(result: Result, row: Published) -> list[str]:
    """What a reader must know before comparing: fewer classes, other settings, what the paper leaves open."""
    out = []
    have, want = len(result.tasks), CLASSES[row.dataset]
    shared = sum(task.task in row.rows for task in result.tasks)
    if not comparable(result, row):
        out.append(f"Ours are means over {have} classes, the paper's over {want}: they do not compare.")
    elif shared and not shared == have == want:
        out.append(f"The means are over the {shared} classes that both have; we have {have}, the paper {want}.")
    differ = row.differences(result.params)
    if differ:
        out.append(f"Not as in the paper (its values in brackets): {', '.join(differ)}.")
    if row.crop != (crop := result.options.get("crop")):
        theirs, ours = (f"--crop {one}" if one else "no crop" for one in (row.crop, crop))
        out.append(f"Not as in the paper: {ours} ({theirs}).")
    return [*out, row.note] if row.note else out


def _mean(rows: Rows, names: Sequence[str], metrics: Iterable[str]) -> Figures:
    """Over the rows named; NaN where one of them has no such figure."""
    return {one: sum(rows[name].get(one, math.nan) for name in names) / len(names) for one in metrics}
