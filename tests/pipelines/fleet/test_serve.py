"""`everline serve` in a process of its own: how it ends."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from everline.deploy.server import free_port
from everline.platform.log import line_folder, verify

from ...conftest import MAIN, until

pytestmark = pytest.mark.slow
FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""


class Server:
    """The command, with a cluster of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        (folder / "fleet.yaml").write_text(FLEET)
        self.process = subprocess.Popen(
            [*MAIN, "serve", "--port", str(self.port)],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": "local"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout
        assert f":{self.port}" in self.process.stdout.readline()
        self.all = psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> tuple[int, str]:
        """Waits: exit status, standard error."""
        _, err = self.process.communicate(timeout=240)
        return self.process.returncode, err

    def left(self) -> list[psutil.Process]:
        """Processes of its cluster that still run."""
        return [one for one in self.all if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def listens(self) -> bool:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port), timeout=1)):
            return True
        return False


@pytest.fixture
def server(tmp_path: Path, tracking_uri: str) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    for process in one.left():
        process.kill()


def test_a_cluster_that_dies_ends_it_with_an_error_and_leaves_nothing_running(server: Server) -> None:
    (raylet,) = (one for one in server.all if one.name() == "raylet")
    raylet.kill()
    code, err = server.end()
    assert code == 1
    assert "error: the Ray cluster is lost: raylet ended; start the command again." in err
    until(lambda: not server.left())
    assert not server.listens()
    assert verify(line_folder(server.folder / "store", "mono")).ok


def test_sigterm_ends_it_as_ctrl_c_does(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    code, err = server.end()
    assert (code, err) == (0, "stopping ...\n")
    until(lambda: not server.left())
    assert verify(line_folder(server.folder / "store", "mono")).ok
