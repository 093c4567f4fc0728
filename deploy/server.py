"""Starts and stops Ray Serve with a fleet's application.

Starting restarts replicas; versions swap without it (desk.py). On a long-lived cluster use `serve deploy`.
"""

import ipaddress
import logging
import socket
import time
from contextlib import closing
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from ..methods.errors import ConfigError, PortInUse
from ..platform.cluster import address, connect
from ..platform.head import other_commands
from ..platform.settings import Fleet
from .app import Access, bind
from .desk import RETRY_S

APP = "everline"
PATIENCE_S = 30.0
HOST, PORT = "127.0.0.1", 8000
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def start_server(
    fleet: Fleet,
    *,
    host: str = HOST,
    port: int = PORT,
    replicas: int = 1,
    patience_s: float = RETRY_S,
    access: Access = Access(open=True),  # noqa: B008 - frozen
) -> str:
    """Serves the fleet's lines, which must run (platform/actor.py), until `stop_server`; returns the address.

    patience_s: how long a request waits for a line that is down or has no room, until it is answered 503. Joins or
    starts a Ray cluster. Raises PortInUse, ConfigError (Serve runs here already; tokens that cannot be read).
    """
    check_port(host, port)
    application = bind(fleet, replicas=replicas, patience_s=patience_s, access=access)
    connect()
    if _serve_runs():
        raise ConfigError(
            f"this Ray cluster ({address()}) has a server already, of {', '.join(_served()) or 'nothing yet'}. "
            "For another fleet beside it set RAY_TMPDIR to another folder, for `everline up` and `everline serve`, "
            "which then have a cluster of their own. `everline down` ends a server whose command was killed."
        )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=host, port=port), logging_config=QUIET)
    serve.run(application, name=APP, route_prefix="/", logging_config=QUIET)
    return f"http://{host}:{port}"


def stop_server() -> None:
    """Ends Serve in this cluster, with all its applications; the lines go on."""
    if not ray.is_initialized() or not _serve_runs():
        return
    # `serve.shutdown()` waits inside a call that dies with the controller, and Ray prints that death as a
    # failure. Asking without waiting, and looking until it is gone, ends in silence.
    controller: Any = ray.get_actor(CONTROLLER, namespace="serve")
    asked: Any = controller.graceful_shutdown.remote(wait=False)
    ray.get(asked)
    give_up = time.monotonic() + PATIENCE_S
    while _serve_runs() and time.monotonic() < give_up:
        time.sleep(0.1)
    serve.shutdown()  # forgets the connection; ends what is left


def end_orphan() -> bool:
    """Ends a server of everline whose command is gone, by a kill perhaps; whether there was one. Ray is connected."""
    if not _serve_runs() or other_commands() or set(_served()) != {APP}:
        return False
    stop_server()
    return True


def _served() -> list[str]:
    """Names of Serve's applications in this cluster."""
    return sorted(serve.status().applications)


def check_port(host: str, port: int) -> None:
    """Raises PortInUse where nobody could listen: taken, not allowed, or no address of this machine."""
    try:
        if not 0 < port < 2**16:
            raise OverflowError("a port is a number from 1 to 65535")
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, proto)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise PortInUse(f"cannot listen on {host}:{port}: {error}; choose another with --port.") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def free_port(host: str = HOST) -> int:
    """A port that nobody listens on right now."""
    with closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _serve_runs() -> bool:
    try:
        ray.get_actor(CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True
