"""`everline compare`: which records compare, what they are called, which figures stand where, what is written."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from everline.methods.errors import ConfigError, DataError
from everline.methods.registry import build
from everline.pipelines.comparing.compare import as_markdown, compare
from everline.pipelines.comparing.comparison import Comparison
from everline.pipelines.comparing.comparison_curves import curve_table, drawings, lowest
from everline.pipelines.comparing.comparison_tables import tables
from everline.pipelines.records.markdown import filled
from everline.pipelines.records.report import Table
from everline.pipelines.records.results import METRICS, Part, Result, SeedRun, TaskResult, write_result

Write = Callable[..., Path]


def figures(value: float, **others: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, value) | others


def task(name: str, value: float = 0.5, **changed: Any) -> TaskResult:
    """A task with `value` as every figure, but what is given."""
    plain: dict[str, Any] = {
        "task": name,
        "n_train": 4,
        "n_test": 6,
        "metrics": figures(value),
        "curve": [],
        "ms_per_image": {"backbone": 10.0, "score": 1.5, "learn": 0.75},
        "state_bytes": 2_000_000,
    }
    return TaskResult(**(plain | changed))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a.json", task, ..., method="padim", params={"sigma": 2.0}, protocol=..., seed=...) -> the file."""

    def written(name: str, *tasks: TaskResult, params: Mapping[str, Any] = {}, **changed: Any) -> Path:
        plain: dict[str, Any] = {"protocol": "online", "method": "padim", "backbone": "b", "size": 64, "seed": 0}
        plain |= changed
        known = build(plain["method"]).params
        write_result(Result(tasks=list(tasks) or [task("bolt")], params=known | params, **plain), tmp_path / name)
        return tmp_path / name

    return written


def made(*files: Path) -> dict[str, Table]:
    """The tables by the first words of their titles (up to a colon)."""
    return {table.title.partition(":")[0]: table for table in tables(Comparison.read(files))}


def names(*files: Path) -> list[str]:
    return [record.label for record in Comparison.read(files).records]


def call(*words: object) -> Ran:
    return CliRunner().invoke(compare, [str(word) for word in words])


def test_the_overview_comes_first_with_a_row_for_each_record(write: Write) -> None:
    first = write("a.json", task("bolt", 0.5), task("nut", 0.75))
    second = write("b.json", task("bolt", 1.0, state_bytes=500_000), task("nut", 0.25), method="lemo")
    table = tables(Comparison.read([first, second]))[0]
    assert table.title == "online, 64 pixels: mean over 2 tasks"
    assert table.columns == ["record", "image\nAUROC", "AUPRO", "pixel\nAUROC", "ms/img", "MB"]
    assert table.rows[0] == ["padim", "0.625", "0.625", "0.625", "2.25", "2.0"]  # without the backbone's 10 ms
    assert table.rows[1] == ["lemo", "0.625", "0.625", "0.625", "2.25", "1.2"]


def test_each_figure_has_a_row_for_each_task_and_their_mean(write: Write) -> None:
    found = made(
        write("a.json", task("bolt", 0.5), task("nut", 0.75)), write("b.json", task("nut", 1.0), method="kng")
    )
    assert found["image AUROC"].columns == ["task", "padim", "kng"]
    assert found["image AUROC"].rows == [["bolt", "0.500", None], ["nut", "0.750", "1.000"]]
    assert found["images/s, learning included"].rows[1] == ["nut", "81.6", "81.6"]
    both = made(write("a.json", task("bolt", 0.5), task("nut", 0.75)))
    assert both["image AUROC"].rows[-1] == ["mean", "0.625"]


def test_means_are_over_the_tasks_that_all_have_and_say_so(write: Write) -> None:
    first = write("a.json", *(task(name, 0.2 * n) for n, name in enumerate("abc")))
    second = write("b.json", task("a", 1.0), task("c", 1.0), task("d", 0.0), method="lemo")
    found = made(first, second)
    assert found["image AUROC"].rows[-1] == ["mean of 2 that all have", "0.200", "1.000"]
    overview = found["online, 64 pixels"]
    assert overview.title.endswith("mean over the 2 of 4 tasks that all have")
    assert [row[1] for row in overview.rows] == ["0.200", "1.000"]


