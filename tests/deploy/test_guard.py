"""Tokens, rates and time-outs over the real routes, in front of a double of the desk."""

import asyncio
import logging
import socket
import stat
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from everline.deploy.app import Access
from everline.deploy.guard import CLIENTS, Rate, Rules
from everline.deploy.server import is_loopback
from everline.deploy.tokens import Tokens, make_token, read_tokens
from everline.deploy.web import application
from everline.methods.errors import ConfigError
from everline.pipelines.fleet.serve import access_at
from everline.pipelines.main import cli
from fastapi.testclient import TestClient


class Desk:
    """Double of deploy.desk.Desk."""

    async def lines(self) -> list[dict[str, Any]]:
        return []

    async def inspect(self, *_: Any) -> dict[str, Any]:
        return {"verdict": "pass"}

    async def rollback(self, line: str, version: int | None) -> int:
        return 1

    async def line(self, line: str) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    def health(self) -> dict[str, Any]:
        return {"status": "ok"}


def client(peer: str = "127.0.0.1", **rules: Any) -> TestClient:
    app = application(Desk(), rules=Rules(**rules))  # type: ignore[arg-type]
    return TestClient(app, "http://localhost:8000", raise_server_exceptions=False, client=(peer, 50000))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ROLLBACK = "/lines/mono/rollback"


def test_a_change_needs_a_token_that_may_change(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    boss, camera = make_token(path, "boss", ("change",)), make_token(path, "camera", ("inspect",))
    http = client(tokens=Tokens(path))
    nobody = http.post(ROLLBACK)
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "no_token")
    assert nobody.headers["www-authenticate"] == 'Bearer realm="everline"'
    assert nobody.json()["error"]["request_id"] == nobody.headers["x-request-id"]
    for wrong in (boss[:-1], boss + "x", boss.upper(), "", "\xff"):
        refused = http.post(ROLLBACK, headers={"Authorization": f"Bearer {wrong}".encode("latin-1")})  # type: ignore[dict-item]
        assert refused.status_code == 401
    other = http.post(ROLLBACK, headers=bearer(camera))
    assert (other.status_code, other.json()["error"]["code"]) == (403, "forbidden")
    assert 'error="insufficient_scope"' in other.headers["www-authenticate"]
    assert http.post(ROLLBACK, headers=bearer(boss)).json() == {"line": "mono", "version": 1}
    assert http.get("/lines").status_code == 200
    assert http.post("/lines/mono/inspect", content=b"x").status_code == 200


@pytest.mark.parametrize("path", ["/lines/mono/task", "/lines/mono/feedback", "/lines/inspect", "/any", "//x/inspect"])
def test_a_route_that_nobody_thought_of_needs_change(tmp_path: Path, path: str) -> None:
    camera = make_token(tmp_path / "t", "camera", ("read", "inspect"))
    http = client(tokens=Tokens(tmp_path / "t"))
    assert http.post(path).status_code == 401
    assert http.post(path, headers=bearer(camera)).status_code == 403


def test_all_may_need_a_token_but_health_does_not(tmp_path: Path) -> None:
    camera = make_token(tmp_path / "t", "camera", ("inspect",))
    http = client(tokens=Tokens(tmp_path / "t"), all=True)
    assert http.get("/health").status_code == 200
    assert [http.get(path).status_code for path in ("/lines", "/openapi.json", "/none")] == [401, 401, 401]
    assert http.get("/lines", headers=bearer(camera)).status_code == 403
    assert http.post("/lines/mono/inspect", content=b"x").status_code == 401
    assert http.post("/lines/mono/inspect", content=b"x", headers=bearer(camera)).status_code == 200


def test_a_token_taken_out_of_the_file_is_out_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t"
    boss = make_token(path, "boss", ("change",))
    http = client(tokens=Tokens(path))
    assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 200
    path.write_text("{}\n")
    assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 401


