"""The one table of metrics: what is counted, what the dashboard asks for, and what the documents list."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from everline.methods.errors import Dropped
from everline.platform import actor, metrics
from everline.platform.actor import TEND_S, LineActor, _actor, answer, pause_after, start_line
from everline.platform.cluster import metrics_targets
from everline.platform.line import Inspection
from everline.platform.log import line_folder
from everline.platform.metrics import METRICS, PREFIX, Metric
from everline.platform.settings import parse_fleet
from everline.platform.spool import open_log
from everline.platform.tracking import prepare_tracking

ROOT = Path(__file__).parents[2]
PARTS = {"histogram": {"_bucket", "_count", "_sum"}, "counter": {""}, "gauge": {""}}
STATUS = {
    "version": 3,
    "images_learned": 40,
    "calibrated": True,
    "false_rejects": {"target": 0.01, "rate": None, "low": 0.0, "high": 0.2, "n": 9, "unconfirmed": 1},
    "versions_waiting": 1,
    "spooled": 0,
}


class Heard:
    """Double of Ray's metrics: what each was told, by its labels."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.told = metric, dict[tuple[str, ...], list[float]]()

    def tell(self, value: float, labels: dict[str, str]) -> None:
        assert set(labels) == set(self.metric.labels)
        self.told.setdefault(tuple(labels[name] for name in self.metric.labels), []).append(value)

    inc = observe = set = tell


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Heard]:
    doubles = {name: Heard(metric) for name, metric in METRICS.items()}
    monkeypatch.setattr(metrics, "_made", doubles.__getitem__)
    return doubles


def alarms() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy" / "grafana" / "alarms.yml").read_text("utf-8"))
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def panels() -> list[str]:
    """What the dashboard asks for."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "everline.json").read_text("utf-8"))
    variables = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def asked(expression: str) -> list[tuple[str, set[str]]]:
    """Names without Ray's prefix, and the labels that they are chosen by."""
    found = re.findall(rf"{PREFIX}(everline_\w+)(?:\{{([^}}]*)\}})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*=", chosen))) for name, chosen in found]


def test_dashboard_and_alarms_ask_for_metrics_and_labels_that_there_are() -> None:
    exported = {name + part: metric for name, metric in METRICS.items() for part in PARTS[metric.kind]}
    shown = set()
    for expression in panels() + alarms():
        assert asked(expression), expression
        for name, labels in asked(expression):
            assert name in exported, f"{name} in {expression}"
            assert labels <= set(exported[name].labels), expression
            shown |= {exported[name].name} if expression in panels() else set()
        for kept in re.findall(r"by \(([^)]*)\)", expression):
            there = {label for name, _ in asked(expression) for label in exported[name].labels}
            assert {one.strip() for one in kept.split(",")} <= there | {"le"}, expression
    assert shown == METRICS.keys()


def test_counters_are_asked_for_as_rates_and_nothing_else_is() -> None:
    for expression in panels() + alarms():
        for name, _ in asked(expression):
            grows = name.endswith(("_total", "_bucket"))
            assert grows == bool(re.search(rf"(rate|increase)\({PREFIX}{name}\b", expression)), expression