def test_a_figure_that_few_tasks_have_says_over_how_many(write: Write) -> None:
    tasks = [task("a", 0.5, metrics=figures(0.5, aupro=math.nan)), task("b", 0.75), task("c", 0.25)]
    overview = made(write("a.json", *tasks))["online, 64 pixels"]
    assert overview.rows[0][1:3] == ["0.500", "0.500"]
    assert overview.note.endswith("Over 2 tasks: AUPRO.")


def test_a_method_without_maps_takes_no_mean_from_the_others(write: Write) -> None:
    bare = figures(0.5, aupro=math.nan, pixel_auroc=math.nan)
    found = made(
        write("a.json", task("a"), task("b")),
        write("b.json", task("a", metrics=bare), task("b", metrics=bare), method="lemo"),
    )
    assert found["AUPRO"].rows[-1] == ["mean", "0.500", None]
    assert found["online, 64 pixels"].rows[1][1:4] == ["0.500", None, None]
    assert "AUPRO" not in made(write("b.json", task("a", metrics=bare)))


def test_records_of_a_method_are_named_by_what_they_differ_in(write: Write) -> None:
    usual = write("a.json", method="lemo", params={"temperature": 0.2})
    still = write("b.json", method="lemo", params={"temperature": 0.2, "update": "none", "lr": 0.0})
    other = write("c.json", params={"sigma": 2.0})
    assert names(usual, still, other) == ["lemo", "lemo lr=0 update=none", "padim"]
    files = [write(f"{n}.json", seed=n) for n in range(2)] + [write("2.json", seed=3, seeds=[3, 4, 5])]
    assert names(*files) == ["padim seed=0", "padim seed=1", "padim seeds=3..5"]


def test_values_are_named_as_they_are_typed(write: Write) -> None:
    tiny = {"strides": (8, 16), "shrinkage": 0.012345678}
    assert names(write("a.json"), write("b.json", params=tiny))[1] == "padim shrinkage=0.012345678 strides=8,16"
    assert names(write("c.json", method="lemo", params={"whiten": False}), write("d.json", method="lemo")) == [
        "lemo whiten=false",
        "lemo",
    ]


def test_options_name_every_record_as_soon_as_two_differ_in_them(write: Write) -> None:
    one, four = ({"protocol": "offline", "options": {"shots": n}} for n in (1, 4))
    assert names(write("a.json", **one), write("b.json", **four)) == ["padim shots=1", "padim shots=4"]
    assert names(write("a.json", **one), write("c.json", method="lemo", **four)) == ["padim shots=1", "lemo shots=4"]
    full = write("d.json", protocol="offline")
    assert names(write("a.json", **one), full) == ["padim shots=1", "padim"]
    assert Comparison.read([write("a.json", **one)]).setting == "offline shots=1"


def test_each_drift_is_an_option_of_its_own(write: Write) -> None:
    files = [
        write(f"{level}.json", protocol="drift", options={"drift": {"blur": 2.0, "noise": level}})
        for level in (10.0, 25.0)
    ]
    assert names(*files) == ["padim noise=10", "padim noise=25"]
    assert Comparison.read(files).setting == "drift blur=2"


def test_what_is_alike_is_named_by_its_file(write: Write) -> None:
    files = [write("one.json"), write("two.json"), write("three.json", params={"sigma": 1.0})]
    assert names(*files) == ["padim (one)", "padim (two)", "padim sigma=1"]
    again = write("deep/one.json")
    assert names(files[0], again) == [f"padim ({files[0]})", f"padim ({again})"]


