"""A detector state on disk: NAME.safetensors and NAME.json, checked against each other. No pickle."""

import hashlib
import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..methods.detector import State
from ..methods.errors import Corrupt
from .volume import Place, Volume, volume_of

TENSORS, META = "state", "detector"
MAX_META = 2**20
MAX_TENSORS = 16 * 2**30


def save_state(folder: Place, state: State, tensors: str = TENSORS, meta: str = META) -> None:
    """Writes `tensors`.safetensors, then `meta`.json with a checksum over both. Raises OSError."""
    data = safetensors.torch.save(state.tensors)
    plain = {**state.meta, "sha256": _sum(data, state.meta)}
    volume = volume_of(folder)
    volume.write(f"{tensors}.safetensors", data)
    volume.write(f"{meta}.json", json.dumps(plain, indent=1, allow_nan=False).encode())


def load_state(folder: Place, tensors: str = TENSORS, meta: str = META) -> State:
    """The reverse. Raises Corrupt where a file is missing, too large, or does not match."""
    try:
        volume = volume_of(folder)
        plain = json.loads(_read(volume, f"{meta}.json", MAX_META))
        data = _read(volume, f"{tensors}.safetensors", MAX_TENSORS)
        if plain.pop("sha256") != _sum(data, plain):
            raise Corrupt(f"{folder}: the checksum of {tensors}.safetensors and {meta}.json does not match.")
        return State(safetensors.torch.load(data), plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise Corrupt(f"{folder}: not a detector state: {error}") from error


def digest(state: State) -> str:
    """sha256 over metadata and tensors: equal digests, equal bits. The order of names does not matter."""
    total = hashlib.sha256(canonical(state.meta))
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def canonical(value: Any) -> bytes:
    """Equal plain values, equal bytes: before and after a way through JSON."""
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()


def _sum(data: bytes, meta: dict[str, Any]) -> str:
    total = hashlib.sha256(canonical(meta))
    total.update(data)
    return total.hexdigest()


def _read(volume: Volume, name: str, most: int) -> bytes:
    if volume.sizes([name])[0] > most:
        raise Corrupt(f"{name}: larger than {most} bytes.")
    return volume.read(name)