SHA = "ab" * 32
BAD_FILES = [  # what is typed, and the line that the error names
    ("- a", None),
    ("boss: [", 1),
    ("boss: {sha256: 12, may: [change]}", 1),
    (f"boss:\n  sha256: {SHA}\n  may: [chnage]", 3),
    (f"boss:\n  sha256: {SHA}\n  mya: [change]", 3),
    (f"boss:\n  sha256: {SHA}\n  may: change", 3),
    (f"boss:\n  sha256: {SHA}", 1),
    ("boss:\n  may: [change]\n  sha256: 2024-13-45", 3),  # no such day: PyYAML raises a ValueError
    (f"boss:\n  sha256: !!int {SHA[1:]}x\n  may: [change]", 2),
    (f"boss:\n  sha256: !!bool {SHA}\n  may: [change]", 2),
    (f"boss:\n  sha256: {SHA}\n  may: !!timestamp [change]", 3),
    ("!!set boss", 1),
    (f"boss: {{sha256: {SHA}, may: [read]}}\n12: {{}}", 2),
    (f"boss: {{sha256: {SHA}, may: [read]}}\n\nboss: {{}}", 1),
]


@pytest.mark.parametrize(("text", "line"), BAD_FILES)
def test_a_bad_tokens_file_is_refused_at_start_and_a_bad_change_is_not_taken(
    tmp_path: Path, text: str, line: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t"
    boss = make_token(path, "boss", ("change",))
    http = client(tokens=Tokens(path))
    path.write_text(text)
    assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 200
    assert http.post(ROLLBACK, headers=bearer("guessed")).status_code == 401
    assert [one.levelname for one in caplog.records if "stay valid" in one.message] == ["WARNING"], "once a change"
    with pytest.raises(ConfigError, match=f"t, line {line}: |line {line}, column" if line else "expected names"):
        Tokens(path)
    make_token(tmp_path / "new", "boss", ("change",))
    (tmp_path / "new").replace(path)
    assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 401, "the mended file counts again"


def test_a_tokens_file_that_is_removed_or_opened_to_all_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t"
    boss = make_token(path, "boss", ("change",))
    http = client(tokens=Tokens(path))
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 200
        with pytest.raises(ConfigError, match=f"others than the file's owner .*mode 0{mode:o}.*chmod go-w"):
            Tokens(path)
        with pytest.raises(ConfigError, match="chmod go-w"):
            make_token(path, "camera", ("inspect",))
    path.unlink()
    assert http.post(ROLLBACK, headers=bearer(boss)).status_code == 200
    assert "no tokens file" in caplog.text


def test_a_tokens_file_that_everybody_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_token(tmp_path / "t", "boss", ("change",))
    Tokens(tmp_path / "t")
    assert caplog.text == ""
    (tmp_path / "t").chmod(0o644)
    Tokens(tmp_path / "t")
    assert "everybody on this machine may read it (mode 0644)" in caplog.text


def test_no_token_gets_into_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boss = make_token(tmp_path / "t", "boss", ("read",))
    caplog.set_level(logging.DEBUG)
    http = client(tokens=Tokens(tmp_path / "t"))
    answers = [http.post(ROLLBACK, headers=bearer(boss)), http.post(ROLLBACK, headers=bearer(f"{boss}x"))]
    assert [answer.status_code for answer in answers] == [403, 401]
    assert boss not in caplog.text
    assert not any(boss in answer.text + str(answer.headers) for answer in answers)


def test_without_tokens_a_server_that_is_not_open_changes_nothing() -> None:
    assert client().post(ROLLBACK).status_code == 200
    shut = client(open=False)
    assert "tokens file" in shut.post(ROLLBACK).json()["error"]["message"]
    assert shut.get("/lines").status_code == 200


HERE = "http://localhost:8000"
OTHER_PAGES = [  # headers that a browser sends with the request of another site's page
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": HERE},
    {"Origin": "http://evil.example"},  # over plain http by a name a browser sends no Sec-Fetch-Site
    {"Origin": "http://localhost"},
    {"Origin": "http://localhost:9000"},
    {"Origin": "http://localhost:8000.evil.example"},
    {"Origin": "http://evil.example:8000"},
    {"Origin": "http://localhost:8000@evil.example"},
    {"Origin": "null"},  # a sandboxed frame, a file
    {"Origin": "file://"},
    {"Origin": HERE, "Host": "127.0.0.1:8000"},
    {"Origin": "http://inspection.plant:9000"},
]


@pytest.mark.parametrize("tokens", [False, True])
def test_a_page_of_another_site_changes_nothing_here(tmp_path: Path, tokens: bool) -> None:
    token = bearer(make_token(tmp_path / "t", "boss", ("inspect", "change")))
    http = client(tokens=Tokens(tmp_path / "t")) if tokens else client(hosts=("inspection.plant",))
    for headers, path in product(OTHER_PAGES, (ROLLBACK, "/lines/mono/inspect", "/lines/mono/feedback")):
        refused = http.post(path, content=b"x", headers={**headers, **token})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "other_site"), headers
        assert "--allow-host" in refused.json()["error"]["message"]
        assert http.get("/lines", headers=headers).status_code == 200  # no page of another origin can read the answer