def test_a_method_that_is_not_registered_shows_all_its_parameters(write: Write, tmp_path: Path) -> None:
    plain = json.loads(write("a.json").read_text())
    for n in range(2):
        (tmp_path / f"{n}.json").write_text(json.dumps(plain | {"method": "new", "params": {"k": n, "size": 64}}))
    assert names(tmp_path / "0.json", tmp_path / "1.json") == ["new k=0", "new k=1"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 32}, r"differ in size \(32, 64\)"),
        ({"dataset": "mvtec"}, r"differ in dataset \(folders of your own, mvtec\)"),
        ({"protocol": "offline"}, r"differ in protocol \(offline, online\)"),
    ],
)
def test_records_of_other_experiments_are_refused(write: Write, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Comparison.read([write("a.json"), write("b.json", **changed)])


def test_records_of_other_data_are_refused(write: Write) -> None:
    first = write("a.json", task("bolt"))
    with pytest.raises(ConfigError, match="no task is in all records"):
        Comparison.read([first, write("b.json", task("nut"))])
    with pytest.raises(ConfigError, match=r"bolt has 4 images to learn and 6 to judge in .*a\.json, 4 and 7 in"):
        Comparison.read([first, write("b.json", task("bolt", n_test=7))])
    other = write("b.json", task("bolt", n_test=7), options={"shots": 2})  # another stream: of the same data, perhaps
    assert Comparison.read([first, other]).shared == ["bolt"]


def test_a_record_twice_and_a_task_twice_are_refused(write: Write) -> None:
    first = write("a.json")
    with pytest.raises(ConfigError, match="given twice"):
        Comparison.read([first, first.parent / "." / "a.json"])
    with pytest.raises(DataError, match="two of its tasks have one name"):
        Comparison.read([write("b.json", task("bolt"), task("bolt", 0.7))])


def test_several_seeds_show_their_deviation(write: Write) -> None:
    low = [SeedRun(1, figures(0.4, aupro=math.nan)), SeedRun(2, figures(0.6))]
    high = [SeedRun(1, figures(0.8)), SeedRun(2, figures(0.8))]
    found = made(write("a.json", task("a", 0.5, runs=low), task("b", 0.8, runs=high), seeds=[1, 2]))
    assert [row[1] for row in found["image AUROC"].rows] == ["0.500 ± 0.141", "0.800 ± 0.000", "0.650 ± 0.071"]
    assert found["AUPRO"].rows[0][1] == "0.500"  # a seed has none
    half = made(write("b.json", task("a", 0.5, runs=low), task("b", 0.8, runs=high[:1]), seeds=[1, 2]))
    assert half["image AUROC"].rows[-1][1] == "0.650"  # a seed without b
    overview = found["online, 64 pixels"]
    assert overview.rows[0][1] == "0.650 ± 0.071" and "deviation over seeds" in overview.note


def test_fewshot_shows_what_learning_changes(write: Write) -> None:
    whole = [Part("whole stream", figures(0.625), figures(0.375))]
    runs = [SeedRun(n, figures(0.5 + 0.1 * n), figures(0.25 + 0.1 * n)) for n in (0, 1)]
    one = task("a", 0.55, offline=figures(0.3), parts=whole, runs=runs)
    found = made(write("a.json", one, protocol="fewshot", seeds=[0, 1]))
    table = found["learning from the stream"]
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["image AUROC\nlearning"] == "0.550 ± 0.071" and cells["AUPRO\nnot learning"] == "0.300 ± 0.071"
    assert cells["AUPRO\ngain"] == "+0.250 ± 0.000"  # both rise with the seed, the gain does not
    assert cells["whole stream\nimage AUROC"] == "0.625" and cells["whole stream\nAUPRO\nnot learning"] == "0.375"
    assert found["gain in AUPRO from learning"].rows == [["a", "+0.250 ± 0.000"]]


def test_drift_shows_each_kind_offline_and_online(write: Write) -> None:
    parts = [
        Part("none", figures(1.0)),
        Part("blur", figures(0.9), figures(0.5)),
        Part("cast", figures(0.8), figures(0.2)),
    ]
    tasks = [
        task("a", 0.85, offline=figures(0.35), parts=parts),
        task("b", 0.85, offline=figures(0.35), parts=parts[:2]),
    ]
    other = write(
        "b.json", *(task(n, offline=figures(0.5), parts=parts[:1]) for n in "ab"), protocol="drift", method="lemo"
    )
    table = made(write("a.json", *tasks, protocol="drift"), other)["image AUROC under drift"]
    assert table.columns == ["record", "none", "blur\noffline", "blur\nonline", "cast\noffline", "cast\nonline"]
    assert table.rows[0] == ["padim", "1.000", "0.500", "0.900", "0.200", "0.800"]
    assert table.rows[1] == ["lemo", "1.000", None, None, None, None]
    assert table.note.endswith("Over 1 tasks: cast offline, cast online.")


def curve(*pairs: tuple[int, float]) -> list[dict[str, float]]:
    return [{"images": images, **figures(value)} for images, value in pairs]


def test_curves_are_means_at_shared_points_and_at_the_end(write: Write) -> None:
    tasks = [
        task("a", curve=curve((1, 0.2), (2, 0.4), (3, 0.6))),
        task("b", curve=curve((1, 0.4), (2, 0.8), (4, 0.9), (5, 1.0))),
    ]
    (table,) = curve_table(
        Comparison.read([write("a.json", *tasks), write("b.json", task("a"), task("b"), method="kng")])
    )
    assert table.columns == ["record", "1", "2", "end"]
    assert table.rows == [["padim", "0.300", "0.600", "0.800"]]  # the other has no curve
    assert not curve_table(Comparison.read([write("c.json", task("a", curve=curve((4, 0.5))), protocol="offline")]))


def test_a_long_curve_is_shown_at_eight_points(write: Write) -> None:
    points = [(1 << n, n / 16) for n in range(12)]
    (table,) = curve_table(Comparison.read([write("a.json", task("a", curve=curve(*points)))]))
    assert table.columns == ["record", "1", "4", "8", "32", "64", "256", "512", "end"]
    assert table.rows[0][-1] == "0.688"


def test_sessions_are_counted_and_have_no_end_in_common(write: Write) -> None:
    three = curve((90, 0.4), (180, math.nan), (270, 0.6))  # no defect in the second
    tasks = [task("a", curve=curve((97, 0.2), (193, 0.7))), task("b", curve=three)]
    comparison = Comparison.read([write("a.json", *tasks, protocol="fewshot")])
    assert curve_table(comparison)[0].rows == [["padim", "0.300"]]
    first, second = drawings(comparison)
    assert (first.title, first.x_label, first.doubling) == ("a", "session", False)
    assert first.series == {"padim": [(1, 0.2), (2, 0.7)]} and len(second.series["padim"]) == 3


def test_the_report_has_tables_and_a_curve_for_each_task_and_loads_nothing(write: Write, tmp_path: Path) -> None:
    line = curve((1, 0.5), (2, 0.75), (4, 0.875))
    first = write("a.json", task("bolt", curve=line), task("nut", curve=line))
    second = write("b.json", task("bolt", curve=line), task("nut", curve=line[:1]), method="lemo")
    assert call(first, second, "--report", tmp_path / "deep/r.html").exit_code == 0
    page = (tmp_path / "deep/r.html").read_text("utf-8")
    assert page.count("<figure>") == 2 and "image AUROC over images learned" in page
    assert "lemo: 0.5 at 1, 0.875 at 4." in page and "nut. image AUROC over images learned. padim" in page
    assert page.count("lemo: 0.5 at 1") == 1  # one point is no curve
    assert "mean over 2 tasks" in page and "padim: defaults; seed 0" in page
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)


