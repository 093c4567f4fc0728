"""`everline evaluate`, as it is typed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from everline.methods.errors import ConfigError, DataError, StoreError, UnknownName
from everline.methods.metrics import evaluate as figures
from everline.pipelines.main import main
from everline.pipelines.options import spread
from everline.pipelines.records.results import METRICS, read_result
from everline.pipelines.runs.evaluate import evaluate

SMALL = ["--size", "64", "--set", "sigma=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """Two tasks, `masked` and `plain` (no ground truth), of 6 + 7 images each."""
    root = tmp_path_factory.mktemp("data")
    write_disc(root / "masked", 6, 3, 4, masks=True)
    write_disc(root / "plain", 6, 3, 4)
    return root


def call(*words: object) -> Result:
    return CliRunner().invoke(evaluate, [str(word) for word in words])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--data A B C", "--data A --data B --data C"),
        ("online --data A B --seed 1 --data C", "online --data A --data B --seed 1 --data C"),
        ("--data=A B --json - --set a=1 b=2", "--data=A --data B --json - --set a=1 --set b=2"),
        ("--seed 1 online --data A -- B", "--seed 1 online --data A -- B"),
        ("--data", "--data"),
    ],
)
def test_options_of_many_values_are_spread(typed: str, meant: str) -> None:
    assert spread(typed.split(), ("--data", "--set")) == meant.split()


def test_a_run_writes_a_record_and_its_scores(data: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "r.json", "--scores", tmp_path / "s.npz"]
    ran = call("online", "--method", "padim", "--data", data / "masked", data / "plain", *SMALL, *files)
    assert ran.exit_code == 0, ran.output
    record = read_result(tmp_path / "r.json")
    assert (record.protocol, record.method, record.size, record.seed) == ("online", "padim", 64, 0)
    assert record.backbone == "efficientnet_lite0" and record.params["sigma"] == 1.0
    assert [(t.task, t.n_train, t.n_test) for t in record.tasks] == [("masked", 6, 7), ("plain", 6, 7)]
    assert "masked" in ran.stdout and "mean" in ran.stdout and "AUPRO" in ran.stdout


def test_every_figure_can_be_recomputed_from_the_scores(data: Path, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "r.json", "--scores", tmp_path / "s.npz"]
    assert call("online", "--method", "padim", "--data", data / "masked", *SMALL, *files).exit_code == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as kept:
        found = figures(*(kept[f"masked/{name}"] for name in ("scores", "labels", "maps", "masks")))
        assert kept["masked/names"].tolist()[:1] == ["good/000.png"] and kept["masked/maps"].dtype == np.float32
    metrics = read_result(tmp_path / "r.json").tasks[0].metrics
    assert {name: found[name] for name in METRICS} == metrics


def test_the_seed_decides_the_order_of_the_stream(data: Path) -> None:
    every = ["--set", "channels=176"]  # all of them, so that padim itself has nothing left to draw
    command = ["online", "--method", "padim", "--data", data / "masked", *SMALL, *every, "--json", "-"]
    first, again, other = (json.loads(call(*command, "--seed", seed).stdout) for seed in (1, 1, 2))
    curves = [record["tasks"][0]["curve"] for record in (first, again, other)]
    assert curves[0] == curves[1] and curves[0][0] != curves[2][0]
    assert curves[0][-1]["pixel_auroc"] == pytest.approx(curves[2][-1]["pixel_auroc"], abs=1e-6)
    assert (first["seed"], other["seed"]) == (1, 2)


def test_progress_goes_to_standard_error(data: Path) -> None:
    ran = call("online", "--method", "padim", "--data", data / "plain", *SMALL, "--json", "-")
    assert json.loads(ran.stdout)["tasks"][0]["metrics"]["aupro"] is None
    assert "plain" in ran.stderr


def test_wrong_parameters_are_refused_by_name(data: Path) -> None:
    start = ["online", "--method", "padim", "--data", data / "plain"]
    unknown = call(*start, "--set", "sigm=3").exception
    assert isinstance(unknown, UnknownName) and "did you mean sigma" in str(unknown)
    assert "size must be in [32, 1024]" in str(call(*start, "--size", 5).exception)
    assert "NAME=VALUE" in str(call(*start, "--set", "sigma").exception)
    twice = call(*start, "--size", 64, "--set", "size=64").exception
    assert isinstance(twice, ConfigError) and "size is given twice" in str(twice)


def test_an_unknown_method_offers_the_nearest() -> None:
    ran = call("online", "--method", "padin", "--data", "x")
    assert ran.exit_code == 2 and "did you mean padim" in ran.output


def test_wrong_folders_are_refused(data: Path) -> None:
    assert isinstance(call("online", "--method", "padim", "--data", data).exception, DataError)
    twice = call("online", "--method", "padim", "--data", data / "plain", data / "masked/../plain").exception
    assert isinstance(twice, ConfigError) and "'plain'" in str(twice)


def test_a_place_that_cannot_be_written_is_found_out_first(data: Path, tmp_path: Path) -> None:
    start = ["online", "--method", "padim", "--data", data / "plain", *SMALL]
    assert isinstance(call(*start, "--json", tmp_path).exception, StoreError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("setting", "code", "named"), [("sigm=3", 2, "sigma"), ("sigma=3", 1, "/no/such")])
def test_errors_end_the_program_with_one_line(
    setting: str, code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "online", "--method", "padim", "--data", "/no/such", "--set", setting]
    monkeypatch.setattr(sys, "argv", ["everline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code and named in said and len(said.splitlines()) == 1
