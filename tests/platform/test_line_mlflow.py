"""A line and a real MLflow server that is killed and started again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from everline.methods.errors import TrackingError
from everline.platform.line import Line
from everline.platform.log import LogReader
from everline.platform.settings import LineSettings
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUICK = LineSettings(
    method="lemo", params={"size": 64}, false_reject_rate=0.2, probation=1, publish_every=25, checkpoint_every=20
)


@pytest.fixture
def server(tracking_uri: str, tmp_path: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """Its address, and what starts it."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, started = f"http://127.0.0.1:{port}", list[subprocess.Popen[bytes]]()

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri, "--port", str(port)]
        command += ["--artifacts-destination", (tmp_path / "served").as_uri(), "--workers", "1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        started.append(subprocess.Popen(command, start_new_session=True, cwd=tmp_path, env=env, **quiet))
        while True:
            try:
                with urlopen(f"{url}/health", timeout=5):
                    return started[-1]
            except OSError:
                assert started[-1].poll() is None, "the server did not start"
                time.sleep(0.1)

    yield url, start
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_server_that_dies_and_comes_back_gets_every_version_in_order(
    server: tuple[str, Callable[[], Any]],
    tmp_path: Path,
    parts: list[bytes],
    more_parts: list[bytes],
) -> None:
    url, start = server
    running = start()
    prepare_tracking(url)
    line = Line("mono", QUICK, tmp_path / "store", Versions(url, "mono"))
    images = iter(enumerate([*parts, *more_parts]))

    def send(count: int) -> None:
        for _ in range(count):
            number, data = next(images)
            line.inspect(data, f"i{number}")
        line.settle()

    send(35)
    assert line.status()["version"] == 1
    kill(running)
    send(60)
    assert (line.status()["version"], line.status()["versions_waiting"]) == (1, 2)
    with pytest.raises(TrackingError):
        line.rollback(1)
    line.writer.release()  # as SIGKILL would
    line = Line("mono", QUICK, tmp_path / "store", Versions(url, "mono"))  # while it is down
    assert (line.status()["version"], line.status()["versions_waiting"]) == (1, 2)
    start()
    line._retry_at = 0.0
    send(1)
    while line.status()["versions_waiting"]:
        line.settle()
    line.close()
    found = Versions(url, "mono").list()
    assert [v.version for v in found] == [3, 2, 1]
    assert sorted(v.watermark for v in found) == [v.watermark for v in reversed(found)]
    assert found[0].aliases == ("current",)
    published = [r.version for r in LogReader(tmp_path / "store/mono").records(images=False) if r.kind == "publish"]
    assert published == [1, 2, 3]
