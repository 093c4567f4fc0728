"""The tracking database: made and upgraded whole or not at all, and found whatever its folder is called."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError, TrackingError
from everline.platform.settings import absolute_tracking, default_tracking, parse_fleet
from everline.platform.tracking import _holds_nothing, connect, prepare_tracking, public, sqlite_path, sqlite_uri
from everline.platform.versions import Versions

from tests.conftest import copied_tracking

from .test_versions import publish, taught

NASTY = "was? Line%20B #ü;&=+ [x]'\"\\"
AWKWARD = ["was?", "Line%20B", "a#b", "ü x", "50%", "%3F", "a@b", "x=1&y", NASTY]


class Ended(BaseException):
    """Stands for what ends a process: Ctrl-C, or a kill."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"mlflow.db.lock"}


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def end_in(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[Any], Any] = lambda engine: None) -> None:
    """Has MLflow's function end the process, once `before` was called."""

    def ended(engine: Any) -> None:
        before(engine)
        raise Ended

    monkeypatch.setattr(f"mlflow.store.db.utils.{name}", ended)


def of_an_older_mlflow(path: Path) -> None:
    """Makes a database that lacks the last change of MLflow's tables, with an experiment in it."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import InitialBase, _get_alembic_config
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    last = ScriptDirectory.from_config(config).get_revision("head")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, last.down_revision)
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "INSERT INTO experiments (name, lifecycle_stage, artifact_location) VALUES ('old', 'active', 'x')"
        )
        database.commit()


def test_a_database_whose_making_was_interrupted_is_not_there_and_is_made_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    with monkeypatch.context() as patched:
        end_in(patched, "_upgrade_db")
        with pytest.raises(Ended):
            prepare_tracking(sqlite_uri(path))
    assert names(tmp_path) == set()
    (tmp_path / ".mlflow.db.half").write_bytes(b"of a process that was killed")
    (tmp_path / ".mlflow.db.half-journal").write_bytes(b"of a process that was killed")
    with closing(sqlite3.connect(path)) as database:  # what an earlier everline left in its place
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
    prepare_tracking(sqlite_uri(path))
    assert Versions(sqlite_uri(path), "mono").list() == []
    assert not [name for name in names(tmp_path) if "half" in name]


def test_a_file_without_a_byte_is_taken_for_a_database_that_was_not_made(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert _holds_nothing(tmp_path / "mlflow.db")


def test_a_newer_mlflows_database_is_refused_and_left_as_it_is(tracking_uri: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    before = rows(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match="not of this version of MLflow"):
        prepare_tracking(tracking_uri)
    assert rows(tmp_path / "mlflow.db") == before


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE parts (id INTEGER)")
    before = rows(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match="not a database of MLflow"):
        prepare_tracking(sqlite_uri(tmp_path / "mlflow.db"))
    assert rows(tmp_path / "mlflow.db") == before


def test_two_that_start_at_once_make_one(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "new" / "mlflow.db")
    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare_tracking, [uri, uri, uri]))
    assert [one.name for one in connect(uri).search_experiments()] == ["everline", "Default"]


def test_an_older_mlflows_database_is_upgraded_as_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db.utils import _upgrade_db

    path = tmp_path / "mlflow.db"
    of_an_older_mlflow(path)
    before = rows(path)
    with monkeypatch.context() as patched:
        end_in(patched, "_upgrade_db", _upgrade_db)
        with pytest.raises(Ended):
            prepare_tracking(sqlite_uri(path))
    assert rows(path) == before

    def written_to(engine: Any) -> None:
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE experiments SET artifact_location = 'y'")
            other.commit()
        _upgrade_db(engine)

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.store.db.utils._upgrade_db", written_to)
        with pytest.raises(TrackingError, match="written to while"):
            prepare_tracking(sqlite_uri(path))
    prepare_tracking(sqlite_uri(path))
    (old,) = (one for one in connect(sqlite_uri(path)).search_experiments() if one.name == "old")
    assert old.artifact_location == "y"
    assert not [name for name in names(tmp_path) if "half" in name]


@pytest.mark.parametrize("name", AWKWARD)
def test_an_address_leads_to_the_file_that_it_is_of(name: str) -> None:
    from sqlalchemy import make_url

    path = Path("/data") / name / "mlflow.db"
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    assert make_url(uri).database == str(path)
    assert absolute_tracking(uri, Path("/")) == uri
    assert absolute_tracking("sqlite:///m.db", path.parent) == sqlite_uri(path.with_name("m.db"))
    assert parse_fleet({"lines": {"a": {}}}, path.parent).tracking == default_tracking(path.parent / "everline-data")
    assert public(uri) == uri


def test_a_store_works_in_a_folder_of_any_name_and_touches_no_other(prepared_tracking: Path, tmp_path: Path) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    copied_tracking(prepared_tracking, folder)
    uri = default_tracking(folder)
    prepare_tracking(uri)
    line = Versions(uri, "mono")
    assert line.load(publish(line, "a", level=93))[0].meta == taught(93).meta
    assert names(tmp_path) == {NASTY}
    assert {"mlflow.db", "mlartifacts"} <= names(folder)


def test_a_question_mark_that_begins_no_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="write '\\?' as %3F"):
        sqlite_path("sqlite:////data/was?/mlflow.db")
    assert sqlite_path("sqlite:////data/mlflow.db?timeout=30") == Path("/data/mlflow.db")


def test_a_path_that_is_not_in_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        default_tracking(Path("/data/\udcff"))
