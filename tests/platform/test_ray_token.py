"""A Ray cluster without a token runs anybody's code: everline neither starts nor joins one, unless it is told to."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError
from everline.platform.ray_token import ALLOW_OPEN, lets_anybody_in, prepare_token, require_token, require_token_mode

from ..conftest import MAIN

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[str]:
    """A head as `ray start` makes it where nobody has made a token."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ev", dir="/tmp", ignore_cleanup_errors=True) as folder:
        env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        words = [
            "start",
            "--head",
            "--block",
            "--num-cpus",
            "1",
            "--node-ip-address",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        rest = ["--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", "100000000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words, *rest],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        try:
            for line in process.stdout:
                if "Ray runtime started" in line:
                    break
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_not_joined(open_cluster: str, tmp_path: Path) -> None:
    assert lets_anybody_in(open_cluster)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    env = {**os.environ, "RAY_ADDRESS": open_cluster, "RAY_AUTH_MODE": "token"}
    asked = subprocess.run([*MAIN, "up", "--dry-run"], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert asked.returncode == 2
    assert f":{open_cluster.rpartition(':')[2]} asks for no token" in asked.stderr
    assert f"or set {ALLOW_OPEN}=1" in asked.stderr
    env[ALLOW_OPEN] = "1"
    asked = subprocess.run([*MAIN, "up", "--dry-run"], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert asked.returncode == 0, asked.stderr


def test_a_cluster_with_a_token_lets_nobody_in_without(ray_session: str) -> None:
    assert not lets_anybody_in(ray_session)
    require_token(ray_session)


def test_a_command_that_turns_the_token_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_token_mode()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled makes a Ray cluster in which whoever reaches"):
        require_token_mode()
    monkeypatch.setenv(ALLOW_OPEN, "1")
    require_token_mode()


def test_the_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    prepare_token()
    made = token.read_text()
    assert len(made) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    token.chmod(0o644)
    prepare_token()
    assert (token.stat().st_mode & 0o777, token.read_text()) == (0o600, made)
