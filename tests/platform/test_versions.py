"""Versions in MLflow: what is published comes back, aliases move, and failures have our names."""

import base64
import io
import json
import math
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from everline.methods import registry
from everline.methods.detector import Detector, Scores, State
from everline.methods.errors import ConfigError, Corrupt, EverlineError, NoSpace, TrackingError, UnknownVersion
from everline.platform import versions
from everline.platform.calibration import Calibration
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import PINNED, Version, Versions, removable
from PIL import Image
from torch import Tensor

CALIBRATION = Calibration.of(np.linspace(0, 50, 99), 0.01)


@dataclass(kw_only=True, eq=False)
class Brightness(Detector):
    """Score: distance of an image's mean brightness from the mean of all learned ones."""

    name: ClassVar[str] = "brightness"

    def embed(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3))[:, None]

    def _reset(self) -> None:
        self.total = torch.zeros(1)

    def _score(self, features: Tensor) -> Scores:
        away = (features[:, 0] - self.total / self.images_learned).abs()
        return Scores(away, away[:, None, None].expand(-1, self.size, self.size))

    def _learn(self, features: Tensor) -> object:  # type: ignore[override]
        self.total = self.total + features.sum(dim=0)

    def _pack(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        self.total = tensors["total"]


def taught(level: int = 100, bits: int = 0) -> State:
    detector = Brightness(size=32, bits=bits)
    detector.learn(detector.embed(torch.full((1, 3, 32, 32), level, dtype=torch.uint8)))
    return detector.state()


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (level, level, level)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def mono(tracking_uri: str) -> Versions:
    return Versions(tracking_uri, "mono")


def publish(line: Versions, key: str, level: int = 100, watermark: int = 7) -> int:
    return line.publish(taught(level), CALIBRATION, watermark=watermark, key=key, tags={"torch": "2"})


def test_a_line_without_versions_has_none(mono: Versions) -> None:
    assert mono.current() is None
    assert mono.list() == []
    with pytest.raises(UnknownVersion, match="no version yet"):
        mono.rollback()


def test_what_is_published_comes_back_bit_for_bit(mono: Versions) -> None:
    state = taught(93)
    number = mono.publish(state, CALIBRATION, watermark=4, key="a")
    loaded, calibration = mono.load(number)
    assert loaded.meta == state.meta
    assert loaded.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in state.tensors.items())
    assert calibration == CALIBRATION


def test_list_says_what_is_known_newest_first(mono: Versions) -> None:
    assert [publish(mono, "a", watermark=3), publish(mono, "b", watermark=9)] == [1, 2]
    newest, oldest = mono.list()
    assert (newest.version, newest.aliases, newest.watermark) == (2, ("current",), 9)
    assert (oldest.version, oldest.aliases, oldest.watermark) == (1, ("previous",), 3)
    assert (newest.method, newest.images_learned, newest.calibrated) == ("brightness", 1, True)
    assert newest.threshold == CALIBRATION.threshold
    assert newest.tags == {"torch": "2"}


