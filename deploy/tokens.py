"""Who may do what over HTTP: a file of names, hashes of their tokens, and rights. A token itself is never kept."""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..methods.errors import ConfigError, UnknownName
from ..platform.settings import NAME
from ..platform.yamlfile import check_known, line_of, mapping, read_yaml

log = logging.getLogger("everline.tokens")
RIGHTS = ("read", "inspect", "change")
SAMPLE = "camera-1:\n  sha256: (64 hex digits; `everline token camera-1` makes the entry)\n  may: [inspect]\n"
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Holder:
    """Somebody who has a token."""

    name: str
    sha256: str  # hex, of the token
    may: tuple[str, ...]


class Tokens:
    """The holders of a file, read again when it changes: a token whose entry is removed is void at once.

    A changed file that is missing or invalid is not taken: the holders read before stay in force, and the log warns.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ConfigError where it is missing, invalid, or writable by others."""
        self.path = path
        self._read = _stamp(path), read_tokens(path)

    def holder(self, token: str) -> Holder | None:
        """Whose token it is. Takes equally long whoever's it is."""
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for holder in self._holders():
            if hmac.compare_digest(holder.sha256, given):
                found = holder
        return found

    def _holders(self) -> list[Holder]:
        stamp = _stamp(self.path)
        if stamp != self._read[0]:
            try:
                self._read = stamp, read_tokens(self.path)
            except ConfigError as error:
                log.warning("the changed tokens file is not used, the tokens read before stay valid: %s", error)
                self._read = stamp, self._read[1]
        return self._read[1]


def read_tokens(path: Path) -> list[Holder]:
    """Read the holders in a file. Raises ConfigError, with the line; also for a file that others may write."""
    _check_mode(path)
    plain = mapping(read_yaml(path, "tokens", SAMPLE, lines=True) or {}, str(path))
    return [_holder(name, entry, f"{path}{line_of(plain, name)}: {name}", path) for name, entry in plain.items()]


def _holder(name: str, entry: Any, where: str, path: Path) -> Holder:
    """Check one entry of a file. Raises ConfigError."""
    check_known(mapping(entry, where), ("sha256", "may"), str(path))
    sha256, may = entry.get("sha256"), entry.get("may")
    if not NAME.fullmatch(name) or not isinstance(sha256, str) or not HASH.fullmatch(sha256):
        where = f"{path}{line_of(entry, 'sha256')}: {name}" if "sha256" in entry and NAME.fullmatch(name) else where
        raise ConfigError(f"{where}: expected a name with `sha256`, 64 hex digits; `everline token` makes it.")
    where = f"{path}{line_of(entry, 'may')}: {name}" if "may" in entry else where
    if not isinstance(may, list) or not may:
        raise ConfigError(f"{where}: `may` is a list of {', '.join(RIGHTS)}.")
    return Holder(name, sha256, _rights(may, where))


def _check_mode(path: Path) -> None:
    """Warn of a file that everybody may read. Raises ConfigError for one that others than its owner may write."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:  # reading the file says why
        return
    if os.name == "posix" and mode & 0o022:
        raise ConfigError(
            f"{path}: others than the file's owner may write it (mode {mode:04o}), and could give themselves a token; "
            f"check its entries, then type `chmod go-w {path}`."
        )
    if os.name == "posix" and mode & 0o004:
        log.warning("%s: everybody on this machine may read it (mode %04o); type `chmod o-r %s`", path, mode, path)


def make_token(path: Path, name: str, may: tuple[str, ...]) -> str:
    """A new token for `name`; its hash is written to the file (mode 0600), the token only returned.

    Raises ConfigError where the name is not one, or has a token already, and as `read_tokens`.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name: 1 to 64 letters, digits, '-', '_', '.', none of them first.")
    holders = read_tokens(path) if path.exists() else []
    if name in {holder.name for holder in holders}:
        raise ConfigError(f"{path}: {name} has a token already; take its entry out of the file first.")
    token = secrets.token_urlsafe(32)
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    holders.append(Holder(name, sha256, _rights(list(may), name)))
    plain = {holder.name: {"sha256": holder.sha256, "may": list(holder.may)} for holder in holders}
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            yaml.safe_dump(plain, file, sort_keys=False)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error}") from error
    return token


def _rights(may: list[object], who: str) -> tuple[str, ...]:
    for right in may:
        if right not in RIGHTS:
            raise UnknownName.among(who, "right", str(right), RIGHTS)
    return tuple(right for right in RIGHTS if right in may)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino  # the second: also after a chmod
