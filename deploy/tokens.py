"""Who may do what over HTTP: a file of names, hashes of their tokens, and rights. A token itself is never kept."""

import hashlib
import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..methods.errors import ConfigError, UnknownName
from ..platform.settings import NAME
from ..platform.yamlfile import check_known, mapping, read_yaml

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
    """The holders of a file, read again when it changes: a line that is taken out of it is out at once."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that is not there or not right."""
        self.path = path
        self._read = _stamp(path), read_tokens(path)

    def holder(self, token: str) -> Holder | None:
        """Whose token it is. Takes equally long whoever's it is. Nobody's while the file cannot be read."""
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
                log.error("nobody is let in until this is mended: %s", error)
                self._read = stamp, []
        return self._read[1]


def read_tokens(path: Path) -> list[Holder]:
    """The holders in a file. Raises ConfigError, UnknownName."""
    found = []
    for name, entry in mapping(read_yaml(path, "tokens", SAMPLE) or {}, str(path)).items():
        where = f"{path}: {name}"
        entry = mapping(entry, where)
        check_known(entry, ("sha256", "may"), where)
        sha256, may = entry.get("sha256"), entry.get("may")
        if not NAME.fullmatch(name) or not isinstance(sha256, str) or not HASH.fullmatch(sha256):
            raise ConfigError(f"{where}: expected a name with `sha256`, 64 hex digits; `everline token` makes it.")
        if not isinstance(may, list) or not may:
            raise ConfigError(f"{where}: `may` is a list of {', '.join(RIGHTS)}.")
        found.append(Holder(name, sha256, _rights(may, where)))
    return found


def make_token(path: Path, name: str, may: tuple[str, ...]) -> str:
    """A new token for `name`; its hash is written to the file (mode 0600), the token only returned.

    Raises ConfigError where the name is not one, or has a token already.
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
    return found.st_mtime_ns, found.st_size, found.st_ino
