"""`everline evaluate`: options of protocols, several seeds, as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from everline.methods.errors import ConfigError
from everline.pipelines.records.results import read_result
from everline.pipelines.runs.evaluate import evaluate

SMALL = ["--method", "padim", "--size", "64", "--set", "sigma=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """A task of 6 images to learn, 3 good and 4 defective ones to judge, without masks."""
    return write_disc(tmp_path_factory.mktemp("data") / "disc", 6, 3, 4)


def call(*words: object) -> Result:
    return CliRunner().invoke(evaluate, [str(word) for word in words])


def test_shots_and_seeds_are_in_the_record(data: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "r.json", "--scores", tmp_path / "s.npz"]
    ran = call("offline", "--shots", 2, "--seed", 5, "--seeds", 2, "--data", data, *SMALL, *files)
    assert ran.exit_code == 0, ran.output
    assert "seeds 5 to 6" in ran.stdout and "deviation" in ran.stdout
    record = read_result(tmp_path / "r.json")
    assert (record.options, record.seeds, record.tasks[0].n_train) == ({"shots": 2}, [5, 6], 2)
    assert [run.seed for run in record.tasks[0].runs] == [5, 6]
    assert record.deviation is not None and record.tasks[0].deviation is not None
    assert record.deviation["image_auroc"] == pytest.approx(record.tasks[0].deviation["image_auroc"])
    with np.load(tmp_path / "s.npz") as kept:
        assert {"disc/seed5/scores", "disc/seed6/scores"} < set(kept.files)


def test_a_seed_of_several_is_the_run_with_that_seed(data: Path) -> None:
    start = ["offline", "--shots", 1, "--data", data, *SMALL, "--json", "-"]
    several = json.loads(call(*start, "--seeds", 2).stdout)["tasks"][0]
    alone = json.loads(call(*start, "--seed", 1).stdout)["tasks"][0]
    assert several["runs"][1]["metrics"] == alone["metrics"] and "runs" not in alone


def test_an_option_of_another_protocol_is_refused(data: Path) -> None:
    refused = call("online", "--shots", 2, "--data", data, *SMALL).exception
    assert isinstance(refused, ConfigError)
    assert "--shots is no option of the protocol online; its options are --crop" in str(refused)


def test_drifts_and_their_levels_are_in_the_record(data: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "r.json", "--scores", tmp_path / "s.npz"]
    ran = call("drift", "--drift", "noise=30", "cast", "--data", data, *SMALL, *files)
    assert ran.exit_code == 0, ran.output
    assert "mean of the drifts" in ran.stdout and "not" in ran.stdout
    record = read_result(tmp_path / "r.json")
    assert record.options == {"drift": {"noise": 30.0, "cast": 30.0}} and record.offline is not None
    assert [part.name for part in record.tasks[0].parts] == ["none", "noise", "cast"]
    with np.load(tmp_path / "s.npz") as kept:
        assert {"disc/scores", "disc/noise/offline/scores", "disc/noise/online/scores"} < set(kept.files)


def test_a_stream_of_few_shots_is_typed_with_its_options(data: Path, tmp_path: Path) -> None:
    words = ["--shots", 2, "--ratio", 2, "--session", 5, "--batch", 2, "--seeds", 2, "--json", tmp_path / "r.json"]
    ran = call("fewshot", "--data", data, *SMALL, *words)
    assert ran.exit_code == 0, ran.output
    assert "mean of the sessions" in ran.stdout and "whole stream" in ran.stdout and "stream" in ran.stderr
    record = read_result(tmp_path / "r.json")
    assert record.options == {"shots": 2, "ratio": 2.0, "session": 5, "batch": 2}
    assert (record.tasks[0].n_test, record.tasks[0].defects) == (11, 4)
    assert all(run.offline is not None for run in record.tasks[0].runs)


def test_what_a_method_believed_of_a_stream_is_shown(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    masked = write_disc(tmp_path / "masked", 8, 2, 3, masks=True)
    words = ["fewshot", "--shots", 3, "--ratio", 2, "--data", masked, "--size", 64, "--json", tmp_path / "r.json"]
    ran = call(*words, "--method", "kng", "--set", "weights=none", "shots=3", "nodes=8", "threshold=min")
    shares = read_result(tmp_path / "r.json").tasks[0].admitted
    assert shares is not None and "defective ones" in ran.stdout
    assert f"{shares['normal']:.3f}" in ran.stdout and f"{shares['defective']:.3f}" in ran.stdout
