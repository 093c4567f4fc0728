"""Checkpoints of a line: a folder each, whole or passed over. What is lost with one is only time."""

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Sequence
from typing import Any

from ..methods.detector import State
from ..methods.errors import ConfigError, Corrupt
from .retention import bases
from .statefiles import canonical, load_state, save_state
from .volume import Place, volume_of

log = logging.getLogger("everline.checkpoints")
LIST = "checkpoint.json"
_NAME = re.compile(r"[a-z]+")
_FOLDER = re.compile(r"[0-9]{12}(?:-[0-9a-f]{8})?")  # format 1 had no random part


class Checkpoints:
    """SEQ-RANDOM/state-NAME.safetensors, state-NAME.json, ..., and last checkpoint.json: without it, it is none."""

    def __init__(self, folder: Place) -> None:
        self.folder, self._volume = folder, volume_of(folder)

    def save(
        self, seq: int, states: dict[str, State], meta: dict[str, Any], watermarks: Sequence[int] | None = ()
    ) -> None:
        """Saves what is known after record `seq`; keeps the last two. Raises OSError, with the older ones intact.

        watermarks: of versions that must be made again from checkpoints, which are kept too; None: all are kept.
        """
        if not all(_NAME.fullmatch(name) for name in states):
            raise ConfigError(f"checkpoint: names of states are small letters, got {sorted(states)}.")
        if seq < 0:  # nothing to come back to
            return
        name = f"{seq:012d}-{secrets.token_hex(4)}"
        target = volume_of(self.folder / name)
        for state, one in states.items():
            save_state(self.folder / name, one, f"state-{state}", f"state-{state}")
        plain = {"seq": seq, "states": sorted(states), "meta": meta}
        plain["sha256"] = _sum(plain)
        target.sync()
        target.write(LIST, json.dumps(plain, allow_nan=False).encode())
        target.sync()
        self._volume.sync()
        whole = {other: found for found, other in self._found() if found != seq} | {name: seq}
        found = bases(whole.values(), watermarks) if watermarks is not None else set(whole.values())
        left = {other for other, number in whole.items() if number in found}
        for other in self._volume.folders():
            if _FOLDER.fullmatch(other) and other not in left:
                volume_of(self.folder / other).remove_all()

    def numbers(self) -> list[int]:
        """After which records there are checkpoints, oldest first. Raises OSError."""
        return sorted({seq for seq, _ in self._found()})

    def latest(
        self, records: int | None = None, upto: int | None = None
    ) -> tuple[int, dict[str, State], dict[str, Any]] | None:
        """The newest whole one: (seq, states, meta); a broken one is passed over for the one before.

        records: how many the log holds; a checkpoint of more than those (the log lost its end) is passed over too.
        upto: none that has seen a later record than this, which is where a version is made again from.
        """
        for seq, name in reversed(self._found()):
            if upto is not None and seq > upto:
                continue
            try:
                if records is not None and seq >= records:
                    raise Corrupt(f"it has seen record {seq}, the log has {records} records")
                return seq, *self._checked(seq, name)
            except Corrupt as error:
                log.warning("%s: checkpoint %d is passed over: %s", self.folder, seq, error)
        return None

    def load(self, seq: int) -> tuple[dict[str, State], dict[str, Any]]:
        """States and values of one of them. Raises Corrupt where it is broken or not there."""
        for name in [name for found, name in self._found() if found == seq]:
            return self._checked(seq, name)
        raise Corrupt(f"{self.folder}: checkpoint {seq} is not there.")

    def remove(self, seq: int) -> None:
        """Removes one; harmless where it is not there."""
        for name in self._volume.folders():
            if _FOLDER.fullmatch(name) and int(name[:12]) == seq:
                volume_of(self.folder / name).remove_all()

    def _checked(self, seq: int, name: str) -> tuple[dict[str, State], dict[str, Any]]:
        try:
            return self._load(seq, name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(f"{self.folder}: checkpoint {seq}: {error}") from error

    def _load(self, seq: int, name: str) -> tuple[dict[str, State], dict[str, Any]]:
        folder = self.folder / name
        plain = json.loads(volume_of(folder).read(LIST).decode("utf-8"))
        if plain.pop("sha256") != _sum(plain) or plain["seq"] != seq:
            raise Corrupt(f"{folder}: the checksum of checkpoint.json does not match.")
        names = plain["states"]
        if not all(_NAME.fullmatch(name) for name in names):
            raise Corrupt(f"{folder}: strange names {names}")
        return {name: load_state(folder, f"state-{name}", f"state-{name}") for name in names}, plain["meta"]

    def _found(self) -> list[tuple[int, str]]:
        """Number and folder of those that are whole, oldest first."""
        named = [name for name in self._volume.folders() if _FOLDER.fullmatch(name)]
        return sorted((int(name[:12]), name) for name in named if volume_of(self.folder / name).names(LIST))


def _sum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(plain)).hexdigest()
