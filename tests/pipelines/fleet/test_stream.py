"""`everline stream` as a user runs it: again after a crash, and a third time for nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from everline.platform.log import LogReader, line_folder, verify

from ...conftest import typed, until

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: coreset, false_reject_rate: 0.05, probation: 1, params: {size: 64, memory: 100}}
"""


@pytest.fixture
def folder(tmp_path: Path, parts: list[bytes], tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a fleet file and images."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "images").mkdir()
    for index, data in enumerate(parts):
        (tmp_path / "images" / f"{index:03d}.png").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path, address: str, *args: str) -> "subprocess.Popen[str]":
    """The command in a process of its own, on that cluster, or on one of its own ("local")."""
    # A shell that starts the tests in the background has them ignore Ctrl-C, and their children too.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from everline.pipelines.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def logged(process: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    """Waits until the line has logged so many records, or the command has ended."""
    log = line_folder(folder / "store", "mono")
    until(lambda: len(LogReader(log)) >= count or process.poll() is not None)


def streamed() -> Any:
    said = typed("stream", "mono", "images", "--json", "-")
    assert said.code == 0, said.err
    return said.json


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_again_and_a_third_time(folder: Path) -> None:
    process = start(folder, "local", "stream", "mono", "images")
    log = line_folder(folder / "store", "mono")
    logged(process, folder, 20)
    os.killpg(process.pid, signal.SIGKILL)  # the command and its Ray, as when the power goes
    process.communicate()
    before = len(LogReader(log))
    assert 20 <= before < 60

    again = streamed()
    assert again["acknowledged"] == 60
    assert again["duplicates"] >= 19
    assert (verify(log).inspected, verify(log).unique) == (60, 60)

    third = streamed()
    assert (third["duplicates"], third["admitted"]) == (60, 0)
    assert third["status"]["images_learned"] == again["status"]["images_learned"]

    found = typed("log", "verify", "mono", "--json", "-").json
    assert (found["inspected"], found["unique"], found["ok"]) == (60, 60, True)
    assert "mono" in typed("lines").out
    assert "current" in typed("versions", "mono").out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_clean_state(
    folder: Path, parts: list[bytes], number: signal.Signals, ray_session: str
) -> None:
    for index, data in enumerate(parts):  # more than any machine gets through before the signal comes
        for copy in range(10):
            (folder / "images" / f"{index:03d}-{copy}.png").write_bytes(data)
    process = start(folder, ray_session, "stream", "mono", "images")
    logged(process, folder, 10)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    log = line_folder(folder / "store", "mono")
    assert verify(log).ok
    assert list((log / "checkpoints").iterdir())  # it was closed


def test_a_folder_without_images_is_a_clear_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    said = typed("stream", "mono", "empty")
    assert said.code == 1
    assert "no images" in said.err


def test_an_unknown_line_is_a_clear_error(folder: Path) -> None:
    said = typed("stream", "momo", "images")
    assert said.code == 1
    assert "mono" in said.err
