"""A store that was moved or copied: its files are found beside its database, and a copy keeps off the original's."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, Corrupt
from everline.platform.runs import Run, record_run
from everline.platform.runs_read import run_text
from everline.platform.settings import default_tracking
from everline.platform.tracking import connect, made_at, prepare_tracking, relocate
from everline.platform.versions import Versions

from ..conftest import copied_tracking, typed
from .test_versions import publish, taught

RUN = Run(experiment="things", name="one", artifacts={"record.json": "{}"})
Move = Callable[[Path, Path], object]


def move(old: Path, new: Path) -> None:
    old.rename(new)


def copy(old: Path, new: Path) -> None:
    subprocess.run(["cp", "-a", old, new], check=True)


@pytest.fixture
def old(prepared_tracking: Path, tmp_path: Path) -> Path:
    """A store with a version of `mono`, and a run."""
    folder = tmp_path / "plant was?"
    folder.mkdir()
    copied_tracking(prepared_tracking, folder)
    uri = default_tracking(folder)
    publish(Versions(uri, "mono"), "a", level=90)
    prepare_tracking(uri, "things")
    (folder / "run").write_text(record_run(uri, RUN))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def levels(line: Versions) -> dict[int, bool]:
    """Which versions load, each with the bits of its level: 90 for the first, 91 for the second, ..."""
    return {v.version: line.load(v.version)[0].meta == taught(89 + v.version).meta for v in line.list()}


@pytest.mark.parametrize("bring", [move, copy])
def test_old_versions_load_and_new_ones_land_beside_the_database_that_is_used(
    old: Path, tmp_path: Path, bring: Move
) -> None:
    new = tmp_path / "sub" / "new"
    new.parent.mkdir()
    bring(old, new)
    before = files(old)
    assert bool(before) == (bring is copy)
    uri = default_tracking(new)
    prepare_tracking(uri)
    line = Versions(uri, "mono")
    assert publish(line, "b", level=91) == 2
    assert levels(line) == {1: True, 2: True}
    prepare_tracking(uri, "later")
    later = record_run(uri, Run(experiment="later", name="two", artifacts={"record.json": "[]"}))
    read = [run_text(uri, run, "record.json", 99) for run in ((new / "run").read_text(), later)]
    assert read == ["{}", "[]"]
    assert len(list((new / "mlartifacts").iterdir())) == 4  # two versions, two runs
    assert files(old) == before
    further = tmp_path / "further"
    move(new, further)
    moved = Versions(default_tracking(further), "mono")
    assert levels(moved) == {1: True, 2: True}
    assert run_text(moved.uri, later, "record.json", 99) == "[]"


def test_what_a_copy_prunes_stays_with_the_original(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(old, tmp_path / "new")
    before = files(old)
    line = Versions(default_tracking(tmp_path / "new"), "mono")
    for key in "bc":
        publish(line, key)
    monkeypatch.setattr("everline.platform.versions.DAY_MS", 10**18)
    assert line.prune(1) == [1]
    assert len(list((tmp_path / "new" / "mlartifacts").glob("*/artifacts/model/MLmodel"))) == 2
    assert files(old) == before


def test_files_that_did_not_come_along_are_missed_and_not_taken_from_the_original(old: Path, tmp_path: Path) -> None:
    copy(old, tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "mlartifacts")
    with pytest.raises(Corrupt, match=r"files of version 1 are not here: \S*/new/mlartifacts"):
        Versions(default_tracking(tmp_path / "new"), "mono").load(1)


def test_artifacts_elsewhere_stay_there(old: Path, tmp_path: Path) -> None:
    elsewhere = (tmp_path / "disk").as_uri()
    prepare_tracking(default_tracking(old), "far", elsewhere)
    move(old, tmp_path / "new")
    uri = default_tracking(tmp_path / "new")
    prepare_tracking(uri, "far", elsewhere)
    record_run(uri, Run(experiment="far", name="two", artifacts={"record.json": "[]"}))
    assert (tmp_path / "disk").is_dir()


def test_a_folder_of_artifacts_in_the_store_is_named_by_its_new_place(old: Path, tmp_path: Path) -> None:
    prepare_tracking(default_tracking(old), "near", (old / "files").as_uri())
    move(old, tmp_path / "new")
    prepare_tracking(default_tracking(tmp_path / "new"), "near", (tmp_path / "new" / "files").as_uri())


def test_relocated_mlflow_alone_finds_the_files(old: Path, tmp_path: Path) -> None:
    move(old, tmp_path / "new")
    uri = default_tracking(tmp_path / "new")
    assert relocate(uri) == (old.as_uri(), (tmp_path / "new").as_uri())
    client = connect(uri)
    assert [one.path for one in client.list_artifacts((tmp_path / "new" / "run").read_text())] == ["record.json"]
    assert Path(client.get_model_version_download_uri("mono", "1").removeprefix("file://"), "MLmodel").is_file()
    assert made_at(client) == (tmp_path / "new").as_uri()
    assert levels(Versions(uri, "mono")) == {1: True}


def test_a_server_cannot_be_relocated() -> None:
    with pytest.raises(ConfigError, match="nothing to relocate"):
        relocate("http://127.0.0.1:9")


def test_the_command_says_from_where_to_where(old: Path, tmp_path: Path) -> None:
    move(old, tmp_path / "new")
    (tmp_path / "fleet.yaml").write_text("store: new\nlines: {mono: {}}\n")
    said = typed("store", "relocate", "--fleet", tmp_path / "fleet.yaml")
    assert f"{old.as_uri()} -> {(tmp_path / 'new').as_uri()}" in said.out
    assert made_at(connect(default_tracking(tmp_path / "new"))) == (tmp_path / "new").as_uri()
