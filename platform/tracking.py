"""The door to MLflow's tracking store: its address, making it ready, connecting, and its errors under our names.

What lies behind the door: versions of lines (versions.py) and runs of evaluations (runs.py).
"""

import logging
import os
import re
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import EDQUOT, ENOSPC
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..methods.errors import ConfigError, NoSpace, TrackingError
from .volume import PRIVATE, sync_folder

EXPERIMENT = "everline"  # the runs behind versions
NOWHERE = "file:///nonexistent"  # for artifacts that come without an experiment of everline's: there are none
QUIET = {  # defaults; what the user has set wins
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else it copies a project's files from the current folder
    # How long a call without an answer may take, all in one place; a line asks `reachable` first, and then less often.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 2 + 4 s; 7 would hold a line's actor for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "120",
    "AWS_DEFAULTS_MODE": "standard",  # of boto3: 3 s to connect and 3 tries, instead of 60 s and 5
}
PROBE_S = 3.0
DATABASE = re.compile(r"postgresql(\+\w+)?://.")
SQLITE = "sqlite:///"
FILES = "mlartifacts"  # folder beside a sqlite file, of the artifacts
PLACES = (  # columns of MLflow's tables that say where artifacts lie
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
BESIDE = ("-journal", "-wal", "-shm")  # endings of the files that sqlite keeps beside a database


def prepare_tracking(uri: str, experiment: str = EXPERIMENT, artifacts: str = "") -> None:
    """Makes a tracking store ready, once, before workers start, with an experiment in it; harmless when it is.

    sqlite: creates folders and schema (up to 6 s), sets write-ahead logging; artifacts go beside the file. What is
    made or upgraded appears whole or not at all.
    Postgres: creates the schema. Servers: checks that one answers. artifacts: where they go instead, s3://BUCKET/PREFIX
    or another address that MLflow takes; Postgres needs one.
    Raises TrackingError, and ConfigError (any other kind of address; artifacts that go elsewhere already).
    """
    _quiet()
    with answering("could not prepare the tracking store", uri):
        path = sqlite_path(uri)
        if path is not None:
            path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            with _one_at_a_time(path):
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                if _holds_nothing(path):
                    _make_sqlite(path.resolve())
                _check_sqlite(path)
                _upgrade_sqlite(path)
                SqlAlchemyStore(_for_mlflow(uri), _artifacts(path))
        elif DATABASE.match(uri):
            reachable(uri)
            _make_schema(uri)
        experiment_id(connect(uri), uri, experiment, artifacts)


def connect(uri: str) -> Any:
    """MLflow's client. Raises TrackingError for a database that is not there, ConfigError (a wrong address)."""
    _quiet()
    from mlflow import MlflowClient

    path = sqlite_path(uri)
    if path is not None:  # MLflow would try for two minutes, or make an empty one
        if not path.is_file():
            raise TrackingError(f"{uri}: no such database; make it with `prepare_tracking`.")
        _check_sqlite(path)
    elif DATABASE.match(uri):  # the same two minutes
        reachable(uri)
    uri = _for_mlflow(uri)
    return MlflowClient(uri, uri)


def reachable(uri: str) -> None:
    """Returns where a server or database answers within seconds; MLflow itself would go on trying.

    Raises TrackingError, ConfigError (a driver that is not installed).
    """
    _quiet()
    with answering("could not reach the tracking store", uri):
        if DATABASE.match(uri):
            _check_database(uri)
        elif sqlite_path(uri) is None:
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            quick: dict[str, Any] = {"max_retries": 0, "timeout": PROBE_S, "raise_on_status": False}
            http_request(get_default_host_creds(uri), "/health", "GET", **quick)


def experiment_id(client: Any, uri: str, name: str, artifacts: str = "") -> str:
    """The id of an experiment, which is made if it is not there; `artifacts` as of `prepare_tracking`.

    Raises TrackingError for a deleted one, ConfigError where its artifacts go elsewhere.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        place = _place(client, uri, name, artifacts)
        made = or_none(lambda: client.create_experiment(name, artifact_location=place), "RESOURCE_ALREADY_EXISTS")
        if made is not None:
            return made
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"{public(uri)}: the experiment {name!r} was deleted, but not for good; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or empty MLflow's bin with `mlflow gc`."
        )
    if artifacts and (kept := located(client, uri, found.artifact_location)) != artifacts:
        raise ConfigError(
            f"artifacts: {public(artifacts)}: the experiment {name!r} at {public(uri)} keeps them in "
            f"{public(kept)}, for good; leave that setting out, or name another tracking store."
        )
    return found.experiment_id


def located(client: Any, uri: str, recorded: str) -> str:
    """Return where artifacts are now that were recorded at an address.

    What lay below the folder of a sqlite file when that was made lies below its folder today: a folder that was moved,
    or is seen under another name, has all its files, and a copy reads and writes its own.
    """
    path = sqlite_path(uri)
    made = None if path is None else made_at(client)
    if path is None or made is None or not recorded.startswith(f"{made}/"):
        return recorded
    return path.resolve().parent.as_uri() + recorded.removeprefix(made)


def made_at(client: Any) -> str | None:
    """Return the address of the folder that a sqlite file was made in; None where another program made it."""
    first = or_none(
        lambda: client.get_experiment("0"), "RESOURCE_DOES_NOT_EXIST"
    )  # MLflow's own, made with the tables
    end = f"/{FILES}/0"
    return first.artifact_location.removesuffix(end) if first and first.artifact_location.endswith(end) else None


def relocate(uri: str) -> tuple[str, str]:
    """Write into a sqlite file where its artifacts lie today, for MLflow's own pages; returns the old and new folder.

    everline itself finds them without. Raises TrackingError, ConfigError (a server, or a file that another program
    made).
    """
    with answering("could not relocate the tracking store", uri):
        path = sqlite_path(uri)
        made = None if path is None else made_at(connect(uri))
        if path is None or made is None:
            raise ConfigError(f"{public(uri)}: not a sqlite file that everline made; there is nothing to relocate.")
        now = path.resolve().parent.as_uri()
        with closing(sqlite3.connect(path, timeout=20)) as database, database:
            for table, column in PLACES:
                below = f"substr({column}, 1, length(:made) + 1) = :made || '/'"
                change = f"UPDATE {table} SET {column} = :now || substr({column}, length(:made) + 1) WHERE {below}"  # noqa: S608
                database.execute(change, {"made": made, "now": now})
    return made, now


def artifacts_at(client: Any, uri: str, recorded: str) -> Any:
    """MLflow's way to list, read, write and remove the artifacts that were recorded at an address."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(located(client, uri, recorded), tracking_uri=uri)


@contextmanager
def ending(client: Any, run_id: str) -> Iterator[None]:
    """While a run is written: afterwards it is FINISHED, or FAILED where that raised."""
    try:
        yield
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


@contextmanager
def answering(what: str, uri: str) -> Iterator[None]:
    """Whatever MLflow, its database driver or the disk raise, as an error of ours: `what` could not be done."""
    _quiet()
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise ConfigError(
            f"tracking address {public(uri)!r}: its driver is not installed here ({error}); install it, or name one "
            "that is: postgresql+pg8000://... for pg8000."
        ) from error
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise NoSpace(f"{what}: the disk is full.") from error
        raise TrackingError(f"{what} at {public(uri)}: {_first_line(error)}") from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, BotoCoreError, ClientError, Boto3Error) as error:
        raise TrackingError(f"{what} at {public(uri)}: {_first_line(error)}") from error


