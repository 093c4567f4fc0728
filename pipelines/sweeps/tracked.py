"""A sweep in MLflow as it goes on: a run of its own, and one below it for each trial that has ended.

    kept = Tracked(out, uri, settings)
    kept.begin()
    kept.add(record, picture)      # for each trial, in any order; one that is there already is not added again
    kept.catch_up(records)         # what the store did not take
    kept.end(outcome, html, finished)

OUT/tracked.json notes which run is the sweep's: {STORE: {"sweep", "parent", "file"}}, STORE being a checksum of the
address, which may hold a password; of a database file its path is noted too. Another store has a sweep of its own.
"sweep" is a name made up and noted before the first request, and a tag of the run. Which trials are there is asked of
the store, once when the sweep begins and after each error: a trial's run has its key as a tag. So what MLflow took
while nobody heard its answer is found again, and no trial is there twice.
"""

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...methods.errors import ConfigError, DataError, StoreError, TrackingError
from ...platform.runs import PARENT, add_run, begin_run, drop_run, end_run, resume_run, runs_with
from ...platform.tracking import prepare_tracking, public, sqlite_path, sqlite_uri
from ..data.fingerprint import checksum
from ..files import Whole
from ..records.results import MAX_BYTES
from ..records.rows import Row
from ..runs.tracked import landed_in
from .outcome import Outcome
from .pages import read_picture
from .record import FAILED, TrialRecord
from .settings import SweepSettings
from .tracked_runs import SWEEP, TRIAL, experiment, of_outcome, of_sweep, of_trial_run

FILE = "tracked.json"
MOST_ERRORS = 3  # of one catching up: a store that is gone makes each request wait


class Tracked:
    """See the module. Not for several processes at once.

    Every method raises TrackingError where the store does not answer or a disk is full; the sweep can go on, and
    `catch_up` tries again. `begin` raises ConfigError for a wrong address too.
    """

    def __init__(self, out: Path, uri: str, settings: SweepSettings) -> None:
        self.out, self.uri, self.settings = out, uri, settings
        self.parent = ""  # the id of the sweep's run; "": it did not begin yet
        self._name = ""  # of the sweep; "": it was never begun in this store
        self._trials: set[str] = set()  # keys of those that the store has
        self._sure = False  # whether those are all

    @property
    def experiment(self) -> str:
        """Where the sweep's runs are."""
        return experiment(self.settings.protocol)

    @property
    def landed(self) -> str:
        """Where the sweep is to be found in MLflow, in a line for people."""
        return landed_in(self.experiment, self.uri, self.parent)

    def begin(self) -> None:
        """Makes store and experiment ready and the sweep's run RUNNING: the one it has there, or a new one."""
        with _ours():
            prepare_tracking(self.uri, self.experiment)
            self._name, parent = self._noted()
            if parent and not resume_run(self.uri, parent):
                self._name, parent = "", ""  # deleted in MLflow: it is recorded anew
            parent = parent or self._begun()
            self._look(parent)
            self._note(parent)
            self.parent = parent

    def add(self, record: TrialRecord, picture: bytes | None = None) -> None:
        """Records a trial, unless it is there. picture: its heatmaps as PNG."""
        if not self.parent:
            self.begin()
        if record.key in self._trials:
            return
        with _ours():
            if not self._sure:
                self._look(self.parent)
            if record.key not in self._trials:
                self._sure = False  # until the store has answered
                run = of_trial_run(self.settings, record, picture)
                add_run(self.uri, run, self.parent, failed=record.status == FAILED)
                self._trials.add(record.key)
                self._sure = True

    def catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Records those that are not there yet, with the heatmaps that lie in OUT/trials.

        It goes on after an error, but not after MOST_ERRORS, and raises the first.
        """
        errors: list[TrackingError] = []
        for record in records:
            try:
                self.add(record, read_picture(self.out, record))
            except TrackingError as error:
                errors.append(error)
                if len(errors) == MOST_ERRORS:
                    break
        if errors:
            raise errors[0]

    def end(self, outcome: Outcome, report_html: str, finished: bool) -> None:
        """Adds what came of it; the run is FINISHED, or KILLED until the sweep is resumed."""
        if not self.parent:
            self.begin()
        with _ours():
            end_run(self.uri, self.parent, of_outcome(self.settings, outcome, report_html), killed=not finished)

    def _begun(self) -> str:
        """A new run of the sweep; one that was begun and not noted has no trials yet, and is deleted."""
        if self._name:
            for known in runs_with(self.uri, self.experiment, SWEEP, self._name):
                drop_run(self.uri, known.run_id)
        else:
            self._name = uuid.uuid4().hex
            self._note("")
        return begin_run(self.uri, of_sweep(self.settings, self._name))

    def _look(self, parent: str) -> None:
        """Asks the store which trials it has. What is not all there, or there twice, is deleted."""
        found: set[str] = set()
        for known in runs_with(self.uri, self.experiment, PARENT, parent):
            key = known.tags.get(TRIAL, "")
            if known.whole and key and key not in found:
                found.add(key)
            elif key:
                drop_run(self.uri, known.run_id)
        self._trials, self._sure = found, True

    def _noted(self) -> tuple[str, str]:
        """The sweep's name in this store, and the id of its run; "" for what there is not."""
        noted = Row(_notes(self.out).get(self._store, {"sweep": "", "parent": ""}), str(self.out / FILE))
        return _id(noted, "sweep"), _id(noted, "parent")

    def _note(self, parent: str) -> None:
        own = {"sweep": self._name, "parent": parent}
        if (file := sqlite_path(self.uri)) is not None:
            own["file"] = str(file.absolute())
        with Whole(self.out / FILE) as half:
            half.write_text(json.dumps({**_notes(self.out), self._store: own}, indent=1), "utf-8")

    @property
    def _store(self) -> str:
        return checksum(self.uri)


def store_of(out: Path, usual: str) -> str:
    """Return the address of the store to go on in, where none was named: that of the sweep, from whatever folder.

    Raises ConfigError where the sweep is in another store than the usual one, and only its user knows which.
    """
    notes = _notes(out)
    if not notes or checksum(usual) in notes:
        return usual
    rows = [Row(note, str(out / FILE)).plain for note in notes.values()]
    files = [Path(str(row["file"])) for row in rows if "file" in row]
    there = [file for file in files if file.is_file()]
    if there:
        return sqlite_uri(there[-1])
    known = f" (it was {files[-1]})" if files else ""
    raise ConfigError(
        f"{out}: the sweep is in another MLflow store than {public(usual)}{known}; name it with --tracking URI, or "
        "give --tracking none."
    )


def _notes(out: Path) -> dict[str, Any]:
    """What is noted of all stores. Raises DataError for a file that is no such note."""
    file = out / FILE
    try:
        if not file.is_file():
            return {}
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: larger than {MAX_BYTES:,} bytes.")
        return dict(Row(json.loads(file.read_text("utf-8")), str(file)).plain)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a note of what was tracked: {error}; delete it to record anew.") from error


@contextmanager
def _ours() -> Iterator[None]:
    """A full disk, or a note that is none, is no reason to end a sweep either."""
    try:
        yield
    except (StoreError, DataError) as error:
        raise TrackingError(f"MLflow: {error}") from error


def _id(row: Row, name: str) -> str:
    """An id as MLflow and we make them."""
    found: str = row.get(name, str)
    if not re.fullmatch(r"[\w-]*", found):
        raise DataError(f"{row.who}: {name!r} is no id of a run; delete the file to record anew.")
    return found
