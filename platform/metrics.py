"""What Prometheus hears of lines and serving replicas: one table, and Ray's agent on each node exports it.

Ray writes `ray_` before each name, adds labels of its own (the node, the worker) and sends counts every ten seconds. A
gauge goes some twenty seconds after it was set last (by a process that ended, or one that says it once), a counter
stays with the node; a gauge that is set to NaN is not exported. Without Ray the same calls count in this process, and
nobody hears of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from .line import Inspection

PREFIX = "ray_"
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60)
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
ALARMS = ("drift", "defects")  # states of the watch for drift


@dataclass(frozen=True)
class Metric:
    """One row of the table. bounds: upper ends of a histogram's buckets."""

    name: str
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()


_LINE = ("line",)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("everline_up", "gauge", _LINE, "1: the line is open; 0: it is being opened, or was stopped"),
        Metric("everline_verdicts_total", "counter", (*_LINE, "verdict"), "images in the log, each id once"),
        Metric("everline_p_value", "histogram", _LINE, "p-values of these images, once there is a version", SHARES),
        Metric(
            "everline_record_seconds", "histogram", _LINE, "at the line, from an image to its record's sync", SECONDS
        ),
        Metric("everline_queue_images", "gauge", _LINE, "images that wait at the line"),
        Metric("everline_dropped_total", "counter", _LINE, "images sent away by `when_full: drop`"),
        Metric("everline_version", "gauge", _LINE, "number of the current version; 0: none yet"),
        Metric("everline_images_learned", "gauge", _LINE, "images that the learner knows"),
        Metric("everline_false_reject_rate", "gauge", _LINE, "of the last 1000 verdicts; absent while not known"),
        Metric("everline_false_reject_rate_low", "gauge", _LINE, "lower end of its 95 % interval"),
        Metric("everline_false_reject_rate_high", "gauge", _LINE, "upper end of its 95 % interval"),
        Metric("everline_false_reject_rate_promised", "gauge", _LINE, "the line's setting `false_reject_rate`"),
        Metric("everline_calibrated", "gauge", _LINE, "1: the threshold can promise that rate"),
        Metric("everline_drift", "gauge", (*_LINE, "state"), "1 while the watch says so: `drift` or `defects`"),
        Metric("everline_held", "gauge", _LINE, "1 while a candidate of the line's own is held back"),
        Metric("everline_versions_waiting", "gauge", _LINE, "versions that MLflow has not heard of yet"),
        Metric("everline_alias_put_back_total", "counter", _LINE, "times that somebody moved the alias in MLflow"),
        Metric("everline_spooled_records", "gauge", _LINE, "records that the store has not taken yet"),
        Metric("everline_inspect_seconds", "histogram", _LINE, "at a replica, from a request to its answer", SECONDS),
        Metric("everline_serving_version", "gauge", _LINE, "the version that a replica scores with; 0: none yet"),
        Metric("everline_errors_total", "counter", ("code",), "errors that a replica has answered"),
    )
}


def recorded(line: str, inspection: Inspection, seconds: float) -> None:
    """An image was judged, logged and acknowledged by its line."""
    _observe("everline_record_seconds", seconds, line=line)
    if inspection.duplicate:
        return
    _count("everline_verdicts_total", line=line, verdict=inspection.verdict)
    if inspection.p_value is not None:
        _observe("everline_p_value", inspection.p_value, line=line)


def dropped(line: str) -> None:
    """A line that is full has sent an image away for good."""
    _count("everline_dropped_total", line=line)


def alias_put_back(line: str) -> None:
    """A line has found another version current in MLflow than its log says."""
    _count("everline_alias_put_back_total", line=line)


def process(line: str, up: bool, waiting: int) -> None:
    """What is known of a line though it is at work, or not open."""
    _set("everline_up", up, line=line)
    _set("everline_queue_images", waiting, line=line)


def stands(line: str, status: Mapping[str, Any]) -> None:
    """The rest of a line's gauges, from its status."""
    rates = status["false_rejects"]
    alarm = status.get("drift", {}).get("state")
    _set("everline_version", status["version"] or 0, line=line)
    _set("everline_images_learned", status["images_learned"], line=line)
    _set("everline_false_reject_rate", rates["rate"], line=line)
    _set("everline_false_reject_rate_low", rates["low"], line=line)
    _set("everline_false_reject_rate_high", rates["high"], line=line)
    _set("everline_false_reject_rate_promised", rates["target"], line=line)
    _set("everline_calibrated", status["calibrated"], line=line)
    for state in ALARMS:
        _set("everline_drift", alarm == state, line=line, state=state)
    _set("everline_held", bool(status.get("held")), line=line)
    _set("everline_versions_waiting", status["versions_waiting"], line=line)
    _set("everline_spooled_records", status["spooled"], line=line)


def inspected(line: str, seconds: float) -> None:
    """A replica has answered a request for an inspection."""
    _observe("everline_inspect_seconds", seconds, line=line)


def serves(line: str, version: int | None) -> None:
    """What a replica scores a line's images with."""
    _set("everline_serving_version", version or 0, line=line)


def failed(code: str) -> None:
    """A replica has answered with an error of this code."""
    _count("everline_errors_total", code=code)


def _count(name: str, **labels: str) -> None:
    _made(name).inc(1, labels)


def _observe(name: str, value: float, **labels: str) -> None:
    _made(name).observe(value, labels)


def _set(name: str, value: float | None, **labels: str) -> None:
    _made(name).set(float("nan") if value is None else float(value), labels)


@cache
def _made(name: str) -> Any:
    metric = METRICS[name]
    if metric.kind == "histogram":
        return Histogram(name, metric.help, list(metric.bounds), metric.labels)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](name, metric.help, metric.labels)
