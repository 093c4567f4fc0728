"""What Prometheus would find of a served fleet, and what nobody does without a token."""

from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest
from everline.methods.errors import EverlineError
from everline.platform.metrics import METRICS

from ..conftest import PATIENCE_S, until
from .conftest import Served

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[[list[str]], Samples]


@pytest.fixture(scope="module")
def before(served: Served, scrape: Scrape) -> Samples:
    """What was counted when nobody had sent anything to `counted`."""
    return scrape(served.ask("GET", "/metrics/targets")[2][0]["targets"])


@pytest.fixture(scope="module")
def answers(served: Served, before: Samples, parts: list[bytes]) -> list[dict[str, Any]]:
    """What `counted` was shown before anybody looks: sixty images, some of them again, and what is none."""
    client = served.client(served.tokens["inspect"])
    answers = [client.inspect("counted", data) for data in parts[:40]]
    until(lambda: client.get("/lines/counted")["serving_version"] is not None)
    answers += [client.inspect("counted", data) for data in parts[40:]]
    answers += [client.inspect("counted", data) for data in parts[:5]]  # known by then: timed, and not counted again
    for _ in range(3):
        with pytest.raises(EverlineError, match="400"):
            client.inspect("counted", b"no image")
    with pytest.raises(EverlineError, match="404"):
        client.inspect("<none>", parts[0])
    client.close()
    form = b"--x\r\nContent-Disposition: form-data; name=a; filename=a.png\r\n\r\nnothing\r\n--x--\r\n"
    batch = HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    batch.request("POST", "/lines/counted/inspect/batch", form, {"Content-Type": "multipart/form-data; boundary=x"})
    assert batch.getresponse().status == 200
    batch.close()
    return answers


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"everline_{name}", frozenset(labels.items())


@pytest.mark.slow
def test_what_was_inspected_is_what_prometheus_finds(
    served: Served, before: Samples, answers: list[dict[str, Any]], scrape: Scrape
) -> None:
    told = Counter(one["verdict"] for one in answers if not one["duplicate"])
    assert sum(one["duplicate"] for one in answers) == 5
    assert told["pass"] > 0
    ps = [one["p_value"] for one in answers if one["p_value"] is not None and not one["duplicate"]]
    client = served.client()
    status = client.get("/lines/counted")  # the line has learned what it was shown before it answers
    (group,) = client.get("/metrics/targets")
    client.close()
    assert status["images_learned"] > 0 and status["version"] > 0
    verdicts: Samples = {sample("verdicts_total", line="counted", verdict=v): n for v, n in told.items()}
    wanted = verdicts | {
        sample("inspect_seconds_count", line="counted"): 65,
        sample("record_seconds_count", line="counted"): 65,
        sample("p_value_count", line="counted"): len(ps),
        sample("p_value_bucket", line="counted", le="0.2"): sum(p <= 0.2 for p in ps),
        sample("images_learned", line="counted"): status["images_learned"],
        sample("version", line="counted"): status["version"],
        sample("serving_version", line="counted"): status["version"],
        sample("version", line="waits"): 0,
        sample("up", line="counted"): 1,
        sample("up", line="drops"): 1,
        sample("false_reject_rate_promised", line="counted"): 0.1,
    }
    more = {sample("errors_total", code="bad_image"): 4, sample("errors_total", code="unknown_line"): 1}

    def there() -> Samples | None:
        found = scrape(group["targets"])
        equal = all(found.get(key) == value for key, value in wanted.items())
        return found if equal and all(found.get(k, 0) >= before.get(k, 0) + n for k, n in more.items()) else None

    samples = until(there)  # Ray's agents hear of new figures every now and then
    ours = {key for key in samples if key[0] == "everline_verdicts_total" and ("line", "counted") in key[1]}
    assert ours == verdicts.keys()
    bases = {name.rsplit("_", 1)[0] if name.endswith(("_bucket", "_count", "_sum")) else name for name, _ in samples}
    silent = {"everline_dropped_total", "everline_alias_put_back_total"}  # a counter without a count is not exported
    if status["false_rejects"]["rate"] is None:
        silent.add("everline_false_reject_rate")
    assert METRICS.keys() - silent <= bases <= METRICS.keys()
    assert "<none>" not in {dict(labels).get("line") for _, labels in samples}, "a made-up line is no label"


@pytest.mark.slow
def test_without_its_token_nobody_changes_a_served_line_and_no_token_is_written_anywhere(
    served: Served, answers: list[dict[str, Any]]
) -> None:
    passed = next(one for one in answers if one["verdict"] == "pass")
    changes = {
        "/lines/counted/feedback": {"id": passed["id"], "label": "ok"},
        "/lines/counted/rollback": {"version": 1},
        "/lines/counted/task": {"task": "cap"},
    }
    client = served.client()
    before = client.get("/lines/counted")
    change, inspect = served.tokens["change"], served.tokens["inspect"]
    refused = ("", 401, "no_token"), (f"{change}x", 401, "no_token"), (inspect, 403, "forbidden")
    for path, body in changes.items():
        for token, status, code in refused:
            found, headers, answer = served.post(path, body, token)
            assert (found, answer["error"]["code"]) == (status, code), path
            assert answer["error"].keys() == {"code", "message", "request_id"}
            assert answer["error"]["request_id"] == headers["x-request-id"]
            assert headers["www-authenticate"].startswith('Bearer realm="everline"')
    assert client.get("/lines/counted")["records"] == before["records"], "what was refused must not be in the log"

    taken = {path: served.post(path, body, change) for path, body in changes.items()}
    assert [status for status, *_ in taken.values()] == [200, 200, 200], taken
    after = client.get("/lines/counted")
    assert (after["records"], after["version"], after["task"]) == (before["records"] + 3, 1, "cap")
    rows = client.get("/lines/counted/images?limit=60")["images"]
    assert [(row["label"], row["by"]) for row in rows if row["id"] == passed["id"]] == [("ok", "change")]

    known = (served.folder / "tokens.yaml").read_text()
    try:
        (served.folder / "tokens.yaml").write_text("nobody: [")
        assert served.post("/lines/counted/task", {"task": "cap"}, change)[0] == 200, "the tokens before stay valid"
    finally:
        (served.folder / "tokens.yaml").write_text(known)
    client.close()
    written = served.written()
    warned = any(b"the tokens read before stay valid" in text for text in written.values())
    assert warned, "the server's own log is not among these"
    assert {path.name for path in written} >= {"out", "err", "fleet.yaml"}
    for token in (change, inspect):
        assert not [path for path, text in written.items() if token.encode() in text]
