"""Versions in a real Postgres, with their files in a real S3: the same as in sqlite and on disk."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
import torch
from everline.methods.detector import State
from everline.methods.errors import ConfigError, TrackingError, UnknownVersion
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.settings import parse_fleet
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions

CALIBRATION = Calibration.of(range(99), 0.01)
pytestmark = pytest.mark.slow
PASSWORD = ("se:cr@t", "se%3Acr%40t", "cr%40t")


@pytest.fixture(scope="module")
def database(postgres: Any) -> str:
    """A new database of that server; yields its address."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    name = f"t{uuid4().hex[:8]}"
    with create_engine(postgres.uri(), isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as admin:
        admin.execute(text(f"CREATE DATABASE {name}"))
    return str(postgres.uri(name))


@pytest.fixture
def place(
    database: str, s3_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Address of the database, and of a prefix of a bucket; the current folder must stay empty."""
    boto3.client("s3").create_bucket(Bucket="versions")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    prepare_tracking(database, artifacts="s3://versions/here")
    yield database, "s3://versions/here"
    assert not list(elsewhere.iterdir()), "MLflow left something in the current folder"


def taught(seed: int) -> State:
    detector = build("padim", size=64, seed=seed)
    detector.learn(detector.embed(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)))
    return detector.state()


def names() -> list[str]:
    return [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="versions").get("Contents", [])]


def test_versions_are_published_loaded_rolled_back_and_there_after_a_restart(
    place: tuple[str, str], postgres: Any
) -> None:
    versions = Versions(place[0], "mono", place[1])
    states = [taught(seed) for seed in (1, 2)]
    for n, state in enumerate(states, 1):
        assert versions.publish(state, CALIBRATION, watermark=n, key=f"k{n}") == n
    assert any(name.startswith("here/") and name.endswith("state.safetensors") for name in names())
    postgres.stop()
    with pytest.raises(TrackingError) as caught:
        versions.publish(states[0], CALIBRATION, watermark=3, key="k3")
    assert not any(secret in str(caught.value) for secret in PASSWORD)
    postgres.start()
    for one in (versions, Versions(place[0], "mono")):  # with the connection of before, and with a new one
        loaded, calibration = one.load(2)
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in states[1].tensors.items())
        assert calibration == CALIBRATION
    assert (versions.rollback(), versions.current()) == (1, 1)
    assert [v.aliases for v in versions.list()] == [("previous",), ("current",)]
    with pytest.raises(UnknownVersion):
        versions.rollback(9)


WRITERS = """
import sys
from multiprocessing import get_context

import torch
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions

uri, artifacts, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
detector = build("padim", size=64, seed=1)
detector.learn(detector.embed(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)))


def write(line):
    torch.set_num_threads(1)
    prepare_tracking(uri, artifacts=artifacts)
    versions = Versions(uri, line, artifacts)
    calibration = Calibration.of(range(99), 0.01)
    return [versions.publish(detector.state(), calibration, watermark=n, key=f"{n}") for n in range(3)]


if __name__ == "__main__":
    with get_context("fork").Pool(count) as pool:
        assert pool.map(write, [f"line{n}" for n in range(count)], chunksize=1) == [[1, 2, 3]] * count
"""


def test_processes_that_publish_at_once_lose_nothing(
    place: tuple[str, str], tmp_path: Path, sized: Callable[..., Any]
) -> None:
    count = sized(4, 8)
    script = tmp_path / "writers.py"
    script.write_text(WRITERS)
    done = subprocess.run([sys.executable, script, *place, str(count)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(Versions(place[0], f"line{n}").current() == 3 for n in range(count))


def test_artifacts_that_go_elsewhere_already_are_told_of(place: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="for good") as caught:
        prepare_tracking(place[0], artifacts="s3://versions/there")
    assert not any(secret in str(caught.value) for secret in PASSWORD)


def test_runs_go_beside_the_versions(place: tuple[str, str]) -> None:
    from everline.platform.tracking import connect

    prepare_tracking(place[0], "evaluations/online")
    found = connect(place[0]).get_experiment_by_name("evaluations/online")
    assert found.artifact_location == "s3://versions/here-evaluations-online"


def test_an_artifact_store_that_is_away_is_a_tracking_error(
    place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact import s3_artifact_repo

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    with pytest.raises(TrackingError):
        Versions(place[0], "away", place[1]).publish(taught(1), CALIBRATION, watermark=1, key="k")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    assert Versions(place[0], "away").list() == []


def test_a_wrong_password_is_a_tracking_error_without_it(postgres: Any) -> None:
    with pytest.raises(TrackingError) as caught:
        prepare_tracking(postgres.uri().replace("cr%40t", "cr%40tx"), artifacts="s3://versions/x")
    assert not any(secret in str(caught.value) for secret in PASSWORD)


def test_a_database_without_artifacts_says_what_is_missing(postgres: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="artifacts: s3://"):
        prepare_tracking(postgres.uri())
    assert not any(secret in "".join(capfd.readouterr()) for secret in PASSWORD)


def test_a_fleet_names_both_and_shows_no_password(tmp_path: Path) -> None:
    plain = {"tracking": "postgresql+pg8000://me:se%3Acr%40t@db/x", "artifacts": "s3://b/p/", "lines": {"a": {}}}
    fleet = parse_fleet(plain, tmp_path)
    assert (fleet.artifacts, fleet.tracking) == ("s3://b/p", plain["tracking"])
    assert not any(secret in repr(fleet) for secret in PASSWORD)
