"""`everline compare LINE@... LINE@...`: load, judge, show, record."""

from collections.abc import Sequence
from pathlib import Path

from ...platform.runs import record_run
from ...platform.settings import read_fleet
from ...platform.tracking import public
from ..console import ERR, progress, teller
from ..runs.tracked import experiment, prepare
from .outlets import Outlets, as_text
from .versions_compared import Compared
from .versions_judged import Judges, read_judged
from .versions_named import load
from .versions_page import origins, page
from .versions_shown import tables
from .versions_tracked import KIND, to_runs


def compare_versions(
    words: Sequence[str],
    folders: Sequence[Path],
    fleet_file: Path,
    tracking: tuple[str | None, ...],
    outlets: Outlets,
) -> None:
    """tracking: the store that was asked for (None: none), or empty for the fleet's own.

    The store is written last, so that one that fails by then takes nothing with it.
    """
    fleet = read_fleet(fleet_file)
    images = read_judged(folders)
    subjects = load(words, fleet)
    (store,) = tracking or (fleet.tracking,)
    if store is not None:
        prepare(store, KIND)  # a store that cannot be ends it here, before the work
    judges = Judges(subjects)
    with progress() as bars:
        found = Compared.of(judges, images, teller(bars, ", ".join(words)))
    made = tables(found)
    outlets.deliver(found.to_json(), made, as_text(made, origins(found)), lambda: page(found, judges, made))
    if store is not None:
        record(found, store)


def record(found: Compared, store: str) -> None:
    """A run for each version. Raises TrackingError, NoSpace."""
    ids = [record_run(store, run) for run in to_runs(found)]
    said = f"MLflow: runs {', '.join(ids)} of experiment {experiment(KIND)} in {public(store)}"
    ERR.print(said, markup=False, highlight=False, soft_wrap=True)
