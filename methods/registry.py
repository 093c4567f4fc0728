"""The methods that everline knows: one line each."""

from typing import Any

from . import params
from .coreset import Coreset
from .detector import Detector, State
from .draem import Draem
from .efficientad import EfficientAD
from .errors import StateError, UnknownName
from .kng import KNG
from .lemo import LeMO
from .padim import PaDiM
from .patchcore import PatchCore
from .smcc import SMCC
from .subspace import Subspace

_ALL: tuple[type[Detector], ...] = (LeMO, PaDiM, Coreset, Subspace, PatchCore, KNG, SMCC, EfficientAD, Draem)
METHODS: dict[str, type[Detector]] = {cls.name: cls for cls in _ALL}


def method(name: str) -> type[Detector]:
    """The class of a registered method. Raises UnknownName with the nearest valid names."""
    if name not in METHODS:
        raise UnknownName.among("everline", "method", name, METHODS)
    return METHODS[name]


def build(name: str, **given: Any) -> Detector:
    """A fresh detector from outside values (YAML or command-line strings).

    Raises UnknownName or ConfigError, naming the parameter.
    """
    cls = method(name)
    return cls(**params.parse(cls, given, name))


def restore(state: State, device: str = "cpu") -> Detector:
    """The detector that `state` came from, with its parameters. Raises StateError, ConfigError."""
    name, given = state.meta.get("method"), state.meta.get("params")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise StateError("this state does not say which method and parameters made it.")
    detector = build(name, **given, device=device)
    detector.load_state(state)
    return detector
