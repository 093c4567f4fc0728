"""The Ray cluster that `ray start` noted in this machine's temporary folder, and that folder."""

import os
import pwd
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..methods.errors import ConfigError, LineDown
from .ray_token import asked

LONGEST = 39  # bytes: Ray puts sockets below it, and a socket's path has 107 at most


@dataclass(frozen=True)
class Noted:
    """A cluster that answers. owner: the user who started it, where that is another one; else empty."""

    address: str
    owner: str = ""


def temp_folder() -> Path:
    """Returns where Ray keeps its sessions, of which one may be noted."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def note() -> Path:
    """Returns the file in which `ray start` writes its address."""
    return temp_folder() / "ray" / "ray_current_cluster"


def noted() -> Noted | None:
    """Returns the cluster of the note; None where there is no note, or no Ray where it says.

    Raises LineDown where something takes connections there and says nothing: whoever asks it would wait for minutes.
    """
    path = note()
    try:
        address, user = path.read_text("utf-8").strip(), path.stat().st_uid
    except (OSError, ValueError):
        return None
    if os.environ.get("RAY_USE_TLS") != "1":
        answer = asked(address)
        if answer == "DEADLINE_EXCEEDED":
            raise LineDown(
                f"what listens at {address} does not answer, and {path} says that a Ray cluster is there. If it is "
                "another program, remove that file; else end what is left of the cluster: ray stop."
            )
        if answer not in ("OK", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            return None
    return Noted(address, "" if user == os.getuid() else _name(user))


def check_temp_folder() -> None:
    """Raises ConfigError where Ray could not keep its sessions."""
    folder = temp_folder()
    length = len(os.fsencode(folder))
    if length > LONGEST:
        raise ConfigError(
            f"{folder}: {length} characters are too many for Ray's sockets; set RAY_TMPDIR to a folder of at most "
            f"{LONGEST}."
        )
    nearest = next(one for one in (folder / "ray", folder, *folder.absolute().parents) if one.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: Ray cannot write there; set RAY_TMPDIR to a folder of your own.")


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"number {user}"
