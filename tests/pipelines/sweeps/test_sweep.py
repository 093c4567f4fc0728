"""`everline sweep`, as it is typed: what it writes, what it refuses, how it goes on."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from everline.methods.errors import ConfigError, DataError, EverlineError, StoreError
from everline.pipelines.main import cli
from everline.pipelines.protocols.judging import untold
from everline.pipelines.protocols.trial import Trial
from everline.pipelines.sweeps.conductor import Conductor
from everline.pipelines.sweeps.record import FAILED, Item, TrialRecord
from everline.pipelines.sweeps.settings import SweepSettings
from everline.pipelines.sweeps.sweep import read_settings
from everline.pipelines.sweeps.tuning import _lost, item_of
from everline.pipelines.sweeps.work import Job

SMALL = ["--set", "size=64", "sigma=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """Two tasks with masks, of 8 + 12 images each."""
    root = tmp_path_factory.mktemp("data")
    write_disc(root / "bolt", 8, 6, 6, masks=True)
    write_disc(root / "nut", 8, 6, 6, masks=True, product=1)
    return root


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["sweep", *map(str, words)])


def swept(data: Path, out: Path, *words: object) -> dict[str, Any]:
    """What the sweep says in JSON."""
    file = out.with_suffix(".json")
    folders = [data / "bolt", data / "nut"]
    ran = call("--data", *folders, *SMALL, "--no-ray", "--out", out, "--json", file, *words)
    assert ran.exit_code == 0, (ran.output, ran.exception)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def test_a_sweep_says_what_every_trial_gave_and_what_is_best(data: Path, tmp_path: Path) -> None:
    found = swept(data, tmp_path / "out", "--method", "padim,subspace")
    assert [(t["method"], t["task"], t["status"]) for t in found["trials"]] == [
        (method, task, "complete") for method in ("padim", "subspace") for task in ("bolt", "nut")
    ]
    for trial in found["trials"]:
        assert trial["state_bytes"] > 0 and trial["ms_per_image"] > 0
        assert trial["objective"] == trial["metrics"]["image_auroc"]
        assert trial["held_out"]["metrics"]["image_auroc"] is not None
    assert found["best"]["method"] in ("padim", "subspace") and found["pareto"]
    assert found["finished"] and (tmp_path / "out/report.html").stat().st_size > 1000
    assert len(list((tmp_path / "out/trials").glob("*.png"))) == 8


def test_a_trial_gives_what_an_evaluation_of_its_images_gives(data: Path, tmp_path: Path) -> None:
    found = swept(data, tmp_path / "out", "--method", "padim", "--holdout", 0, "--seeds", 2)
    settings = read_settings(tmp_path / "out")
    for trial, task in zip(found["trials"], Job(settings, tmp_path, tmp_path).tasks(), strict=True):
        direct = Trial("online", "padim", {"size": 64, "sigma": 1.0}, seeds=2).on(task, lambda seed: untold)
        assert trial["metrics"] == pytest.approx(dict(direct.metrics), abs=1e-6)
        assert trial["state_bytes"] == direct.state_bytes


def test_a_sweep_is_in_mlflow_and_its_trials_are_below_it(data: Path, tmp_path: Path, tracking_uri: str) -> None:
    from mlflow import MlflowClient

    swept(data, tmp_path / "out", "--method", "padim,subspace", "--tracking", tracking_uri)
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("everline/sweep/online")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == 8 and all(run.info.status == "FINISHED" for run in runs)
    assert {run.data.params["method"] for run in below} == {"padim", "subspace"}
    assert all({"objective", "image_auroc", "state_bytes", "ms_per_image"} <= run.data.metrics.keys() for run in below)
    files = {one.path for one in client.list_artifacts(below[0].info.run_id)}
    assert {"result.json", "curve.svg", "heatmaps.png"} <= files


def test_features_are_computed_once_for_all_trials(data: Path, tmp_path: Path) -> None:
    shared = ["--features", tmp_path / "shared"]
    first = swept(data, tmp_path / "one", "--method", "padim,subspace", *shared)["features"]
    again = swept(data, tmp_path / "two", "--method", "coreset", *shared)["features"]
    assert (first["images"], first["there"], again["there"]) == (40, 0, 2)


def test_a_failing_trial_is_reported_and_stops_nothing(
    data: Path, write_disc: Callable[..., Path], tmp_path: Path
) -> None:
    few = write_disc(tmp_path / "few", 2, 6, 6)
    words = ["--method", "padim,subspace", "--protocol", "fewshot", "--shots", 3, "--holdout", 0, *SMALL, "--no-ray"]
    ran = call("--data", few, data / "bolt", *words, "--out", tmp_path / "out", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert ran.exit_code == 0 and found["failed"] == 2
    assert [t["status"] for t in found["trials"]] == ["failed", "complete"] * 2
    assert all("2 training images" in t["error"] for t in found["trials"][::2])
    alone = call("--data", few, *words, "--out", tmp_path / "alone")
    assert isinstance(alone.exception, DataError) and "no trial was completed" in str(alone.exception)


def test_memory_sizes_are_tried_and_enough_is_said(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    found = swept(
        data, tmp_path / "out", "--method", "lemo", "--memory", "3,10", "--markdown", page, "--mark", "memory"
    )
    assert [t["memory"] for t in found["trials"]] == [3, 3, 10, 10]
    assert [t["params"]["prototypes"] for t in found["trials"]] == [3, 3, 10, 10]
    assert found["enough"]["methods"]["lemo"]["memory"] in (3, 10)
    assert "![by memory" in page.read_text("utf-8") and "| lemo | 10 |" in page.read_text("utf-8")
    assert ElementTree.parse(tmp_path / "memory.svg").getroot().tag.endswith("svg")


def test_a_sequence_is_swept_over_its_replay_memory(data: Path, tmp_path: Path) -> None:
    words = ["--method", "padim", "--protocol", "continual", "--memory", "2,6", "--objective", "f1_per_mb"]
    found = swept(data, tmp_path / "out", *words)
    assert [(t["memory"], t["status"]) for t in found["trials"]] == [(2, "complete"), (6, "complete")]
    assert found["trials"][0]["state_bytes"] < found["trials"][1]["state_bytes"]


def test_a_stopped_sweep_goes_on_and_has_the_same_trials(data: Path, tmp_path: Path) -> None:
    words = ["--method", "padim,subspace", "--samples", 5, "--generation", 2]
    whole = swept(data, tmp_path / "whole", *words)
    out = tmp_path / "out"
    swept(data, out, *words)
    files = sorted((out / "trials").glob("*.json"))
    for file in files[1::2]:  # as if it had died before these were written
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in files[::2]}
    ran = call("--resume", "--out", out, "--no-ray", "--json", tmp_path / "again.json")
    assert ran.exit_code == 0, ran.output
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    assert [_told(t) for t in again["trials"]] == [_told(t) for t in whole["trials"]]


def test_a_sweep_goes_on_with_more_samples(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = swept(data, out, "--method", "padim", "--samples", 2)
    assert call("--resume", "--out", out, "--no-ray", "--samples", 4).exit_code == 0
    many = json.loads((out / "outcome.json").read_text("utf-8"))
    assert [_told(t) for t in many["trials"][:4]] == [_told(t) for t in few["trials"]]
    assert len(many["trials"]) == 8


def _told(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial without times, and what was held out (which hangs on what was chosen in the end)."""
    return {name: v for name, v in trial.items() if name not in ("seconds", "times", "ms_per_image", "held_out")}


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ([], ConfigError, "--method"),
        (["--method", "padim", "--memory", "many"], ConfigError, "--memory takes whole numbers"),
        (["--method", "lemo", "--memory", "1"], ConfigError, "prototypes must be in"),
        (["--method", "padym"], ConfigError, "padim"),
        (["--method", "padim", "--search", "channls", "--samples", "2"], ConfigError, "channels"),
        (["--method", "padim", "--shots", "3"], ConfigError, "--shots is no option"),
        (["--resume"], ConfigError, "no sweep to go on with"),
        (["--method", "padim", "--publish", "bolt"], ConfigError, "fleet.yaml"),
    ],
)
def test_what_is_wrong_ends_it_before_anything_is_run(
    data: Path, tmp_path: Path, words: list[str], error: type, says: str
) -> None:
    source = [] if "--resume" in words else ["--data", str(data / "bolt")]
    ran = call(*source, "--no-ray", "--out", tmp_path / "out", *words)
    assert isinstance(ran.exception, error) and says in str(ran.exception)
    assert not (tmp_path / "out/trials").exists() and not (tmp_path / "out/sweep.json").exists()