def test_list_reads_page_after_page(mono: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "abc":
        publish(mono, key)
    monkeypatch.setattr(versions, "PAGE", 1)
    assert [v.version for v in mono.list()] == [3, 2, 1]


def test_a_version_without_scores_has_no_threshold(mono: Versions) -> None:
    number = mono.publish(taught(), Calibration.of([], 0.01), watermark=0, key="a")
    (only,) = mono.list()
    assert math.isinf(only.threshold)
    assert not only.calibrated
    assert mono.load(number)[1].scores == ()


def test_the_same_key_is_registered_once_and_made_current(mono: Versions) -> None:
    first = publish(mono, "mono/25/ab'c")
    second = publish(mono, "b")
    assert mono.current() == second
    assert publish(mono, "mono/25/ab'c") == first
    assert mono.current() == first
    assert len(mono.list()) == 2


def test_lines_do_not_see_each_other(tracking_uri: str, mono: Versions) -> None:
    publish(mono, "a")
    poly = Versions(tracking_uri, "poly")
    assert poly.list() == []
    assert publish(poly, "a") == 1
    with pytest.raises(UnknownVersion, match="valid: 1"):
        poly.load(2)


def test_rollback_goes_one_back_and_then_where_it_is_told(mono: Versions) -> None:
    for key in "abc":
        publish(mono, key)
    assert mono.rollback() == 2
    assert mono.rollback() == 1
    with pytest.raises(UnknownVersion, match="older than 1; valid: 1, 2, 3"):
        mono.rollback()
    assert mono.rollback(3) == 3
    assert {v.version: v.aliases for v in mono.list()} == {3: ("current",), 2: (), 1: ("previous",)}


def test_rollback_to_an_unknown_version_names_the_valid_ones(mono: Versions) -> None:
    publish(mono, "a")
    with pytest.raises(UnknownVersion, match="no version 9; valid: 1"):
        mono.rollback(9)
    assert mono.current() == 1


def propose(line: Versions, key: str, level: int = 100) -> int:
    return line.propose(taught(level), CALIBRATION, watermark=7, key=key, tags={"objective": "auroc"})


def aliases(line: Versions) -> dict[int, tuple[str, ...]]:
    return {v.version: v.aliases for v in line.list()}


def test_a_proposed_version_waits_as_candidate_and_changes_nothing_else(mono: Versions) -> None:
    publish(mono, "a")
    assert mono.candidate() is None
    number = propose(mono, "b", level=150)
    assert (mono.candidate(), mono.current()) == (number, 1)
    assert torch.equal(mono.load(number)[0].tensors["total"], taught(150).tensors["total"])
    assert aliases(mono) == {1: ("current",), 2: ("candidate",)}
    assert mono.list()[0].tags == {"objective": "auroc"}


def test_a_promoted_candidate_is_none_any_more(mono: Versions) -> None:
    publish(mono, "a")
    assert mono.rollback(propose(mono, "b")) == 2
    assert aliases(mono) == {1: ("previous",), 2: ("current",)}
    assert mono.candidate() is None
    assert propose(mono, "b") == 2
    assert mono.candidate() is None  # it is current


def test_the_same_proposal_is_registered_once_and_another_takes_the_alias(mono: Versions) -> None:
    assert propose(mono, "a") == propose(mono, "a") == 1
    assert propose(mono, "b") == 2
    assert aliases(mono) == {1: (), 2: ("candidate",)}


def test_going_one_back_passes_over_what_was_never_current(mono: Versions) -> None:
    publish(mono, "a")
    propose(mono, "b")
    publish(mono, "c")
    assert mono.target() == 1
    assert mono.rollback(2) == 2
    publish(mono, "d")
    assert mono.target() == 3
    mono.rollback(3)
    assert mono.target() == 2  # by now it was


def test_further_tags_can_be_given_later_but_not_everlines_own(mono: Versions) -> None:
    number = publish(mono, "a")
    mono.tag(number, {"gate": "hold", "gate_reasons": "x" * 6000})
    mono.tag(number, {"gate": "promote"})
    tags = mono.list()[0].tags
    assert (tags["gate"], len(tags["gate_reasons"]), tags["torch"]) == ("promote", 5000, "2")
    with pytest.raises(ConfigError, match="watermark"):
        mono.tag(number, {"watermark": "1"})
    with pytest.raises(UnknownVersion, match="no version 9"):
        mono.tag(9, {"gate": "hold"})


def test_a_changed_byte_is_noticed(mono: Versions, tmp_path: Path) -> None:
    number = publish(mono, "a")
    (file,) = tmp_path.glob("mlartifacts/**/state.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Corrupt, match="version 1"):
        mono.load(number)


def test_a_lost_artifact_is_noticed(mono: Versions, tmp_path: Path) -> None:
    number = publish(mono, "a")
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(Corrupt, match="version 1"):
        mono.load(number)


def test_a_version_holds_no_pickle(mono: Versions, tmp_path: Path) -> None:
    publish(mono, "a")
    names = {p.name for p in tmp_path.glob("mlartifacts/**/*") if p.is_file()}
    assert {"state.safetensors", "detector.json", "calibration.json", "versions_pyfunc.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]


def test_a_full_disk_is_named_and_nothing_is_registered(mono: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(versions, "save_state", full)
    with pytest.raises(NoSpace, match="mono"):
        publish(mono, "a")
    assert mono.list() == []


def test_a_failure_half_way_registers_nothing(mono: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ConnectionResetError("artifact store went away")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifacts", broken)
        with pytest.raises(TrackingError, match="went away"):
            publish(mono, "a")
    assert mono.list() == []
    assert publish(mono, "a") == 1


def test_own_tags_cannot_be_given(mono: Versions) -> None:
    with pytest.raises(ConfigError, match="watermark"):
        mono.publish(taught(), CALIBRATION, watermark=1, key="a", tags={"watermark": "2"})


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "x' OR '1'='1", "-a", "a" * 65])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name has"):
        Versions("sqlite:///x.db", name)


@pytest.mark.parametrize("uri", ["./mlruns", "sqlite://", "sqlite:///:memory:", "mysql://me:secret@host/db"])
def test_an_address_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="expected sqlite:///") as caught:
        prepare_tracking(uri)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_told_of_without_the_password() -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+pg8000") as caught:
        prepare_tracking("postgresql+nodriver://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_a_tracking_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    uri = "http://me:secret@127.0.0.1:9"
    for call in (Versions(uri, "mono").current, Versions(uri, "mono").list, lambda: prepare_tracking(uri)):
        with pytest.raises(TrackingError) as caught:
            call()
        assert "secret" not in str(caught.value)


def test_a_missing_database_is_a_tracking_error_and_stays_missing(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no such database"):
        Versions(f"sqlite:///{tmp_path}/none.db", "mono").current()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_a_tracking_error(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"not a database at all" * 100)
    for call in (Versions(f"sqlite:///{file}", "mono").current, lambda: prepare_tracking(f"sqlite:///{file}")):
        with pytest.raises(TrackingError, match="not a database"):
            call()


def test_a_folder_that_cannot_be_made_is_a_tracking_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="prepare"):
        prepare_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_preparing_twice_changes_nothing_and_sets_write_ahead_logging(tracking_uri: str, mono: Versions) -> None:
    publish(mono, "a")
    prepare_tracking(tracking_uri)
    assert mono.current() == 1
    with closing(sqlite3.connect(tracking_uri.removeprefix("sqlite:///"))) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_versions_cross_processes_and_their_errors_too(mono: Versions) -> None:
    publish(mono, "a")
    assert pickle.loads(pickle.dumps(mono)).current() == 1
    with pytest.raises(EverlineError) as caught:
        mono.rollback(5)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_wrapper_answers_for_bytes_and_for_base64(mono: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc
    import pandas as pd

    monkeypatch.setitem(registry.METHODS, Brightness.name, Brightness)
    mono.publish(taught(100, bits=12), CALIBRATION, watermark=7, key="a", tags={"torch": "2"})
    source = next(v.source for v in mono._search())
    model = mlflow.pyfunc.load_model(source)
    camera = io.BytesIO()
    Image.fromarray(np.full((30, 40), 190 * 4095 // 255, np.uint16)).save(camera, "PNG")
    answers = model.predict([png(100), camera.getvalue(), png(190)])
    assert list(answers["score"]) == [0.0, 90.0, 90.0]
    assert list(answers["verdict"]) == ["pass", "reject", "reject"]
    text = pd.DataFrame({"image": [base64.b64encode(png(190)).decode()]})
    assert model.predict(text).to_dict("records") == answers.tail(1).to_dict("records")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_versions import Brightness, png, registry
registry.METHODS[Brightness.name] = Brightness
import mlflow
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model("models:/mono@current")
print(model.predict([png(120)]).to_json(orient="records"))
"""


def test_mlflow_alone_loads_the_current_version_in_a_fresh_process(tracking_uri: str, mono: Versions) -> None:
    publish(mono, "a", level=10)
    publish(mono, "b", level=100)
    here = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, here, tracking_uri], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert answer == {"score": 20.0, "p_value": pytest.approx(0.6), "threshold": 50.0, "verdict": "pass"} | {
        "calibrated": True
    }


def test_publishing_is_quiet(mono: Versions, capfd: pytest.CaptureFixture[str]) -> None:
    publish(mono, "a")
    mono.load(1)
    assert capfd.readouterr() == ("", "")


DAY = 86_400_000


def made(number: int, day: float, *aliases: str, pinned: str = "") -> Version:
    tags = {PINNED: pinned} if pinned else {}
    return Version(number, aliases, number, number, 1.0, True, "lemo", int(day * DAY), tags)


def test_old_versions_go_but_for_those_in_use_pinned_ones_and_one_a_day() -> None:
    known = [
        made(9, 3.9), made(8, 3.8), made(7, 3.7, "previous"), made(6, 3.6),
        made(5, 2.9), made(4, 2.8, pinned="true"), made(3, 2.7, pinned="false"),
        made(2, 1.5), made(1, 1.4, "candidate"),
    ]  # fmt: skip
    assert removable(known, 2) == {6, 3}
    assert removable(known, 9) == removable([], 1) == set()


def test_a_version_that_goes_takes_its_files_along_and_the_newest_stay(mono: Versions) -> None:
    for n in range(5):
        publish(mono, f"k{n}")
    folders = {int(one.version): Path(urlsplit(one.source).path) for one in mono._search()}
    mono.pin(1)
    assert mono.prune(0) == []
    assert mono.prune(2) == [2, 3]
    assert [one.version for one in mono.list()] == [5, 4, 1]
    assert {number for number, folder in folders.items() if folder.exists()} == {1, 4, 5}
    assert publish(mono, "k5") == 6
    mono.pin(1, False)
    assert mono.prune(2) == [1, 4]  # 5 is the previous one


def test_a_folder_that_is_no_version_of_ours_is_left_alone(mono: Versions, tmp_path: Path) -> None:
    """Whoever may write to MLflow could name any folder as a version's files."""
    for n in range(4):
        publish(mono, f"k{n}")
    (tmp_path / "own.txt").write_text("x")
    run = mono._client.create_run("0").info.run_id
    mono._client.create_model_version("mono", str(tmp_path), run)
    publish(mono, "k5")
    assert 5 in mono.prune(1)
    assert (tmp_path / "own.txt").exists()
