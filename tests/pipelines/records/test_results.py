"""The result record: what is written, what is read back, what is refused, and that a file is whole or not there."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline import __version__
from everline.methods.errors import DataError, StoreError
from everline.pipelines.files import Whole
from everline.pipelines.records.results import (
    METRICS,
    Part,
    Result,
    SeedRun,
    TaskResult,
    append_arrays,
    read_result,
    write_result,
)


def task(name: str = "bolt", **changed: Any) -> TaskResult:
    figures = {metric: 0.5 + 0.01 * n for n, metric in enumerate(METRICS)}
    plain: dict[str, Any] = {
        "task": name,
        "n_train": 4,
        "n_test": 6,
        "metrics": figures,
        "curve": [{"images": 1, **figures}, {"images": 4, **figures}],
        "ms_per_image": {"backbone": 10.0, "score": 6.0, "learn": 4.0},
        "state_bytes": 2_000_000,
    }
    return TaskResult(**(plain | changed))


def result(*tasks: TaskResult, **changed: Any) -> Result:
    plain = {"protocol": "online", "method": "padim", "params": {"sigma": 4.0}, "backbone": "b", "size": 64, "seed": 3}
    return Result(tasks=list(tasks) or [task()], **(plain | changed))


def test_the_record_has_the_promised_fields(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "r.json")
    plain = json.loads((tmp_path / "r.json").read_text())
    assert list(plain) == [
        "protocol", "method", "params", "backbone", "size", "seed", "everline_version", "tasks", "mean"
    ]  # fmt: skip
    assert list(plain["tasks"][0]) == [
        "task", "n_train", "n_test", "metrics", "curve", "ms_per_image", "state_bytes"
    ]  # fmt: skip
    assert list(plain["tasks"][0]["metrics"]) == list(METRICS)
    assert plain["everline_version"] == __version__
    assert plain["mean"]["images_per_s"] == 50.0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    before = result(task("a"), task("b"), backbone=None, params={"strides": [4, 8]})
    write_result(before, tmp_path / "deep" / "r.json")
    assert read_result(tmp_path / "deep" / "r.json") == before
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


def test_a_mark_at_the_beginning_is_passed_over(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "r.json").read_bytes())
    assert read_result(tmp_path / "r.json") == result()


def test_what_only_some_protocols_have_is_read_back_too(tmp_path: Path) -> None:
    low, high = (dict.fromkeys(METRICS, value) for value in (0.25, 0.75))
    more: dict[str, Any] = {
        "offline": low,
        "defects": 3,
        "deviation": low,
        "admitted": {"normal": 0.5, "defective": 0.25},
        "parts": [Part("blur", high, low)],
    }
    one = task(**more, runs=[SeedRun(1, low, low), SeedRun(2, high)])
    before = result(
        one, task("b", offline=high, runs=[SeedRun(1, high), SeedRun(2, high)]), seeds=[1, 2], dataset="visa"
    )
    write_result(before, tmp_path / "r.json")
    assert read_result(tmp_path / "r.json") == before
    plain = json.loads((tmp_path / "r.json").read_text())
    assert plain["offline"] == dict.fromkeys(METRICS, 0.5)
    assert plain["deviation"]["aupro"] == pytest.approx(0.25 / 2**0.5)  # of the means .5 and .75
    assert "offline" not in plain["tasks"][0]["runs"][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": [1, "2"]}, "'seeds' has the wrong type"),
        ({"options": []}, "'options' has the wrong type"),
        ({"dataset": 3}, "'dataset' has the wrong type"),
    ],
)
def test_what_need_not_be_there_must_be_right_where_it_is(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Result.from_json(result().to_json() | change)
    plain = result().to_json()
    plain["tasks"][0]["parts"] = [{"name": "blur"}]
    with pytest.raises(DataError, match=r"parts\[0\]: 'metrics' is missing"):
        Result.from_json(plain)


def test_nan_is_written_as_null_and_read_as_nan(tmp_path: Path) -> None:
    open_figures = dict.fromkeys(METRICS, math.nan) | {"image_auroc": np.float64(0.9)}
    write_result(result(task(metrics=open_figures)), tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and json.loads(text)["tasks"][0]["metrics"]["aupro"] is None
    back = read_result(tmp_path / "r.json").tasks[0].metrics
    assert back["image_auroc"] == 0.9 and math.isnan(back["aupro"])


def test_the_mean_is_over_all_tasks_or_is_none() -> None:
    half = {**task().metrics, "image_auroc": 0.7, "aupro": math.nan}
    mean = result(task(), task("b", metrics=half)).mean
    assert mean["image_auroc"] == pytest.approx(0.6)
    assert math.isnan(mean["aupro"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("seed"), "'seed' is missing"),
        (lambda r: r.update(size="64"), "'size' has the wrong type"),
        (lambda r: r.update(size=True), "'size' has the wrong type"),
        (lambda r: r.update(tasks={}), "'tasks' has the wrong type"),
        (lambda r: r["tasks"].append(3), r"tasks\[1\]: expected an object"),
        (lambda r: r["tasks"][0]["metrics"].pop("aupro"), r"tasks\[0\]: metrics: 'aupro' is missing"),
        (lambda r: r["tasks"][0]["metrics"].update(aupro="1"), "'aupro' has the wrong type"),
        (lambda r: r["tasks"][0]["curve"][0].pop("images"), r"curve\[0\]: 'images' is missing"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    plain = result().to_json()
    change(plain)
    (tmp_path / "r.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match=said):
        read_result(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"seed": NaN}', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, "latin-1")
    with pytest.raises(DataError, match=r"r\.json"):
        read_result(tmp_path / "r.json")
    with pytest.raises(DataError, match="not a result record"):
        read_result(tmp_path / "nowhere.json")


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with contextlib.suppress(ZeroDivisionError), Whole(path) as half:
        half.write_text("new, half of it")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        write_result(result(), tmp_path / "file" / "r.json")
    with pytest.raises(StoreError, match="it is a folder"):
        write_result(result(), tmp_path)
    with pytest.raises(StoreError, match="No space"), Whole(tmp_path / "r.json"):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_arrays_come_back_without_pickles(tmp_path: Path) -> None:
    with Whole(tmp_path / "s.npz") as half:
        append_arrays(half, {"a/scores": np.arange(3.0), "a/names": np.array(["x", "yy"])})
        append_arrays(half, {"b/maps": np.ones((2, 3, 3), np.float32)})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as back:
        assert sorted(back.files) == ["a/names", "a/scores", "b/maps"]
        assert back["a/names"].tolist() == ["x", "yy"] and back["b/maps"].dtype == np.float32
    with pytest.raises(ValueError, match="allow_pickle"):
        append_arrays(tmp_path / "s.npz", {"bad": np.array([object()])})