def test_the_json_has_means_gains_and_every_task(write: Write, tmp_path: Path) -> None:
    one = task("bolt", 0.75, offline=figures(0.5, aupro=math.nan))
    file = write("a.json", one, protocol="fewshot", params={"sigma": 2.0})
    assert call(file, "--json", tmp_path / "c.json").exit_code == 0
    plain = json.loads((tmp_path / "c.json").read_text())
    (record,) = plain["records"]
    assert plain["shared_tasks"] == ["bolt"] and (plain["protocol"], plain["size"]) == ("fewshot", 64)
    assert (record["label"], record["file"], record["seeds"]) == ("padim", str(file), [0])
    assert record["changed"] == {"sigma": 2.0}
    assert record["mean"]["gain_image_auroc"] == record["tasks"]["bolt"]["gain_image_auroc"] == 0.25
    assert record["mean"]["gain_aupro"] is None and record["deviation"]["aupro"] is None
    assert record["tasks"]["bolt"]["ms_per_image"] == 2.25


def test_json_to_standard_output_comes_alone(write: Write) -> None:
    assert json.loads(call(write("a.json"), "--json", "-").stdout)["records"][0]["label"] == "padim"


def test_markdown_lists_only_what_is_not_default(write: Write) -> None:
    files = [
        write("a.json", method="lemo", params={"lr": 0.0, "update": "none"}),
        write("b.json", seed=3, seeds=[3, 4], everline_version="9.9"),
    ]
    comparison = Comparison.read(files)
    text = as_markdown(comparison, tables(comparison))
    assert text.startswith("**online, 64 pixels: task bolt**\n\n| record | image AUROC | AUPRO |")
    assert "| bolt | 0.500 | 0.500 |" in text and "| --- | ---: | ---: |" in text
    assert "\n* lemo: lr=0, update=none; seed 0, everline " in text
    assert text.endswith("\n* padim: defaults; seeds 3..4, everline 9.9\n")


