"""A sweep's winner as a line's candidate: trained again on a task's normal images, calibrated on others of them.

The trials of a sweep keep figures, not detectors. So the winner learns once more, from all normal images but those
that are held back, as the protocols online and offline have it: one by one in the seed's order, once. What was held
back gives fresh scores, from which the threshold comes (`Calibration`). The candidate then waits for its gate.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...methods.detector import Detector, State
from ...methods.errors import ConfigError, DataError
from ...methods.registry import build
from ...platform.calibration import Calibration
from ...platform.settings import Fleet, LineSettings
from ...platform.statefiles import digest
from ...platform.threads import threads
from ...platform.tracking import prepare_tracking
from ...platform.versions import Versions
from ..data.datasets import Task
from ..protocols.course import draw, learn_all
from ..protocols.judging import Bench, Told, untold
from .settings import SweepSettings

HELD_BACK = 0.3


def propose(
    settings: SweepSettings,
    method: str,
    params: Mapping[str, Any],
    task: Task,
    line: str,
    fleet: Fleet,
    *,
    memory: int | None = None,
    watermark: int = -1,
    held_back: float = HELD_BACK,
    tags: Mapping[str, str] | None = None,
    told: Told = untold,
) -> int:
    """Trains a configuration of the sweep and registers it as the line's candidate; returns the version's number.

    memory: its size, as `SweepSettings.trial` takes it. watermark: the last record of the line's log that the task's
    images to learn from are of (`LogTask.watermark`); -1 for other images. held_back: share of the normal images that
    calibrate and are not learned, in (0, 1); more (up to half) where the promised rate needs more. tags: what the
    caller knows (the sweep's folder or run, held-out figures), beside the objective and what training adds. The same
    images and settings give the same bits, and those one version, however often it is proposed.
    Raises UnknownLine for a line that is not in the fleet, ConfigError (the sweep cropped its pictures, which a line
    never does), DataError for too few images.
    """
    own = fleet.line(line)
    if settings.options.get("crop") is not None:
        raise ConfigError(f"line {line}: the sweep cropped its pictures (--crop), and a line sees them whole.")
    if not 0 < held_back < 1:
        raise ConfigError(f"held_back must be in (0, 1), got {held_back!r}.")
    given = settings.trial(method, memory, params).given
    state, calibration = train(method, {**given, "device": own.device}, task, own, held_back, told)
    facts = {
        "source": "sweep",
        "objective": settings.objective,
        "protocol": settings.protocol,
        "calibration_images": str(len(calibration.scores)),
        "threads": str(own.threads),
        "torch": str(torch.__version__),
    }
    prepare_tracking(fleet.tracking, artifacts=fleet.artifacts)
    return Versions(fleet.tracking, line, fleet.artifacts).propose(
        state, calibration, watermark=watermark, key=_key(line, state, calibration), tags={**facts, **(tags or {})}
    )


def train(
    method: str,
    given: Mapping[str, Any],
    task: Task,
    line: LineSettings,
    held_back: float = HELD_BACK,
    told: Told = untold,
) -> tuple[State, Calibration]:
    """What the method learns from the task's normal images, and a threshold from those that are held back."""
    make = partial(build, method, **given)
    with threads(line.threads):
        learner, bench = make(), Bench(make, told)
        paths, _ = draw(task, None, learner.seed)
        count = fresh(len(paths), held_back, line.false_reject_rate)
        if not 0 < count < len(paths):
            raise DataError(f"{task.name}: {len(paths)} normal images are too few to learn and to calibrate with.")
        learn_all(bench, learner, paths[count:])
        if not learner.ready:
            raise DataError(f"{task.name}: {method} has not learned enough from {len(paths) - count} images.")
        scores = []
        for n, path in enumerate(paths[:count], 1):
            scores.append(_score(bench, learner, path))
            told("calibrate", n, count)
        return learner.state(), Calibration.of(scores, line.false_reject_rate)


def fresh(images: int, share: float, rate: float) -> int:
    """How many of the images are held back: a share, but enough to promise the rate if half of them are enough."""
    needed = Calibration((), rate).needed
    return max(round(share * images), min(needed, images // 2))


def _score(bench: Bench, learner: Detector, path: Path) -> float:
    return float(learner.score(bench.features.get(path, again=False)).image[0])


def _key(line: str, state: State, calibration: Calibration) -> str:
    """Names the candidate by its bits."""
    return f"{line}/sweep/{digest(state)[:16]}/{digest(State({}, calibration.to_json()))[:16]}"
