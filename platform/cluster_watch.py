"""Ends a command whose Ray cluster has died under it: nothing would answer it any more, and it would wait for ever."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from .head import end_session, session_folder, session_processes

LOOK_S = 1.0


@contextmanager
def ending_with_the_cluster(say: Callable[[str], None], own: bool) -> Iterator[None]:
    """Meanwhile a thread looks at the cluster's processes on this machine; where one is gone it says so and exits (1).

    own: what is left of the cluster on this machine is ended, too. Ray is connected.
    """
    here = ray.get_runtime_context().get_node_id()
    session = session_folder(next(node for node in ray.nodes() if node["NodeID"] == here))
    watched = _vital(session)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            gone = [name for name, process in watched.items() if not _runs(process)]
            if gone:
                say(f"the Ray cluster is lost: {' and '.join(gone)} ended; start the command again.")
                if own:
                    end_session(session)
                os._exit(1)  # every other way out would ask Ray, which does not answer

    threading.Thread(target=watch, name="everline-cluster", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _vital(session: Path) -> dict[str, psutil.Process]:
    """The node's own process, and the head's where it runs here."""
    named = {Path(process.info["cmdline"][0]).name: process for process in session_processes(session)}
    return {name: process for name, process in named.items() if name in ("raylet", "gcs_server")}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