def test_names_from_outside_stay_in_their_cells(write: Write) -> None:
    comparison = Comparison.read([write("a.json", task("a|b\n<!-- end of tables -->"))])
    text = as_markdown(comparison, tables(comparison))
    assert "| a\\|b &lt;!-- end of tables --> | 0.500 |" in text and "<" not in text


def test_tables_go_between_a_pages_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    expected = "before\n<!-- tables -->\nnew\n<!-- end of tables -->\nafter\n"
    assert filled(page, None, "new\n") == filled(page, "tables", "new\n") == expected
    assert filled(tmp_path / "none.md", None, "new\n") == "<!-- tables -->\nnew\n<!-- end of tables -->\n"


@pytest.mark.parametrize("text", ["no marks", "<!-- tables -->\nold\n<!-- end of table -->\n"])
def test_a_page_without_both_marks_is_not_written_over(write: Write, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert "has no place 'tables'" in str(call(write("a.json"), "--markdown", page).exception)
    assert page.read_text() == text


def test_a_page_has_several_places(write: Write, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for name in ("few-shot", "tables"):
        with page.open("a") as file:
            file.write(f"# {name}\n<!-- {name} -->\nold {name}\n<!-- end of {name} -->\n")
    assert call(write("a.json"), "--markdown", page, "--mark", "few-shot").exit_code == 0
    text = page.read_text()
    assert "old tables" in text and "old few-shot" not in text and "<!-- end of few-shot -->" in text
    assert call(write("a.json"), "--markdown", tmp_path / "new.md", "--mark", "drift").exit_code == 0
    assert (tmp_path / "new.md").read_text().startswith("<!-- drift -->\n**online")


def test_a_mark_that_is_not_there_is_an_error(write: Write, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- drift -->\nnot closed")
    ran = call(write("a.json"), "--markdown", page, "--mark", "drift")
    assert isinstance(ran.exception, ConfigError) and "has no place 'drift'" in str(ran.exception)
    assert page.read_text() == "<!-- drift -->\nnot closed" and not ran.stdout
    assert "give both" in str(call(write("a.json"), "--mark", "drift").exception)
    assert "words of letters" in str(call(write("a.json"), "--markdown", page, "--mark", "a -->").exception)
    page.write_bytes(b"\xff")
    assert isinstance(call(write("a.json"), "--markdown", page).exception, DataError)


def test_the_terminal_shows_all_tables(write: Write) -> None:
    ran = call(write("a.json", task("bolt", curve=curve((1, 0.5), (2, 0.75)))), write("b.json", method="lemo"))
    assert ran.exit_code == 0
    said = [ran.stdout.index(title) for title in ("online, 64 pixels", "AUPRO", "state, MB", "by images learned")]
    assert said == sorted(said) and "aside from the backbone" in ran.stdout


@pytest.mark.parametrize(
    ("values", "low"), [([1.0, 1.0], 0.9), ([0.47, math.nan, 0.8], 0.4), ([], 0.9), ([0.95], 0.9)]
)
def test_an_axis_of_shares_ends_at_one_and_starts_below_its_points(values: list[float], low: float) -> None:
    assert lowest([list(enumerate(values))]) == low
