"""Versions of a line's detector, in MLflow: one registered model per line, rollback is moving an alias.

A version is state.safetensors + detector.json + calibration.json and the code that answers with them
(versions_pyfunc.py); it never changes. Its tags hold what `list` shows.
"""

import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..methods.detector import State
from ..methods.errors import ConfigError, Corrupt, UnknownVersion
from .calibration import Calibration
from .statefiles import load_state, save_state
from .tracking import (
    EXPERIMENT,
    answering,
    artifacts_at,
    connect,
    ending,
    experiment_id,
    located,
    or_none,
    reachable,
)

CURRENT, PREVIOUS, CANDIDATE = "current", "previous", "candidate"
PINNED = "pinned"  # tag of a version that stays, however old: "true"
PROPOSED = "proposed"  # tag of a version that was never current: going one version back passes it over
MAX_TAG = 5000  # characters that MLflow takes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
CODE = Path(__file__).with_name("versions_pyfunc.py")
OWN_TAGS = (
    "key", "watermark", "images_learned", "threshold", "calibrated", "method", "checksum", "everline_version", PROPOSED
)  # fmt: skip
ANSWER = {"score": "double", "p_value": "double", "threshold": "double", "verdict": "string", "calibrated": "boolean"}
DETECTOR = "artifacts/detector"  # in a version's files: what is everline's own
MADE = {"MLmodel", f"{DETECTOR}/calibration.json"}  # files of every version
DAY_MS = 86_400_000
PAGE = 200
WAIT_S = 60


@dataclass(frozen=True)
class Version:
    """What is known of a version without loading it."""

    version: int
    aliases: tuple[str, ...]
    watermark: int  # sequence number of the last record that it has learned from
    images_learned: int
    threshold: float  # the highest score that passes; infinite without calibration scores
    calibrated: bool
    method: str
    created_ms: int  # since the Unix epoch
    tags: dict[str, str]  # further ones, as given to `publish`
    key: str = ""  # the name of its publication: of which snapshot, with which bits