OWN_PAGES: list[dict[str, str]] = [
    {},
    {"Origin": HERE},
    {"Origin": "http://LOCALHOST:8000"},
    {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
    {"Sec-Fetch-Site": "none"},
    {"Host": "localhost", "Origin": "http://localhost:80"},
    {"Host": "localhost:443", "Origin": "https://localhost"},
    {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
    {"Host": "10.0.0.7", "Origin": "https://inspection.plant"},  # a proxy that sends its own Host
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://inspection.plant"},
]


def test_a_page_of_the_server_and_who_is_no_browser_may_change() -> None:
    http = client(hosts=("inspection.plant",))
    assert [http.post(ROLLBACK, headers=headers).status_code for headers in OWN_PAGES] == [200] * len(OWN_PAGES)


STRANGE_HOSTS = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "localhost:8000@evil.example", "evil.example\xff",
    "127.0.0.1.evil.example", "127.1", "", "[", "[evil.example]", "a b", "localhost:", "localhost:99999999", "x.plant",
)  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/", "/health", "/docs", "/static/page.js", "/lines", "/lines/mono/image?id=a", "/no"]
)
def test_a_name_that_leads_here_by_another_s_dns_is_not_answered(path: str) -> None:
    http = client(hosts=("inspection.plant",), machine=("press-7",))
    for host in STRANGE_HOSTS:
        refused = http.get(path, headers={"Host": host.encode("latin-1")})  # type: ignore[dict-item]
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "unknown_host"), host
        assert "--allow-host" in refused.json()["error"]["message"]
        assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]


def test_a_server_answers_to_its_names_and_to_addresses() -> None:
    http = client(hosts=("inspection.plant",), machine=("press-7",))
    for host in (
        "localhost", "LOCALHOST:1", "127.0.0.1:8000", "192.0.2.7", "[::1]", "[2001:db8::7]:8000", "inspection.plant",
        "Inspection.Plant.:443", "press-7:8000",
    ):  # fmt: skip
        assert http.get("/lines", headers={"Host": host}).is_success, host


def test_two_hosts_are_not_answered_where_one_is_unknown() -> None:
    twice = [("Host", "localhost"), ("Host", "evil.example")]
    assert client().get("/lines", headers=twice).status_code == 421  # type: ignore[arg-type]


def test_the_command_line_names_the_hosts_of_a_server() -> None:
    own = socket.gethostname().lower()
    rules = access_at("0.0.0.0", None, False, True, 0, (), ("Inspection.plant", "localhost", "10.0.0.7")).rules()
    assert rules.hosts == ("inspection.plant",) and own in rules.machine
    assert "press.plant" in access_at("press.plant", None, False, True, 0).rules().machine
    for wrong in ("http://a.plant", "a.plant:8000", "a b", "", "*", "a/b"):
        with pytest.raises(ConfigError, match="without scheme or port"):
            access_at("127.0.0.1", None, False, False, 0, (), (wrong,))


