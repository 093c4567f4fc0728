"""The papers' figures: copied rightly, chosen rightly, shown beside ours."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.methods.registry import build
from everline.pipelines.records.beside import by_class, means, remarks, sides
from everline.pipelines.records.published import CLASSES, MVTEC, ROWS, Published, published
from everline.pipelines.records.results import METRICS, Part, Result, TaskResult, read_result
from everline.pipelines.runs.evaluate import evaluate

DISAGREE = {  # (source, label, learning, figure): what is printed is not the rounded mean of what is printed by class
    ("K-NG, table 8", "PatchCore", False, "aupro"),  # 86.65 by its classes, 86.7 printed
    ("SMCC, tables V and VI", "PaDiM", True, "pixel_auroc"),  # 97.43, 97.5
}
SMALL = ["--size", "64", "--set", "weights=none"]


def figures(value: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, value)


def record(protocol: str, method: str, values: Mapping[str, float], **changed: Any) -> Result:
    """A run whose figures are all the same in a class: 0.1 less without learning."""
    tasks = [
        TaskResult(
            name, 4, 6, figures(value), [], {"backbone": 1, "score": 1, "learn": 1}, 1, offline=figures(value - 0.1)
        )
        for name, value in values.items()
    ]
    params = {**build(method).params, **changed.pop("params", {})}
    return Result(protocol, method, params, None, 224, 0, tasks, **{"dataset": "mvtec", **changed})


def chosen(method: str, protocol: str, dataset: str = "mvtec", shots: int | None = None, **params: Any) -> list[str]:
    options = {} if shots is None else {"shots": shots}
    rows = published(dataset, protocol, method, {**build(method).params, **params}, options)
    return [f"{row.label}: {row.source}" for row in rows]


def test_printed_means_are_those_of_the_classes() -> None:
    found = set()
    for row in ROWS:
        for learning, mean, rows in ((True, row.mean, row.rows), (False, row.offline, row.offline_rows)):
            for metric in set(mean) & set(next(iter(rows.values()), {})):
                off = abs(sum(rows[name][metric] for name in MVTEC) / 15 - mean[metric])
                assert off < 0.001, (row, metric)  # what rounding in the classes and in the mean can do at most
                if off > 0.00051:
                    found.add((row.source, row.label, learning, metric))
    assert found == DISAGREE


def test_figures_are_shares_under_the_names_of_a_record() -> None:
    for row in ROWS:
        every = [row.mean, row.offline, *row.rows.values(), *row.offline_rows.values()]
        assert {name for one in every for name in one} <= set(METRICS)
        assert all(0.4 < value <= 1 for one in every for value in one.values()) and any(every)
        names = {"none", "brightness", "noise"} if row.protocol == "drift" else set(MVTEC)
        assert set(row.rows) <= names and row.dataset in CLASSES and row.note in ("", row.note.strip())


@pytest.mark.parametrize(
    ("got", "rows"),
    [
        (chosen("lemo", "online", update="L"), ["LeMO-L: LeMO, table 2"]),
        (chosen("lemo", "online", "visa", update="F"), ["LeMO-F: LeMO, table 2"]),
        (chosen("lemo", "online", update="none"), []),
        (chosen("patchcore", "online", "mpdd", form="ema"), ["PatchCore with EMA: LeMO, table 2"]),
        (chosen("patchcore", "online", form="offline"), []),
        (chosen("patchcore", "offline", form="offline"), ["PatchCore: LeMO, table 5"]),
        (chosen("lemo", "offline", shots=3), []),
        (chosen("kng", "fewshot", shots=10), ["K-NG: K-NG, table 8, pixel AUROC of table 5"]),
        (chosen("kng", "fewshot", shots=5), []),
        (chosen("patchcore", "fewshot", shots=10, form="pseudo"), ["PatchCore: K-NG, table 8"]),
        (chosen("smcc", "offline", "dagm"), ["SMCC: SMCC, table VIII"]),
        (chosen("smcc", "online"), []),
        (chosen("coreset", "online"), []),
        (chosen("lemo", "online", "mtd"), []),
    ],
)
def test_a_run_gets_the_rows_that_answer_for_it(got: list[str], rows: list[str]) -> None:
    assert got == rows


def test_shots_and_ablations_have_rows_of_their_own() -> None:
    (four,) = published("mvtec", "offline", "lemo", build("lemo").params, {"shots": 4})
    assert four.mean == {"image_auroc": 0.887}
    changed = {"nodes": 3136, "threshold": "max", "age_max": 25}
    table_8, table_5 = published("mvtec", "fewshot", "kng", {**build("kng").params, **changed}, {"shots": 10})
    assert table_5.source == "K-NG, table 5" and table_5.mean["image_auroc"] == 0.861
    assert "threshold max (mean)" in table_8.differences({**build("kng").params, **changed})
    assert not any("threshold" in one for one in table_5.differences({**build("kng").params, **changed}))


def test_all_classes_are_compared_by_the_printed_mean() -> None:
    whole = record("fewshot", "kng", dict.fromkeys(MVTEC, 0.9), options={"shots": 10})
    (row,) = published("mvtec", "fewshot", "kng", whole.params, whole.options)
    learning, still = (means(side) for side in sides(whole, row))
    assert learning.paper == {"image AUROC": 0.873, "AUPRO": 0.878, "pixel AUROC": 0.951}
    assert still.paper == {"image AUROC": 0.782, "AUPRO": 0.828} and still.ours["AUPRO"] == pytest.approx(0.8)
    assert learning.cells("image AUROC", True) == ("0.900", "0.873", "+0.027")
    images = by_class(sides(whole, row))[0]
    assert list(images.paper) == list(MVTEC) and images.paper["grid"] == 0.586
    assert not any("classes" in text for text in remarks(whole, row))


def test_some_classes_are_compared_over_these_alone() -> None:
    some = record("offline", "padim", {"bottle": 0.9, "grid": 0.8, "bolt": 0.1})
    row = published("mvtec", "offline", "padim", some.params, {})[0]
    group = means(sides(some, row)[0])
    assert group.ours["AUPRO"] == pytest.approx(0.85) and group.paper["AUPRO"] == pytest.approx((0.948 + 0.946) / 2)
    assert math.isnan(group.paper["image AUROC"])  # of which the paper gives no classes
    assert remarks(some, row)[0] == "The means are over the 2 classes that both have; we have 3, the paper 15."
    assert [list(one.paper) for one in by_class(sides(some, row))] == [["bottle", "grid"]] * 2


def test_drifts_are_compared_kind_by_kind() -> None:
    plain = record("drift", "patchcore", dict.fromkeys(MVTEC, 0.9))
    parts = [Part("none", figures(0.95)), Part("noise", figures(0.8), figures(0.7)), Part("blur", figures(0.1))]
    tasks = [TaskResult(t.task, 4, 6, t.metrics, [], t.ms_per_image, 1, t.offline, parts) for t in plain.tasks]
    (row,) = published("mvtec", "drift", "patchcore", plain.params, {})
    run = Result("drift", "patchcore", plain.params, None, 224, 0, tasks, dataset="mvtec")
    learning, still = (means(side) for side in sides(run, row))
    assert learning.ours == pytest.approx({"image AUROC, none": 0.95}) and learning.paper == {
        "image AUROC, none": 0.992
    }
    assert still.ours == pytest.approx({"image AUROC, noise": 0.7}) and still.paper == {"image AUROC, noise": 0.722}


def test_other_settings_are_said() -> None:
    row = Published(
        source="s", label="l", dataset="mvtec", protocol="online", method="lemo", backbone="resnet18", crop=256,
        setting={"strides": (4, 8), "lr": 1e-3, "prototypes": 10},
    )  # fmt: skip
    params = {"backbone": "resnet18", "size": 64, "strides": [4, 8], "lr": 1e-4, "prototypes": 10, "weights": "none"}
    assert row.differences(params) == ["size 64 (224)", "lr 0.0001 (0.001)", "weights none (of ImageNet)"]
    assert row.differences({**params, "size": 224, "lr": 0.001, "weights": "default"}) == []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    """A data set shaped as MVTec, of two of its classes."""
    folder = tmp_path_factory.mktemp("mvtec")
    for name in ("bottle", "cable"):
        write_disc(folder / name, train=5, good=3, bad=3, masks=True)
    return folder


def typed(*words: object) -> str:
    ran = CliRunner().invoke(evaluate, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.stdout.split())


def test_the_papers_mean_stands_below_the_table(root: Path, tmp_path: Path) -> None:
    words = ["--dataset", "mvtec", "--root", root, *SMALL, "--json", tmp_path / "r.json"]
    said = typed("online", "--method", "lemo", *words)
    ours = read_result(tmp_path / "r.json")
    assert "ours beside LeMO-L (LeMO, table 2), wide_resnet50_2: means" in said and ours.dataset == "mvtec"
    assert f"image AUROC │ {ours.mean['image_auroc']:.3f} │ 0.967 │ - │" in said
    assert "Ours are means over 2 classes, the paper's over 15: they do not compare." in said
    assert "backbone efficientnet_lite0 (wide_resnet50_2), size 64 (224)" in said
    assert "Not as in the paper: no crop (--crop 256)." in said


def test_the_papers_classes_stand_below_the_table(root: Path) -> None:
    said = typed("offline", "--method", "padim", "--dataset", "mvtec", "--root", root, *SMALL)
    assert "ours beside PaDiM (SMCC, tables V and VI), backbone not said: each class" in said
    assert "│ bottle │" in said and "│ 0.983 │" in said and "│ 0.967 │" in said  # pixel AUROC of both classes
    assert "The means are over the 2 classes that both have; we have 2, the paper 15." in said


@pytest.mark.parametrize(("method", "source"), [("padim", ["--dataset", "mvtec", "--root"]), ("lemo", ["--data"])])
def test_nothing_stands_below_the_table_of_another_run(method: str, source: list[str], root: Path) -> None:
    where = [root] if source[-1] == "--root" else [root / "bottle", root / "cable"]
    assert "beside" not in typed("online", "--method", method, *source, *where, *SMALL)
