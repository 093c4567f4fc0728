"""Ray: join the cluster that runs here, or start a local one."""

import logging
import os
from typing import Any

import psutil
import ray

from ..methods.errors import ConfigError, LineDown
from .actor import NAMESPACE
from .noted import check_temp_folder, note, noted
from .ray_token import prepare_token, require_token, require_token_mode

MIB = 2**20
FOR_SERVE = {  # of a cluster's HTTP server: what stands in it, and the seconds that it may take to start
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "everline.deploy.door:middlewares",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after its own 5 s Serve kills it, and a busy machine takes longer
}

_connected = False  # whether `connect` connected this process to Ray, and `disconnect` is to end that


def connect(own: bool = False, cpus: int | None = None, start: bool = True) -> bool:
    """Join a running cluster (RAY_ADDRESS, or one of this machine), else start one. True where it was started.

    own, or RAY_ADDRESS=local: always start one. cpus: of one that is started; lines, which reserve none, are content
    with any number. start: else LineDown where none runs. A process that is connected to Ray stays where it is.
    Raises LineDown where RAY_ADDRESS leads nowhere, ConfigError where a cluster asks for no token.
    """
    global _connected
    if ray.is_initialized():
        return False
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that it is on, which is right
    logging.getLogger("ray._private.services").setLevel(logging.ERROR)  # that other clusters run here as well
    require_token_mode()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without a GPU share keeps its view
    wanted = os.environ.get("RAY_ADDRESS", "auto")
    if wanted != "local" and not own and not (wanted == "auto" and start and _misled()):
        try:
            ray.init(address=wanted, namespace=NAMESPACE, **_quiet())
            _connected = True
        except (ConnectionError, RuntimeError, ValueError) as error:
            if wanted != "auto":
                raise LineDown(f"no Ray cluster answers at RAY_ADDRESS={wanted}: {error}") from error
            if not start:
                raise LineDown(f"the Ray cluster of this machine lets nobody in: {error}") from error
        else:
            _stay_where_a_token_is_asked_for()
            return False
    check_temp_folder()
    prepare_token()
    os.environ.update(FOR_SERVE | os.environ)
    ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        num_cpus=cpus or max(4, os.cpu_count() or 1),  # lines reserve none: logical slots for Serve's own actors
        object_store_memory=min(512 * MIB, psutil.virtual_memory().available // 8),
        **_quiet(),
    )
    _connected = True
    return True


def address() -> str:
    """Where others join this cluster (RAY_ADDRESS)."""
    return str(ray.get_runtime_context().gcs_address)


def metrics_targets() -> list[str]:
    """`host:port` of each node's metrics for Prometheus; none without a cluster."""
    nodes = ray.nodes() if ray.is_initialized() else []
    up = [node for node in nodes if node["Alive"] and node["MetricsExportPort"] > 0]
    return sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in up)


def disconnect() -> None:
    """Leave the cluster that `connect` joined, or end the one that it started; a caller's own connection stays."""
    global _connected
    if _connected and ray.is_initialized():
        ray.shutdown()
    _connected = False


def _misled() -> bool:
    """Whether Ray's note leads to another user's cluster, or to none: Ray would ask there for minutes."""
    if not note().exists():
        return False
    found = noted()
    return found is None or bool(found.owner)


def _stay_where_a_token_is_asked_for() -> None:
    try:
        require_token(address())
    except ConfigError:
        disconnect()
        raise


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}
