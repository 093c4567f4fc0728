"""Where a sequence of tasks stands, on disk: a run that was stopped goes on behind the last step that it finished.

FOLDER/progress.json         what was asked for, the figures so far, where the replay memory stands; replaced last
FOLDER/step-N/NAME.*         every learner after the step that progress.json speaks of
FOLDER/memory/               the replay memory
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...methods.detector import Detector
from ...methods.errors import ConfigError, DataError, StoreError
from ...platform.log import locked
from ...platform.statefiles import load_state, save_state
from ..data.fingerprint import checksum
from ..files import Whole

MAX_BYTES = 2**28
LEARNER = re.compile(r"learner|model-[0-9]{1,9}")
Rows = list[dict[str, list[float]]]  # for each step, by figure: a value for each column


@dataclass
class Progress:
    """Everything after a step that is not a learner. `spent`: seconds and images, by clock and name."""

    done: int = 0  # steps
    rows: Rows = field(default_factory=list)
    inferred: list[list[float]] = field(default_factory=list)
    spent: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    learners: list[str] = field(default_factory=list)
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class Journal:
    """A folder for one run; `asked` is what it is asked for, in plain values, and decides whether it may go on."""

    folder: Path
    asked: Mapping[str, Any]

    @property
    def memory(self) -> Path:
        """Where the replay memory lies."""
        return self.folder / "memory"

    @contextmanager
    def held(self) -> Iterator[None]:
        """While a run is at work in it. Raises SecondWriter where another one is."""
        lock = locked(self.folder)
        try:
            yield
        finally:
            os.close(lock)

    def read(self) -> Progress:
        """Where it stands; a fresh start where nothing is there, and its remains are removed.

        Raises ConfigError for a folder of another run, DataError for a file that is none of ours.
        """
        file = self.folder / "progress.json"
        if not file.exists():
            shutil.rmtree(self.memory, ignore_errors=True)
            return Progress()
        try:
            if file.stat().st_size > MAX_BYTES:
                raise DataError(f"{file}: larger than {MAX_BYTES:,} bytes.")
            plain = json.loads(file.read_text("utf-8"))
            key, said = plain["asked"], plain["progress"]
            if checksum(said) != plain["sha256"]:
                raise DataError(f"{file}: the checksum does not match; remove {self.folder} and begin anew.")
            progress = Progress(**json.loads(said))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{file}: not the progress of a run: {error!r}") from error
        if key != self._key:
            raise ConfigError(
                f"{self.folder} holds a run with other settings or other images; name another --work, or remove it."
            )
        return progress

    def learners(self, progress: Progress, make: Callable[[], Detector]) -> dict[str, Detector]:
        """The learners after the last step that was finished. Raises Corrupt, StateError."""
        found = {}
        for name in progress.learners:
            if not LEARNER.fullmatch(name):
                raise DataError(f"{self.folder}: a learner is called {name!r}; that is none of ours.")
            found[name] = make()
            found[name].load_state(load_state(self._step(progress.done), name, name))
        return found

    def write(self, progress: Progress, learners: Mapping[str, Detector]) -> None:
        """Notes a finished step; what it replaces is removed afterwards. Raises StoreError."""
        step = self._step(progress.done)
        try:
            shutil.rmtree(step, ignore_errors=True)
            step.mkdir(parents=True)
            for name, learner in learners.items():
                save_state(step, learner.state(), name, name)
        except OSError as error:
            raise StoreError(f"{step}: the state could not be written: {error}") from error
        progress.learners = list(learners)
        with Whole(self.folder / "progress.json") as half:
            said = json.dumps(asdict(progress))
            half.write_text(json.dumps({"asked": self._key, "progress": said, "sha256": checksum(said)}), "utf-8")
        for other in self.folder.glob("step-*"):
            if other != step:
                shutil.rmtree(other, ignore_errors=True)

    def _step(self, number: int) -> Path:
        return self.folder / f"step-{number}"

    @property
    def _key(self) -> str:
        return checksum(json.dumps(dict(self.asked), sort_keys=True))