def test_the_dashboards_panels_have_places_of_their_own() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "everline.json").read_text("utf-8"))
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_documents_list_every_metric_as_it_is() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(everline_\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert listed == {
        m.name: f"{m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help}" for m in METRICS.values()
    }


def test_a_repeated_image_is_timed_and_not_counted_again(heard: dict[str, Heard]) -> None:
    first = Inspection("mono", "a.png", 0, "pass", 1.0, 0.4, 2.0, 1)
    metrics.recorded("mono", first, 0.02)
    metrics.recorded("mono", Inspection(**{**vars(first), "duplicate": True}), 0.03)
    assert heard["everline_verdicts_total"].told == {("mono", "pass"): [1]}
    assert heard["everline_p_value"].told == {("mono",): [0.4]}
    assert heard["everline_record_seconds"].told == {("mono",): [0.02, 0.03]}


def test_an_image_without_a_version_has_no_p_value(heard: dict[str, Heard]) -> None:
    metrics.recorded("mono", Inspection("mono", "a.png", 0, "learning"), 0.02)
    assert heard["everline_verdicts_total"].told == {("mono", "learning"): [1]}
    assert not heard["everline_p_value"].told


@pytest.mark.parametrize(
    ("more", "drift", "defects", "held"),
    [
        ({}, 0, 0, 0),
        ({"drift": {"state": "none"}}, 0, 0, 0),
        ({"drift": {"state": "drift", "since": 7}, "held": "it rejects too much"}, 1, 0, 1),
        ({"drift": {"state": "defects"}}, 0, 1, 0),
    ],
)
def test_a_lines_gauges_are_those_of_its_status(
    more: dict[str, Any], drift: int, defects: int, held: int, heard: dict[str, Heard]
) -> None:
    metrics.stands("mono", {**STATUS, **more})
    metrics.process("mono", True, 2)
    assert heard["everline_drift"].told == {("mono", "drift"): [drift], ("mono", "defects"): [defects]}
    assert heard["everline_held"].told == {("mono",): [held]}
    assert heard["everline_version"].told == {("mono",): [3]}
    (unknown,) = heard["everline_false_reject_rate"].told["mono",]
    assert unknown != unknown  # NaN is not exported; a gauge that is not set keeps what it said before
    assert all(one.told for one in heard.values() if one.metric.kind == "gauge" and "serving" not in one.metric.name)


def test_a_line_without_a_version_is_at_version_0(heard: dict[str, Heard]) -> None:
    metrics.stands("mono", {**STATUS, "version": None})
    metrics.serves("mono", None)
    assert heard["everline_version"].told == heard["everline_serving_version"].told == {("mono",): [0]}


def test_images_wait_for_looks_one_percent_of_the_time_and_one_slow_look_does_not_make_figures_old() -> None:
    assert pause_after(0.002) < TEND_S
    assert pause_after(0.3) == pytest.approx(30)
    assert pause_after(2.5) == pause_after(1000) == 60


def test_a_line_that_is_seldom_looked_at_is_told_of_as_often_as_another(
    heard: dict[str, Heard], tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    class Slow(LineActor):
        def _look(self) -> dict[str, Any]:
            time.sleep(0.3)
            looks.append(super()._look())
            return looks[-1]

    context = SimpleNamespace(get_node_id=lambda: "here", was_current_actor_reconstructed=False)
    monkeypatch.setattr(actor, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    monkeypatch.setattr(actor, "TEND_S", 0.01)
    settings = parse_fleet({"store": "store", "lines": {"mono": {"params": {"size": 64}}}}, tmp_path).line("mono")
    line = Slow("mono", settings, str(tmp_path), tracking_uri)
    told = heard["everline_images_learned"].told
    give_up = time.monotonic() + 120
    while len(told.get(("mono",), [])) < 10 and time.monotonic() < give_up:
        time.sleep(0.01)
    asyncio.run(line.close())
    assert set(told["mono",]) == {0} and len(told["mono",]) >= 10
    assert len(looks) == 1, "Ray forgets a gauge that is not set for twenty seconds, however long the next look is off"


def test_without_ray_all_of_it_counts_for_nobody_and_does_no_harm() -> None:
    metrics.recorded("mono", Inspection("mono", "a.png", 0, "pass", 1.0, 0.4, 2.0, 1), 0.02)
    metrics.dropped("mono")
    metrics.stands("mono", STATUS)
    metrics.inspected("mono", 0.1)
    metrics.failed("bad_image")


@pytest.mark.slow
def test_a_lines_gauges_end_with_its_process_and_its_counts_stay(
    ray_session: None, tmp_path: Path, parts: list[bytes], scrape: Callable[[list[str]], dict[Any, float]]
) -> None:
    line = {"method": "lemo", "queue": 1, "when_full": "drop", "params": {"size": 64}}
    fleet = parse_fleet({"store": "store", "lines": {"measured": line, "locked": line}}, tmp_path)
    prepare_tracking(fleet.tracking)
    writer = open_log(line_folder(fleet.store, "locked"), None, 0)
    locked = _actor("locked", fleet.line("locked"), fleet, False)  # it stands, and cannot open its log
    handle, _ = start_line("measured", fleet)
    asked = [handle.inspect.remote(data, f"i{n}") for n, data in enumerate(parts)]
    dropped = 0
    for ref in asked:
        try:
            answer(ref)
        except Dropped:
            dropped += 1
    assert 0 < dropped < len(parts)

    def until(line: str, **wanted: float | None) -> None:
        give_up = time.monotonic() + 300
        while True:
            found = scrape(metrics_targets())
            mine = {name: v for (name, labels), v in found.items() if ("line", line) in labels}
            if all(mine.get(name) == value for name, value in wanted.items()):
                return
            assert time.monotonic() < give_up, (wanted, mine)
            time.sleep(1)

    counts = {"everline_dropped_total": dropped, "everline_record_seconds_count": len(parts) - dropped}
    until("measured", **counts, everline_up=1, everline_queue_images=0, everline_version=0)
    ray.kill(handle)
    until("measured", **counts, everline_up=None, everline_queue_images=None, everline_version=None)
    until("locked", everline_up=0, everline_queue_images=0, everline_version=None)
    ray.kill(locked)
    writer.release()