def or_none(call: Any, code: str) -> Any:
    """What `call` returns, or None where MLflow answers with the error `code`."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code == code:
            return None
        raise


def public(text: str) -> str:
    """A text with addresses in it, without their passwords."""
    return re.sub(r"\b(password=)[^&\s]*", r"\1***", re.sub(r"(?<=:)//[^/\s]*@", "//***@", text))


def _check_database(uri: str) -> None:
    """Whether it lets us in, without the driver's patience: a host that is silent is none."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    url = make_url(uri)
    engine = create_engine(url, poolclass=NullPool)
    with socket.create_connection((url.host or "localhost", url.port or 5432), PROBE_S):
        pass
    with engine.connect():
        pass


def _make_schema(uri: str) -> None:
    """Tables of a database that may be empty; one process at a time, as they would trip over each other."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    with create_engine(uri, poolclass=NullPool).connect() as one, one.begin():
        one.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 3_817_452})
        SqlAlchemyStore(uri, NOWHERE)


def _check_sqlite(path: Path) -> None:
    """Whether it is a database that can be written; with write-ahead logging, which stays on, once set."""
    with closing(sqlite3.connect(path, timeout=20)) as database:
        database.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Two processes that migrate one sqlite file would trip over each other."""
    import fcntl

    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _quiet() -> None:
    """Imports mlflow (1 to 3 s, so not before it is needed) without telemetry, log lines or warnings of its own."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        import mlflow.store.model_registry.dbmodels.models
        import mlflow.store.tracking.dbmodels.models  # noqa: F401
        from sqlalchemy.orm import configure_mappers

        configure_mappers()  # MLflow's tables; else done, with warnings, at the first query


def sqlite_uri(path: Path) -> str:
    """Return the address of a database file. Raises ConfigError for a name that no address can hold."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{str(path)!r}: a tracking database needs a path in UTF-8; take another folder.") from None
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a sqlite address, None for a server's or Postgres's. Raises ConfigError for any other."""
    if uri.startswith(("http://", "https://")) or DATABASE.match(uri):
        return None
    path, mark, options = uri.removeprefix(SQLITE).partition("?")
    if uri == uri.removeprefix(SQLITE) or path in ("", ":memory:"):
        raise ConfigError(
            f"tracking address {public(uri)!r}: expected sqlite:///FOLDER/FILE.db, "
            "postgresql+pg8000://USER@HOST/DATABASE or the http(s):// address of an MLflow server."
        )
    if mark and not re.fullmatch(r"\w+=[^/&]*(&\w+=[^/&]*)*", options):
        raise ConfigError(
            f"tracking address {public(uri)!r}: after '?' come options, NAME=VALUE; in a file's name write '?' as %3F "
            "and '%' as %25."
        )
    return Path(unquote(path))


def _for_mlflow(uri: str) -> str:
    """Return the address with the driver named: else MLflow makes a folder of the name as it is written, with %3F."""
    return f"sqlite+pysqlite{uri.removeprefix('sqlite')}" if uri.startswith(SQLITE) else uri


def _holds_nothing(path: Path) -> bool:
    """Whether there is no database yet, or one of which only tables were made: the making was interrupted."""
    if not path.exists():
        return True
    with closing(sqlite3.connect(path, timeout=20)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return tables <= {"alembic_version"}  # else it is another program's
        return not database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone()  # MLflow makes the first at once


def _make_sqlite(path: Path) -> None:
    """Make a database beside its place and rename it: one that is there is whole."""
    from mlflow.store.db.utils import _initialize_tables

    with _half(path) as half:
        _initialize_tables(_alone(half))
        _remove(path)  # what an interrupted making has left, and its journal
        half.replace(path)
        sync_folder(path.parent)


def _upgrade_sqlite(path: Path) -> None:
    """Give an older MLflow's database the tables of this one: in a copy, which then is written back as one change.

    Raises TrackingError where somebody writes to the database meanwhile, or a newer MLflow made it.
    """
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_latest_schema_revision, _upgrade_db

    with closing(sqlite3.connect(path, timeout=20)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            raise TrackingError(f"{path}: not a database of MLflow; name another file.")
        known = database.execute("SELECT version_num FROM alembic_version").fetchone()
        if known == (_get_latest_schema_revision(),):
            return
        with _half(path) as half:
            version = database.execute("PRAGMA data_version").fetchone()
            with closing(sqlite3.connect(half)) as copy:
                database.backup(copy)
            try:
                _upgrade_db(_alone(half))
            except CommandError as error:
                raise TrackingError(f"{path}: not of this version of MLflow or an older one: {error}") from error
            with closing(sqlite3.connect(half)) as copy:
                if database.execute("PRAGMA data_version").fetchone() != version:
                    raise TrackingError(
                        f"{path}: made by an older MLflow, and written to while it was upgraded; it is as it was. End "
                        "what writes to it (`everline down`), and try again."
                    )
                copy.backup(database)


def _alone(path: Path) -> Any:
    """Return an engine of a file that nobody else has; with each connection's end its journal is gone."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(_for_mlflow(sqlite_uri(path)), poolclass=NullPool)


