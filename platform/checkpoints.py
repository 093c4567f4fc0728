"""Checkpoints of a line: a folder each, whole or not there. What is lost with one is only time."""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from ..methods.detector import State
from ..methods.errors import ConfigError, Corrupt
from .manifest import sync_folder, write_synced
from .statefiles import canonical, load_state, save_state

log = logging.getLogger("everline.checkpoints")
KEPT = 2
_NAME, _SEQ = re.compile(r"[a-z]+"), re.compile(r"[0-9]{12}")


class Checkpoints:
    """<seq>/state-NAME.safetensors, state-NAME.json, ..., checkpoint.json: renamed into place as a whole."""

    def __init__(self, folder: Path, kept: int | None = KEPT) -> None:
        """kept: how many `save` leaves; None: all, until they are removed."""
        self.folder, self.kept = folder, kept

    def save(self, seq: int, states: dict[str, State], meta: dict[str, Any]) -> None:
        """Saves what is known after record `seq`; keeps the last `kept`. Raises OSError (older ones are intact)."""
        if not all(_NAME.fullmatch(name) for name in states):
            raise ConfigError(f"checkpoint: names of states are small letters, got {sorted(states)}.")
        if seq < 0:  # nothing to come back to
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):
            _remove(left)
        half, target = self.folder / f".{seq:012d}.tmp", self.folder / f"{seq:012d}"
        half.mkdir()
        for name, state in states.items():
            save_state(half, state, f"state-{name}", f"state-{name}")
        plain = {"seq": seq, "states": sorted(states), "meta": meta}
        plain["sha256"] = _sum(plain)
        write_synced(half / "checkpoint.json", json.dumps(plain, allow_nan=False).encode())
        sync_folder(half)
        if target.exists():
            _remove(target)  # the same records: it would be the same
        half.rename(target)
        sync_folder(self.folder)
        for old in self.seqs()[: -self.kept] if self.kept else []:
            self.remove(old)

    def latest(self, records: int | None = None) -> tuple[int, dict[str, State], dict[str, Any]] | None:
        """The newest whole one: (seq, states, meta); a broken one is passed over for the one before.

        records: how many the log holds; a checkpoint of more than those (the log lost its end) is passed over too.
        """
        for seq in reversed(self.seqs()):
            try:
                if records is not None and seq >= records:
                    raise Corrupt(f"it has seen record {seq}, the log has {records} records")
                return seq, *self.load(seq)
            except Corrupt as error:
                log.warning("%s: checkpoint %d is passed over: %s", self.folder, seq, error)
        return None

    def load(self, seq: int) -> tuple[dict[str, State], dict[str, Any]]:
        """States and values of one of them. Raises Corrupt where it is broken or not there."""
        try:
            return self._load(seq)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(f"{self.folder}: checkpoint {seq}: {error}") from error

    def remove(self, seq: int) -> None:
        """Removes one; harmless where it is not there."""
        _remove(self.folder / f"{seq:012d}")

    def seqs(self) -> list[int]:
        """Numbers of those that are there, whole or not, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if _SEQ.fullmatch(path.name))

    def _load(self, seq: int) -> tuple[dict[str, State], dict[str, Any]]:
        folder = self.folder / f"{seq:012d}"
        plain = json.loads((folder / "checkpoint.json").read_text("utf-8"))
        if plain.pop("sha256") != _sum(plain) or plain["seq"] != seq:
            raise Corrupt(f"{folder}: the checksum of checkpoint.json does not match.")
        names = plain["states"]
        if not all(_NAME.fullmatch(name) for name in names):
            raise Corrupt(f"{folder}: strange names {names}")
        return {name: load_state(folder, f"state-{name}", f"state-{name}") for name in names}, plain["meta"]


def _sum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(plain)).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
