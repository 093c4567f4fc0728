"""`everline stream` as a user runs it: again after a crash, and a third time for nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from everline.platform.log import LogReader, line_folder, verify

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: coreset, false_reject_rate: 0.05, probation: 1, params: {size: 64, memory: 100}}
"""


@pytest.fixture
def folder(tmp_path: Path, parts: list[bytes]) -> Path:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "images").mkdir()
    for index, data in enumerate(parts):
        (tmp_path / "images" / f"{index:03d}.png").write_bytes(data)
    return tmp_path


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    # A shell that starts the tests in the background has them ignore Ctrl-C, and their children too.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from everline.pipelines.main import main; main()"
    env = {**os.environ, "RAY_ADDRESS": "local"}  # not the cluster of the other tests
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(folder: Path, *args: str, code: int = 0) -> str:
    process = start(folder, *args)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_killed_again_and_a_third_time(folder: Path) -> None:
    process = start(folder, "stream", "mono", "images", "--json", "out.json")
    log = line_folder(folder / "store", "mono")
    while len(LogReader(log)) < 20 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the command and its Ray, as when the power goes
    process.communicate()
    before = len(LogReader(log))
    assert 20 <= before < 60

    run(folder, "stream", "mono", "images", "--json", "out.json")
    assert told(folder)["acknowledged"] == 60
    assert told(folder)["duplicates"] >= 19
    assert (verify(log).inspected, verify(log).unique) == (60, 60)
    learned = told(folder)["status"]["images_learned"]

    run(folder, "stream", "mono", "images", "--json", "out.json")
    assert (told(folder)["duplicates"], told(folder)["admitted"]) == (60, 0)
    assert told(folder)["status"]["images_learned"] == learned

    found = json.loads(run(folder, "log", "verify", "mono", "--json", "-"))
    assert (found["inspected"], found["unique"], found["ok"]) == (60, 60, True)
    assert "mono" in run(folder, "lines")
    assert "current" in run(folder, "versions", "mono")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_clean_state(folder: Path, parts: list[bytes], number: signal.Signals) -> None:
    for index, data in enumerate(parts):  # more than any machine gets through before the signal comes
        for copy in range(10):
            (folder / "images" / f"{index:03d}-{copy}.png").write_bytes(data)
    process = start(folder, "stream", "mono", "images")
    log = line_folder(folder / "store", "mono")
    while len(LogReader(log)) < 10 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert verify(log).ok
    assert list((log / "checkpoints").iterdir())  # it was closed


def test_a_folder_without_images_is_a_clear_error(folder: Path) -> None:
    (folder / "empty").mkdir()
    process = start(folder, "stream", "mono", "empty")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "no images" in err


def test_an_unknown_line_is_a_clear_error(folder: Path) -> None:
    process = start(folder, "stream", "momo", "images")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "mono" in err