@contextmanager
def _half(path: Path) -> Iterator[Path]:
    """Name a file beside `path` that is nobody else's; what an earlier try has left of it is removed."""
    half = path.with_name(f".{path.name}.half")
    _remove(half)
    try:
        yield half
    finally:
        _remove(half)


def _remove(path: Path) -> None:
    for end in ("", *BESIDE):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _artifacts(path: Path) -> str:
    """Beside the sqlite file, wherever the process runs."""
    return (path.resolve().parent / FILES).as_uri()


def _place(client: Any, uri: str, name: str, artifacts: str) -> str | None:
    """Where an experiment's artifacts shall go. In a database without a server: beside those of the versions."""
    if artifacts or not DATABASE.match(uri):
        path = sqlite_path(uri)
        if artifacts or path is None:
            return artifacts or None
        made = made_at(client)
        return f"{made}/{FILES}" if made else _artifacts(path)  # recorded as all others are: see `located`
    versions = client.get_experiment_by_name(EXPERIMENT)
    if versions is None:
        raise ConfigError(
            f"{public(uri)}: a database does not say where artifacts go; add to the fleet file, for example, "
            "artifacts: s3://BUCKET/PREFIX"
        )
    return f"{versions.artifact_location.rstrip('/')}-{name.replace('/', '-')}"


def _first_line(error: Exception) -> str:
    return public((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