def test_who_comes_too_often_is_told_when_to_come_again() -> None:
    http = client(rate=0.1, burst=2)
    assert [http.get("/lines").status_code for _ in range(3)] == [200, 200, 429]
    answer = http.get("/lines")
    assert (answer.json()["error"]["code"], answer.headers["retry-after"]) == ("too_many_requests", "10")
    assert http.get("/health").status_code == 200


def statuses(http: TestClient, *forwarded: str) -> list[int]:
    """Asks once with each of these in X-Forwarded-For."""
    return [http.get("/lines", headers={"X-Forwarded-For": one}).status_code for one in forwarded]


def test_without_a_trusted_proxy_nobody_is_another_client_by_a_header() -> None:
    for peer, proxies in (("127.0.0.1", ()), ("192.0.2.9", ("127.0.0.1", "10.0.0.0/8"))):
        http = client(peer, rate=0.1, burst=1, proxies=proxies)
        assert statuses(http, "192.0.2.1", "192.0.2.2", "10.0.0.1") == [200, 429, 429]


def test_behind_a_trusted_proxy_the_right_most_address_that_is_no_proxy_s_counts() -> None:
    http = client(rate=0.1, burst=1, proxies=("127.0.0.1", "10.0.0.0/8"))
    assert statuses(http, "192.0.2.1", "192.0.2.2") == [200, 200]
    assert statuses(http, "1.1.1.1, 192.0.2.1", "1.1.1.2,192.0.2.1, 10.0.0.7", "1.1.1.3, 192.0.2.2") == [429, 429, 429]
    twice = [("X-Forwarded-For", "1.1.1.4"), ("X-Forwarded-For", "192.0.2.1")]
    assert http.get("/lines", headers=twice).status_code == 429  # type: ignore[arg-type]


@pytest.mark.parametrize("proxy", ["*", "nginx", "10.0.0.1/8", ""])
def test_a_trusted_proxy_is_an_address_or_a_network(proxy: str) -> None:
    with pytest.raises(ConfigError, match="expected an address such as"):
        access_at("127.0.0.1", None, False, False, 0, (proxy,))
    right = ("::1", "10.0.0.0/8")
    assert access_at("127.0.0.1", None, False, False, 0, right).rules().proxies == right


def test_a_rate_is_a_client_s_own_and_comes_back_with_time() -> None:
    now = [0.0]
    rate = Rate(2.0, 3, lambda: now[0])
    assert [rate.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.wait("b") == 0
    now[0] = 0.5
    assert [rate.wait("a"), rate.wait("a")] == [0, 0.5]
    for n in range(2 * CLIENTS):
        rate.wait(str(n))
    assert len(rate._left) == CLIENTS


def test_a_request_that_takes_too_long_is_answered() -> None:
    answer = client(timeout_s=0.05).get("/lines/mono")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_the_command_prints_a_token_once_and_keeps_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    words = ["token", "camera-1", "--tokens", str(path), "--may", "inspect", "--may", "read"]
    token = CliRunner().invoke(cli, words, standalone_mode=False).stdout.strip()
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (holder,) = read_tokens(path)
    assert (holder.name, holder.may) == ("camera-1", ("read", "inspect"))
    found = Tokens(path).holder(token)
    assert found and found.name == "camera-1"
    with pytest.raises(ConfigError, match="already"):
        make_token(path, "camera-1", ("read",))
    assert [one.name for one in tmp_path.iterdir()] == ["tokens.yaml"]


def test_a_server_that_others_reach_does_not_start_without_tokens(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match="--open"):
            access_at(host, None, False, False, 0)
    assert access_at("0.0.0.0", None, False, True, 0).rules().open
    make_token(tmp_path / "t", "boss", ("change",))
    assert access_at("0.0.0.0", tmp_path / "t", False, False, 0).rules().tokens
    assert access_at("127.0.0.1", None, False, False, 0).rules().open
    assert is_loopback("localhost")
    with pytest.raises(ConfigError, match="no tokens file"):
        Access(all=True).rules()