class Versions:
    """The versions of one line. Every verb raises TrackingError when MLflow does not answer."""

    def __init__(self, tracking_uri: str, line: str, artifacts: str = "") -> None:
        """tracking_uri, artifacts: as `prepare_tracking` takes them, which has been called. Raises ConfigError."""
        if not NAME.fullmatch(line):
            raise ConfigError(f"line {line!r}: a name has 1 to 64 letters, digits, '-', '_', '.', none of them first.")
        self.uri, self.line, self.artifacts = tracking_uri, line, artifacts

    def publish(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str] | None = None
    ) -> int:
        """Registers a version, waits until it is ready, and makes it current.

        key: names this publication once and for all; a key that is registered already is not registered
        again, only made current. Raises TrackingError, NoSpace, ConfigError (tags that are everline's own).
        """
        with self._answering("publish a version"):
            reachable(self.uri)
            number = self._registered(state, calibration, watermark, key, tags or {}, {})
            self._make_current(number)
        return number

    def publish_as(
        self,
        number: int,
        state: State,
        calibration: Calibration,
        *,
        watermark: int,
        key: str,
        tags: dict[str, str] | None = None,
    ) -> bool:
        """As `publish`, under a number that it had in another MLflow; False where that number was given already."""
        with self._answering(f"register version {number} again"):
            reachable(self.uri)
            self._ensure_model()
            if not self._give_numbers_before(number):
                return False
            made = self._registered(state, calibration, watermark, key, tags or {}, {})
            if made == number:
                self._make_current(number)
        return made == number

    def _give_numbers_before(self, number: int) -> bool:
        """Uses up lower numbers, which MLflow gives in order; False where `number` is given already.

        A version that is deleted keeps its number.
        """
        given = max(self._numbers(), default=0)
        if given >= number:
            return False
        experiment = experiment_id(self._client, self.uri, EXPERIMENT, self.artifacts)
        run = self._client.create_run(experiment, run_name=f"{self.line}-numbers")
        with ending(self._client, run.info.run_id):
            while given < number - 1:
                made = self._client.create_model_version(self.line, run.info.artifact_uri, run.info.run_id)
                self._client.delete_model_version(self.line, made.version)
                given = int(made.version)
        self._client.delete_run(run.info.run_id)
        return given < number

    def propose(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str] | None = None
    ) -> int:
        """Registers a version and points the alias `candidate` at it; the current one stays current.

        It waits for a gate (platform/gate.py). Key, tags and errors as of `publish`; a key whose version is current
        already makes no candidate.
        """
        with self._answering("propose a version"):
            number = self._registered(state, calibration, watermark, key, tags or {}, {PROPOSED: "true"})
            if number != self._aliases().get(CURRENT):
                self._client.set_registered_model_alias(self.line, CANDIDATE, str(number))
        return number

    def candidate(self) -> int | None:
        """The version that waits for its gate; None where there is none."""
        with self._answering("look up the candidate"):
            return self._aliases().get(CANDIDATE)

    def tag(self, version: int, tags: dict[str, str]) -> None:
        """Says more of a version; a tag that is there is replaced. Raises UnknownVersion, ConfigError (own tags)."""
        self._check_tags(tags)
        with self._answering(f"tag version {version}"):
            if version not in (known := self._numbers()):
                raise UnknownVersion(f"line {self.line}: no version {version}; {_valid(known)}.")
            for name, value in tags.items():
                self._client.set_model_version_tag(self.line, str(version), name, value[:MAX_TAG])

    def list(self) -> "list[Version]":
        """All versions, newest first; none for a line that never published."""
        with self._answering("list versions"):
            aliases = self._aliases()
            return [_version(v, aliases) for v in self._search()]

    def pin(self, version: int, pinned: bool = True) -> None:
        """Has a version stay, however many are kept; or not any more. Raises UnknownVersion."""
        self.tag(version, {PINNED: str(pinned).lower()})

    def prune(self, keep: int) -> Sequence[int]:
        """Removes versions and their files that are not among the newest `keep` (0: all stay); returns their numbers.

        What stays besides: versions with an alias, pinned ones, and the newest of each day. MLflow keeps the runs.
        """
        if not keep:
            return []
        with self._answering("remove old versions"):
            aliases = self._aliases()
            found = list(self._search())
            gone = removable([_version(one, aliases) for one in found], keep)
            for one in found:
                if int(one.version) in gone:
                    self._remove_files(one)
                    self._client.delete_model_version(self.line, str(one.version))
        return sorted(gone)

    def _remove_files(self, found: Any) -> None:
        """Of a model that everline made, and nothing else: whoever may write to MLflow could name any folder."""
        folder = _here(located(self._client, self.uri, found.source))
        if folder is not None and folder.is_symlink():
            return
        kept = artifacts_at(self._client, self.uri, found.source)
        if {one.path for inner in (None, DETECTOR) for one in kept.list_artifacts(inner)} >= MADE:
            kept.delete_artifacts()

    def live(self) -> "dict[int, int]":
        """Versions that have an alias -> number of the last record that each has learned from."""
        with self._answering("look up the versions in use"):
            found = {n: self._client.get_model_version(self.line, str(n)) for n in set(self._aliases().values())}
            return {n: int(v.tags.get("watermark", -1)) for n, v in found.items() if "source" not in v.tags}

    def current(self) -> int | None:
        """The version behind the alias `current`; None before the first. Cheap enough to poll (3 ms on sqlite)."""
        with self._answering("look up the current version"):
            return self._aliases().get(CURRENT)

    def rollback(self, version: int | None = None) -> int:
        """Makes `version` current, or else the newest that is older than the current and was current once.

        Raises UnknownVersion.
        """
        number = self.target(version)
        with self._answering("roll back"):
            self._make_current(number)
        return number

    def target(self, version: int | None = None) -> int:
        """Where `rollback` would lead. Raises UnknownVersion."""
        with self._answering("roll back"):
            found = {int(v.version): PROPOSED in v.tags for v in self._search()}
            known = list(found)
            if version is None:
                now = self._aliases().get(CURRENT, 0)
                version = next((v for v, proposed in found.items() if v < now and not proposed), None)
                if version is None:
                    raise UnknownVersion(f"line {self.line}: no version is older than {now}; {_valid(known)}.")
            if version not in known:
                raise UnknownVersion(f"line {self.line}: no version {version}; {_valid(known)}.")
        return version

    def load(self, version: int, check: bool = True) -> tuple[State, Calibration]:
        """What `publish` was given; `check=False` takes changed files, too. Raises UnknownVersion, Corrupt.

        Files on this machine are read in place; others are copied to the temporary folder (NoSpace if it is full).
        """
        with self._answering(f"load version {version}"), ExitStack() as stack:
            found = next((v for v in self._search() if int(v.version) == version), None)
            if found is None:
                raise UnknownVersion(f"line {self.line}: no version {version}; {_valid(self._numbers())}.")
            folder = self._files(found, stack)
            if not folder.is_dir():
                raise Corrupt(f"line {self.line}: the files of version {version} are not here: {folder}.")
            if check and _checksum(folder) != found.tags.get("checksum"):
                raise Corrupt(f"line {self.line}: the files of version {version} do not match their checksum.")
            return load_state(folder, check=check), _calibration(folder)

    def _registered(
        self,
        state: State,
        calibration: Calibration,
        watermark: int,
        key: str,
        tags: dict[str, str],
        more: dict[str, str],
    ) -> int:
        """The version of a key, which is registered if it is not there. more: tags that are everline's own."""
        self._check_tags(tags)
        for known in self._search():
            if known.tags.get("key") == key:
                return int(known.version)
        return self._register(state, calibration, watermark, key, tags, more)

    def _check_tags(self, tags: dict[str, str]) -> None:
        own = set(OWN_TAGS) & set(tags)
        if own:
            raise ConfigError(f"line {self.line}: everline sets these tags itself: {', '.join(sorted(own))}.")

    def _register(
        self,
        state: State,
        calibration: Calibration,
        watermark: int,
        key: str,
        tags: dict[str, str],
        more: dict[str, str],
    ) -> int:
        """A run with its artifacts, then the version: only the last step makes it visible."""
        with tempfile.TemporaryDirectory(prefix="everline-") as scratch:
            model = Path(scratch, "model")
            checksum = _write(model, Path(scratch, "detector"), state, calibration)
            facts = _facts(state, calibration, watermark)
            own = {**facts, **more, "key": key, "checksum": checksum, "everline_version": installed("everline")}
            experiment = experiment_id(self._client, self.uri, EXPERIMENT, self.artifacts)
            run = self._client.create_run(experiment, run_name=f"{self.line}-{watermark}", tags=tags)
            with ending(self._client, run.info.run_id):
                self._log(run.info.run_id, state, facts)
                artifacts_at(self._client, self.uri, run.info.artifact_uri).log_artifacts(str(model), "model")
        self._ensure_model()
        source = f"{run.info.artifact_uri.rstrip('/')}/model"
        made = self._client.create_model_version(
            self.line, source, run.info.run_id, tags={**tags, **own}, await_creation_for=WAIT_S
        )
        return int(made.version)

    def _log(self, run_id: str, state: State, facts: dict[str, str]) -> None:
        """Parameters and metrics of a run, in one request."""
        import mlflow.entities as e

        params = {"method": state.meta["method"], **state.meta["params"]}
        metrics = {"images_learned": float(facts["images_learned"]), "state_bytes": float(state.nbytes)}
        if facts["threshold"] != "inf":  # MLflow would store the largest float instead
            metrics["threshold"] = float(facts["threshold"])
        self._client.log_batch(
            run_id,
            metrics=[e.Metric(k, v, 0, int(facts["watermark"])) for k, v in metrics.items()],
            params=[e.Param(k, str(v)) for k, v in params.items()],
            tags=[e.RunTag("line", self.line), e.RunTag("watermark", facts["watermark"])],
        )

    def _make_current(self, number: int) -> None:
        """`current` last: a crash before it loses nothing, as whoever asked for it asks again."""
        aliases = self._aliases()
        old = aliases.get(CURRENT)
        if old == number:
            return
        if PROPOSED in self._client.get_model_version(self.line, str(number)).tags:
            self._client.delete_model_version_tag(self.line, str(number), PROPOSED)
        if aliases.get(CANDIDATE) == number:
            self._client.delete_registered_model_alias(self.line, CANDIDATE)
        if old is not None:
            self._client.set_registered_model_alias(self.line, PREVIOUS, str(old))
        self._client.set_registered_model_alias(self.line, CURRENT, str(number))

    def _aliases(self) -> dict[str, int]:
        model = or_none(lambda: self._client.get_registered_model(self.line), "RESOURCE_DOES_NOT_EXIST")
        return {} if model is None else {k: int(v) for k, v in model.aliases.items()}

    def _search(self) -> Iterator[Any]:
        """MLflow's entities, newest first, page by page."""
        token = None
        while True:
            page = self._client.search_model_versions(
                f"name = '{self.line}'", max_results=PAGE, order_by=["version_number DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _numbers(self) -> Sequence[int]:
        return [int(v.version) for v in self._search()]

    def _files(self, found: Any, stack: ExitStack) -> Path:
        """Where the version's own files lie: in place if this machine has them, else a copy until `stack` ends."""
        folder = _here(located(self._client, self.uri, found.source))
        if folder is not None:
            return folder / DETECTOR
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="everline-"))
        return Path(self._client.download_artifacts(found.run_id, f"model/{DETECTOR}", scratch))

    def _ensure_model(self) -> None:
        or_none(lambda: self._client.create_registered_model(self.line), "RESOURCE_ALREADY_EXISTS")

    @cached_property
    def _client(self) -> Any:
        return connect(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        """Crosses processes without its connection."""
        return {"uri": self.uri, "line": self.line, "artifacts": self.artifacts}

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        with answering(f"line {self.line}: could not {what}", self.uri):
            yield


def _here(source: str) -> Path | None:
    """The folder of a version's files, where they are on this machine."""
    parts = urlsplit(source)
    return Path(unquote(parts.path)) if parts.scheme in ("file", "") else None


def removable(versions: "Sequence[Version]", keep: int) -> set[int]:
    """Numbers of the versions, given newest first, that go where `keep` are kept (`Versions.prune`)."""
    stay = {one.version for one in versions[:keep]}
    stay |= {one.version for one in versions if one.aliases or one.tags.get(PINNED) == "true"}
    newest = {one.created_ms // DAY_MS: one.version for one in reversed(versions)}
    return {one.version for one in versions} - stay - set(newest.values())


def _write(model: Path, folder: Path, state: State, calibration: Calibration) -> str:
    """The version's own files into `folder`, wrapped as an MLflow model in `model`; returns their checksum."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    folder.mkdir()
    save_state(folder, state)
    (folder / "calibration.json").write_text(json.dumps(calibration.to_json(), allow_nan=False), "utf-8")
    answer: list[Any] = [ColSpec(kind, name) for name, kind in ANSWER.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have an example to run
        mlflow.pyfunc.save_model(
            str(model),
            python_model=str(CODE),
            artifacts={"detector": str(folder)},
            # Explicit: to infer them MLflow would run the model in a new process, for seconds.
            pip_requirements=[f"everline=={installed('everline')}"],
            signature=ModelSignature(inputs=Schema([ColSpec("binary")]), outputs=Schema(answer)),
        )
    return _checksum(folder)


def _calibration(folder: Path) -> Calibration:
    try:
        return Calibration.from_json(json.loads((folder / "calibration.json").read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{folder}: not a calibration: {error}") from error


def _checksum(folder: Path) -> str:
    """sha256 over names and contents of the files of a version."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _facts(state: State, calibration: Calibration, watermark: int) -> dict[str, str]:
    return {
        "watermark": str(watermark),
        "images_learned": str(state.meta["images_learned"]),
        "threshold": repr(calibration.threshold),
        "calibrated": str(calibration.calibrated).lower(),
        "method": str(state.meta["method"]),
    }


def _version(entity: Any, aliases: dict[str, int]) -> Version:
    number, tags = int(entity.version), entity.tags
    return Version(
        version=number,
        aliases=tuple(sorted(name for name, target in aliases.items() if target == number)),
        watermark=int(tags.get("watermark", -1)),
        images_learned=int(tags.get("images_learned", 0)),
        threshold=float(tags.get("threshold", "inf")),
        calibrated=tags.get("calibrated") == "true",
        method=tags.get("method", ""),
        created_ms=int(entity.creation_timestamp),
        tags={k: v for k, v in tags.items() if k not in OWN_TAGS},
        key=tags.get("key", ""),
    )


def _valid(numbers: Sequence[int]) -> str:
    return f"valid: {', '.join(map(str, sorted(numbers)[-20:]))}" if numbers else "it has no version yet"
