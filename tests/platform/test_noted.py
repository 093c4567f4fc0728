"""The note that Ray leaves of a cluster may lead nowhere, to another program, or to somebody else's cluster."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, LineDown
from everline.pipelines import doctor
from everline.platform import head, noted, ray_token
from everline.platform.noted import LONGEST, Noted, check_temp_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path


@pytest.fixture
def program() -> Iterator[str]:
    """Another program's server."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stale_note_whose_port_is_another_programs_is_none(folder: Path, program: str) -> None:
    assert noted.noted() is None
    noted.note().write_text(program)
    assert noted.noted() is None and head.join(start=False) is None
    assert doctor.check_cluster().ok


def test_what_listens_and_says_nothing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_token, "ASK_S", 0.3)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        noted.note().write_text(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LineDown, match=r"does not answer.*remove that file"):
            head.join(start=False)


def test_another_users_cluster_is_not_joined_and_none_is_started_beside_it(
    folder: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted.note().write_text(ray_session)
    assert noted.noted() == Noted(ray_session)
    monkeypatch.setattr(noted.os, "getuid", lambda: 54321)
    other = noted.noted()
    assert other is not None and other.owner == "root" if os.stat(folder).st_uid == 0 else other
    assert not doctor.check_cluster().ok
    with pytest.raises(LineDown, match=r"is of user .*; set RAY_TMPDIR to a folder of your own"):
        head.join(start=True)


def test_a_temporary_folder_that_ray_cannot_use_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * LONGEST)
    with pytest.raises(ConfigError, match=f"{LONGEST + 1} characters are too many for Ray's sockets"):
        check_temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ConfigError, match="/dev/null: Ray cannot write there"):
        check_temp_folder()
    looked = doctor.check_temp_folder()
    assert not looked.ok and "cannot write" in looked.mend
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/is/made")
    check_temp_folder()
