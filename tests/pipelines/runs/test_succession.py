"""`everline evaluate continual` as people type it, and a plan of sequences for `everline bench`."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError
from everline.pipelines.protocols import continual
from everline.pipelines.records.continued import FIGURES
from everline.pipelines.records.results import read_result
from everline.pipelines.runs import benchmark
from everline.pipelines.runs.benchmark import bench
from everline.pipelines.runs.evaluate import evaluate

SMALL = ["--set", "size=64", "weights=none"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    return [str(write_disc(root / f"product{n}", 6, 3, 3, masks=True, product=n)) for n in range(3)]


def words(folders: list[str], *more: str) -> list[str]:
    return ["continual", "--method", "padim", "--data", *folders, *SMALL, *more]


def record(folders: list[str], tmp_path: Path, *more: str) -> dict[str, Any]:
    ran = CliRunner().invoke(
        evaluate, words(folders, "--json", str(tmp_path / "r.json"), *more), catch_exceptions=False
    )
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    return found


def test_the_record_has_the_matrix_and_what_it_comes_to(folders: list[str], tmp_path: Path) -> None:
    found = record(folders, tmp_path, "--strategy", "replay", "--memory", "4", "--order", "0,2,1")
    assert set(found["matrix"]) == set(FIGURES)
    assert all(len(rows) == 3 and {len(row) for row in rows} == {3} for rows in found["matrix"].values())
    assert found["average_f1"] == pytest.approx(sum(found["matrix"]["pixel_f1"][-1]) / 3)
    single = found["continual"]["single"]["pixel_f1"]
    assert found["relative_gap"] == pytest.approx(1 - 3 * found["average_f1"] / sum(single))
    assert found["continual"]["columns"] == ["product0", "product2", "product1"]
    assert found["continual"]["measures"]["pixel_f1"]["intransigence"] is not None
    assert found["memory_bytes"]["replay"] > 0
    assert found["options"]["memory"] == 4 and found["options"]["policy"] == "reservoir"
    assert json.loads(read_result(tmp_path / "r.json").dumps()) == found


def test_without_references_there_is_nothing_to_measure_against(folders: list[str], tmp_path: Path) -> None:
    found = record(folders, tmp_path, "--references", "none")
    assert found["relative_gap"] is None and "single" not in found["continual"]
    assert found["average_forgetting"] is not None
    single = record(folders, tmp_path, "--strategy", "single", "--references", "none")
    assert single["relative_gap"] == 0 and single["average_forgetting"] is None


def test_several_seeds_are_pooled_by_place_in_the_order(folders: list[str], tmp_path: Path) -> None:
    found = record(folders, tmp_path, "--seeds", "3", "--order", "shuffled", "--references", "single")
    runs = found["continual"]["runs"]
    assert [run["continual"]["seed"] for run in runs] == [0, 1, 2]
    assert len({tuple(run["continual"]["columns"]) for run in runs}) > 1
    assert found["continual"]["columns"] == ["1.", "2.", "3."]
    assert found["average_f1"] == pytest.approx(sum(run["average_f1"] for run in runs) / 3)
    assert found["continual"]["deviation"]["pixel_f1"]["average"] > 0
    assert [task["task"] for task in found["tasks"]] == ["product0", "product1", "product2"]


def test_a_run_in_a_work_folder_goes_on_and_gives_the_same(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--strategy", "replay", "--memory", "4", "--references", "none")
    straight = record(folders, tmp_path, *more)
    learned, note = [], continual._Run._note

    def interrupted(self: Any, strategy: Any, number: int, *rest: Any) -> None:
        learned.append(number)
        if len(learned) == 2:
            raise KeyboardInterrupt
        note(self, strategy, number, *rest)

    monkeypatch.setattr(continual._Run, "_note", interrupted)
    work = ("--work", str(tmp_path / "work"))
    stopped = CliRunner().invoke(evaluate, words(folders, *more, *work))
    assert stopped.exit_code != 0 and learned == [0, 1]
    assert record(folders, tmp_path, *more, *work)["matrix"] == straight["matrix"]
    assert learned == [0, 1, 1, 2]
    with pytest.raises(ConfigError, match="other settings"):
        CliRunner().invoke(evaluate, words(folders[:2], *more, *work), catch_exceptions=False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--order", "0,1"], "task 2 never comes"),
        (["--strategy", "reply"], "strategy must be in naive"),
        (["--memory", "many"], "memory must be a whole number"),
        (["--memory", "5"], "of the strategy replay"),
        (["--references", "none", "single"], "stands alone"),
        (["--ratio", "3"], "--ratio is no option of the protocol continual"),
    ],
)
def test_bad_options_end_it_with_what_is_wrong(folders: list[str], more: list[str], said: str) -> None:
    refused = CliRunner().invoke(evaluate, words(folders, *more)).exception
    assert isinstance(refused, ConfigError) and said in str(refused)


def test_a_sequence_s_options_are_no_other_protocol_s(folders: list[str]) -> None:
    for more in (["--work", "w"], ["--references", "none"], ["--strategy", "naive"]):
        start = ["online", "--method", "padim", "--data", *folders, *more]
        refused = CliRunner().invoke(evaluate, start).exception
        assert isinstance(refused, ConfigError) and more[0] in str(refused)


PLAN = """
methods:
  padim: {}
  averaged: {method: padim, params: {form: averaged}, protocols: [naive]}
protocols:
  single: {protocol: continual, options: {strategy: single}}
  naive: {protocol: continual, options: {strategy: naive}}
  online: {}
"""


def test_a_plan_runs_sequences_beside_other_protocols_and_goes_on(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    start = [str(tmp_path / "plan.yaml"), "--data", *folders, "--out", str(tmp_path / "out"), *SMALL]
    assert CliRunner().invoke(bench, start, catch_exceptions=False).exit_code == 0
    found = read_result(tmp_path / "out/naive/averaged.json")
    assert found.continued is not None and len(found.continued.matrix["aupro"]) == 3
    alone = record(folders, tmp_path, "--references", "none", "--strategy", "single")
    assert read_result(tmp_path / "out/single/padim.json").to_json()["matrix"] == alone["matrix"]
    assert not (tmp_path / "out/naive/padim/+").exists()
    monkeypatch.setattr(benchmark, "Features", None)  # a second run has nothing to embed
    assert CliRunner().invoke(bench, start, catch_exceptions=False).exit_code == 0


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_matrix(folders: list[str], tmp_path: Path) -> None:
    more = ("--strategy", "replay", "--memory", "4", "--policy", "balanced", "--references", "none")
    straight = record(folders, tmp_path, *more)
    kept = words(folders, *more, "--work", str(tmp_path / "work"), "--json", str(tmp_path / "never.json"))
    start = "import sys; from everline.pipelines.main import main; sys.argv[1:] = sys.argv[2:]; main()"
    process = subprocess.Popen([sys.executable, "-c", start, "-", "evaluate", *kept], stderr=subprocess.DEVNULL)
    progress = tmp_path / "work/replay-seed0/progress.json"
    while process.poll() is None and not progress.exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = json.loads(json.loads(progress.read_text())["progress"])["done"]
    assert done < 3, "it was done before it could be killed"
    assert not (tmp_path / "never.json").exists()
    assert record(folders, tmp_path, *more, "--work", str(tmp_path / "work"))["matrix"] == straight["matrix"]