def test_masks_are_needed_for_f1(write_disc: Callable[..., Path], tmp_path: Path) -> None:
    write_disc(tmp_path / "plain", 4, 4, 4)
    ran = call("--method", "padim", "--data", tmp_path / "plain", "--objective", "f1", "--out", tmp_path / "out")
    assert isinstance(ran.exception, ConfigError) and "masks" in str(ran.exception)


def test_a_folder_with_a_sweep_is_not_begun_anew(data: Path, tmp_path: Path) -> None:
    swept(data, tmp_path / "out", "--method", "subspace")
    ran = call("--method", "padim", "--data", data / "bolt", "--out", tmp_path / "out")
    assert isinstance(ran.exception, ConfigError) and "--resume" in str(ran.exception)
    for words in (["--method", "padim"], ["--protocol", "offline"], ["--holdout", 0.2], ["--memory", 3]):
        changed = call("--resume", "--out", tmp_path / "out", *words)
        assert isinstance(changed.exception, ConfigError) and f"leave out {words[0]}" in str(changed.exception)


def test_other_images_are_another_sweep(write_disc: Callable[..., Path], tmp_path: Path) -> None:
    root = write_disc(tmp_path / "bolt", 4, 4, 4)
    ran = call("--method", "subspace", "--data", root, *SMALL, "--no-ray", "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    (root / "train/good/000.png").write_bytes((root / "train/good/001.png").read_bytes())
    again = call("--resume", "--out", tmp_path / "out", "--no-ray")
    assert isinstance(again.exception, DataError) and "other images" in str(again.exception)


# Python may have opened a file and not yet have handed it to its `with` when the signal comes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_leaves_a_page_and_can_be_gone_on_from(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

    def interrupt() -> None:
        while not list((out / "trials").glob("*.json")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    words = ["--method", "padim", "--samples", 12, "--data", data / "bolt", *SMALL]
    try:
        ran = call(*words, "--no-ray", "--out", out)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.exit_code != 0 and "--resume" in ran.output
    outcome = json.loads((out / "outcome.json").read_text("utf-8"))
    assert not outcome["finished"] and 0 < len(outcome["trials"]) < 12
    assert call("--resume", "--out", out, "--no-ray").exit_code == 0
    assert json.loads((out / "outcome.json").read_text("utf-8"))["finished"]


def test_a_trial_that_leaves_no_record_is_accounted_for(tmp_path: Path) -> None:
    settings = SweepSettings(methods=("padim",))
    job = Job(settings, tmp_path, tmp_path)
    item = Conductor(settings, ["bolt"]).next()
    assert isinstance(item, Item)
    with pytest.raises(StoreError, match="shared storage"):
        _lost(job, item, died=False)
    record = _lost(job, item, died=True)
    assert isinstance(record, TrialRecord) and record.status == FAILED and "died" in record.error


def test_an_item_comes_back_from_a_worker() -> None:
    from dataclasses import asdict

    item = Item(3, 1, "padim", None, {"sigma": 2.5}, "bolt", cutoffs={10: 0.5})
    assert item_of(json.dumps(asdict(item))) == item


@pytest.mark.slow
def test_ray_has_the_trials_that_this_process_has(ray_session: None, data: Path, tmp_path: Path) -> None:
    words = ["--method", "padim,subspace", "--samples", 4, "--generation", 2, "--data", data / "bolt", *SMALL]
    files = {}
    for where, name in (("--ray", "ray"), ("--no-ray", "here")):
        ran = call(*words, where, "--out", tmp_path / name, "--json", tmp_path / f"{name}.json")
        assert ran.exit_code == 0, (ran.output, ran.exception)
        files[name] = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    ours, theirs = ([_told(t) for t in files[name]["trials"]] for name in ("here", "ray"))
    assert ours == theirs and not (tmp_path / "ray/.tune").exists()
    assert all(issubclass(one, EverlineError) for one in (ConfigError, DataError))
