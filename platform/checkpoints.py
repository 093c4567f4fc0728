"""Checkpoints of a line: a folder each, whole or not there. What is lost with one is only time."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ..methods.detector import State
from ..methods.errors import Corrupt
from .manifest import sync_folder, write_synced
from .statefiles import load_state, save_state

log = logging.getLogger("everline.checkpoints")
KEPT = 2


class Checkpoints:
    """CHECKPOINTS/<seq>/NAME.safetensors, NAME.json, ..., checkpoint.json (written last, then renamed into place)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, seq: int, states: dict[str, State], meta: dict[str, Any]) -> None:
        """Saves what is known after record `seq`; keeps the last two. Raises OSError, with the older ones intact."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):
            shutil.rmtree(left)
        half, target = self.folder / f".{seq:012d}.{os.getpid()}.tmp", self.folder / f"{seq:012d}"
        half.mkdir()
        for name, state in states.items():
            save_state(half, state, name, name)
        plain = {"seq": seq, "states": sorted(states), "meta": meta}
        write_synced(half / "checkpoint.json", json.dumps(plain, allow_nan=False).encode())
        sync_folder(half)
        if target.exists():
            shutil.rmtree(target)  # the same records: it would be the same
        half.rename(target)
        sync_folder(self.folder)
        for old in self._seqs()[:-KEPT]:
            shutil.rmtree(self.folder / f"{old:012d}")

    def latest(self) -> tuple[int, dict[str, State], dict[str, Any]] | None:
        """The newest whole one: (seq, states, meta); a broken one is passed over for the one before."""
        for seq in reversed(self._seqs()):
            try:
                return self._load(seq)
            except (Corrupt, OSError, ValueError, KeyError) as error:
                log.warning("%s: checkpoint %d is passed over: %s", self.folder, seq, error)
        return None

    def _load(self, seq: int) -> tuple[int, dict[str, State], dict[str, Any]]:
        folder = self.folder / f"{seq:012d}"
        plain = json.loads((folder / "checkpoint.json").read_text("utf-8"))
        names = [str(name) for name in plain["states"]]
        if not all(name.isidentifier() for name in names):
            raise Corrupt(f"{folder}: strange names {names}")
        return int(plain["seq"]), {name: load_state(folder, name, name) for name in names}, plain["meta"]

    def _seqs(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
