"""The Ray cluster of this machine that outlives a command: found, started, and ended when nobody needs it any more."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import ray

from ..methods.errors import LineDown
from .cluster import FOR_SERVE, MIB, connect, disconnect
from .noted import check_temp_folder, note, noted
from .ray_token import prepare_token, require_token_mode

log = logging.getLogger("everline.head")
LABEL = ("started-by", "everline")
START_S = 120.0
END_S = 2.0  # for processes to end by themselves; then they are killed: nothing of them is needed any more
OBJECTS = 256 * MIB  # an image is on its way for a moment; most are small enough to need no room here at all


def join(start: bool) -> bool | None:
    """Joins the cluster of RAY_ADDRESS, or the one that `ray start` began here; None where there is none.

    start: then one is started, which stays when this process ends; True if so. A cluster that another command began
    for itself, and will end, is not joined. Raises LineDown where RAY_ADDRESS leads nowhere, and where the cluster of
    this machine is another user's, or does not answer.
    """
    if os.environ.get("RAY_ADDRESS", "auto") in ("", "auto", "local"):
        os.environ.pop("RAY_ADDRESS", None)
        found = noted()
        if found is None:
            if not start:
                return None
            _start()
            connect(start=False)
            return True
        if found.owner:
            raise LineDown(
                f"the Ray cluster at {found.address}, which {note()} names, is of user {found.owner}; set RAY_TMPDIR "
                "to a folder of your own, and everline has a cluster of yours there."
            )
    connect(start=False)
    return False


def leave() -> str:
    """Leaves the cluster, and ends it where `join` once started it and it serves nobody else; else why it goes on."""
    session = _session()
    if session is None:
        disconnect()
        return "everline did not start it"
    busy = _others()
    disconnect()
    if not busy:
        end_session(session)
    return busy


def _start() -> None:
    """`ray start --head` with this Python, a session of its own (Ctrl-C does not reach it) and a token at its door."""
    require_token_mode()
    check_temp_folder()
    prepare_token()
    env = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    env.setdefault("RAY_AUTH_MODE", "token")
    env.update(FOR_SERVE | env)
    _ray(
        [
            *("start", "--head", "--port", "0", "--labels", "=".join(LABEL)),
            *("--num-cpus", str(max(4, os.cpu_count() or 1))),  # lines reserve none: logical slots for Serve's actors
            *("--object-store-memory", str(min(OBJECTS, psutil.virtual_memory().available // 8))),
            *("--min-worker-port", "0", "--max-worker-port", "0", "--ray-client-server-port", str(_free_port())),
            *("--include-dashboard", "false", "--disable-usage-stats"),
        ],
        env,
    )


def _ray(words: list[str], env: dict[str, str]) -> None:
    """Raises LineDown with what it said."""
    try:
        ran = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LineDown(f"`ray {words[0]}` did not end within {START_S:g} s.") from error
    if ran.returncode:
        raise LineDown(f"`ray {words[0]}` failed: {ran.stdout.strip()[-2000:]}")


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session() -> Path | None:
    """The session folder of the cluster at hand, where `join` started it on this machine."""
    for node in ray.nodes():
        if node["Alive"] and node["Labels"].get(LABEL[0]) == LABEL[1]:
            folder = session_folder(node)
            return folder if folder.is_dir() else None
    return None


def session_folder(node: Mapping[str, Any]) -> Path:
    """Where the session of a node (of `ray.nodes()`) keeps its sockets and logs, on its machine."""
    return Path(node["RayletSocketName"]).parents[1]


def session_processes(session: Path) -> Iterator[psutil.Process]:
    """Ray's processes on this machine whose command lines name that session."""
    for process in psutil.process_iter(["pid", "cmdline", "uids"]):
        if any(str(session) in word for word in process.info["cmdline"] or []):
            yield process


def _others() -> str:
    """Who else needs the cluster, in words; empty: nobody."""
    named = ray.util.list_named_actors(all_namespaces=True)
    if named:
        return "others run in it: " + ", ".join(sorted(str(one["name"]) for one in named)[:8])
    if commands := other_commands():
        return "other commands use it: process " + ", ".join(map(str, commands[:8]))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return "" if len(nodes) == 1 else f"it has {len(nodes)} nodes"


def other_commands() -> list[int]:
    """Process ids of the other drivers that are connected to this cluster."""
    me = ray.get_runtime_context().get_job_id()
    return [job["DriverPid"] for job in ray._private.state.jobs() if not job["IsDead"] and job["JobID"] != me]


def end_session(session: Path) -> None:
    """The processes of one session and their children; `ray stop` would end every Ray of this user."""
    found: dict[int, psutil.Process] = {}
    for process in session_processes(session):
        uids = process.info["uids"]
        if uids and uids.real == os.getuid():
            found[process.pid] = process
            try:
                found |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
    found.pop(os.getpid(), None)
    for process in found.values():
        _signal(process, "terminate")
    _, alive = psutil.wait_procs(list(found.values()), END_S)
    for process in alive:
        _signal(process, "kill")
    psutil.wait_procs(alive, END_S)
    if noted() is None:
        note().unlink(missing_ok=True)


def _signal(process: psutil.Process, how: str) -> None:
    try:
        getattr(process, how)()
    except psutil.Error as error:
        log.info("process %d: %s", process.pid, error)
