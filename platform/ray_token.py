"""The token of a Ray cluster. Without one, whoever reaches its ports runs code as its user."""

import logging
import os
import secrets
from pathlib import Path

from ..methods.errors import ConfigError

log = logging.getLogger("everline.ray_token")
ALLOW_OPEN = "EVERLINE_RAY_WITHOUT_TOKEN"  # set to 1 where a network is to be trusted
ASK_S = 10.0
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def require_token_mode() -> None:
    """Raises ConfigError where RAY_AUTH_MODE turns the token off, and ALLOW_OPEN does not say that this is meant."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token" and not _open_allowed():
        raise ConfigError(f"RAY_AUTH_MODE={mode} makes {_danger()} Unset it, {_or_allow()}")


def require_token(address: str) -> None:
    """Raises ConfigError where the cluster there lets anybody in, and ALLOW_OPEN does not say that this is meant."""
    if not _open_allowed() and lets_anybody_in(address):
        raise ConfigError(
            f"the Ray cluster at {address} asks for no token. That makes {_danger()} Stop it, make a token for all "
            "its machines (ray get-auth-token --generate) and start it with RAY_AUTH_MODE=token; or let everline "
            f"start one of its own (RAY_ADDRESS=local), {_or_allow()}"
        )


def lets_anybody_in(address: str) -> bool:
    """Whether the head at `host:port` answers a request without a token."""
    return asked(address) == "OK"  # else it asks for a token, or for a certificate


def asked(address: str) -> str:
    """Returns the name of gRPC's status with which the head at `host:port` answers a request without a token."""
    import grpc  # takes a moment to load

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=ASK_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def prepare_token() -> None:
    """Makes a token where there is none, and lets nobody else read the file. Raises ConfigError."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "w", encoding="ascii") as out:
                out.write(secrets.token_hex(32))
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
            log.warning("%s: others could read Ray's token; now only its owner can.", path)
    except OSError as error:
        raise ConfigError(
            f"{path}: Ray's token cannot be made or kept to its owner: {error.strerror}; set RAY_AUTH_TOKEN_PATH to a "
            "file in a folder of your own."
        ) from error


def _open_allowed() -> bool:
    return os.environ.get(ALLOW_OPEN) == "1"


def _danger() -> str:
    return "a Ray cluster in which whoever reaches its ports may run code and read all images."


def _or_allow() -> str:
    return f"or set {ALLOW_OPEN}=1 where everybody who reaches the machine is trusted."
