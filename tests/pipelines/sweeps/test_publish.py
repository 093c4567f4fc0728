"""A winner as a candidate: what is learned, what calibrates, the same bits and one version."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from everline.methods.errors import ConfigError, DataError, UnknownLine
from everline.methods.registry import build, restore
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.sweeps.publish import fresh, propose, train
from everline.pipelines.sweeps.settings import SweepSettings
from everline.platform.line import embed_image
from everline.platform.settings import Fleet, LineSettings, parse_fleet
from everline.platform.statefiles import digest
from everline.platform.versions import Versions

SWEEP = SweepSettings(methods=("lemo",), given={"size": 64}, objective="auroc", seed=3)
LINE = LineSettings(method="padim", params={"size": 64}, false_reject_rate=0.2)


@pytest.fixture(scope="session")
def task(write_disc: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Task:
    return read_folder(write_disc(tmp_path_factory.mktemp("disc") / "disc", 20, 4, 4))


@pytest.fixture
def fleet(tracking_uri: str, tmp_path: Path) -> Fleet:
    own = {"method": "padim", "false_reject_rate": 0.2, "params": {"size": 64}}
    return parse_fleet({"store": "store", "tracking": tracking_uri, "lines": {"mono": own}}, tmp_path)


def test_the_winner_waits_as_the_lines_candidate(task: Task, fleet: Fleet) -> None:
    number = propose(SWEEP, "lemo", {"temperature": 0.2}, task, "mono", fleet, watermark=41, tags={"sweep": "run-7"})
    versions = Versions(fleet.tracking, "mono")
    (known,) = versions.list()
    assert (known.version, known.aliases, known.method, known.watermark) == (number, ("candidate",), "lemo", 41)
    assert known.tags["objective"] == "auroc" and known.tags["sweep"] == "run-7"
    assert (known.images_learned, known.tags["calibration_images"]) == (14, "6")
    state, calibration = versions.load(number)
    assert state.meta["params"]["temperature"] == 0.2 and state.meta["params"]["seed"] == 3
    assert calibration.false_reject_rate == 0.2 and known.calibrated


def test_proposed_twice_it_is_one_version_and_other_parameters_make_another(task: Task, fleet: Fleet) -> None:
    first = propose(SWEEP, "lemo", {}, task, "mono", fleet)
    torch.manual_seed(5)
    assert propose(SWEEP, "lemo", {}, task, "mono", fleet) == first
    assert propose(SWEEP, "lemo", {"temperature": 0.3}, task, "mono", fleet) != first
    assert len(Versions(fleet.tracking, "mono").list()) == 2


def test_what_calibrates_was_not_learned_and_is_judged_as_a_line_would(task: Task) -> None:
    state, calibration = train("lemo", {"size": 64, "seed": 3}, task, LINE)
    order = [task.train[n] for n in np.random.default_rng(3).permutation(20)]
    learner = build("lemo", size=64, seed=3)
    for path in order[6:]:
        learner.learn(embed_image(learner, path.read_bytes()))
    assert digest(state) == digest(learner.state())
    scores = [float(learner.score(embed_image(learner, path.read_bytes())).image[0]) for path in order[:6]]
    assert list(calibration.scores) == sorted(scores)


def test_the_candidate_tells_defects_from_normal_images(task: Task) -> None:
    state, calibration = train("lemo", {"size": 64}, task, LINE)
    detector = restore(state)
    for sample in task.test:
        score = float(detector.score(embed_image(detector, sample.path.read_bytes())).image[0])
        if sample.defect:
            assert calibration.verdict(score) == "reject"


@pytest.mark.parametrize(
    ("images", "share", "rate", "held"),
    [(1000, 0.3, 0.01, 300), (200, 0.3, 0.01, 99), (150, 0.3, 0.01, 75), (20, 0.3, 0.2, 6), (20, 0.1, 0.2, 4)],
)
def test_enough_is_held_back_for_the_promised_rate(images: int, share: float, rate: float, held: int) -> None:
    assert fresh(images, share, rate) == held


def test_threads_are_as_before_afterwards(task: Task) -> None:
    before = torch.get_num_threads()
    train("lemo", {"size": 64}, task, LineSettings(threads=2, false_reject_rate=0.2))
    assert torch.get_num_threads() == before


def test_progress_is_told(task: Task) -> None:
    told: list[tuple[str, int, int]] = []
    train("lemo", {"size": 64}, task, LINE, told=lambda *said: told.append(said))
    assert told[0] == ("learn", 1, 14) and told[-1] == ("calibrate", 6, 6)


def test_what_a_line_could_not_do_is_refused(task: Task, fleet: Fleet) -> None:
    with pytest.raises(UnknownLine, match="mono"):
        propose(SWEEP, "lemo", {}, task, "poly", fleet)
    cropped = SweepSettings(methods=("lemo",), given={"size": 64}, options={"crop": 80})
    with pytest.raises(ConfigError, match="--crop"):
        propose(cropped, "lemo", {}, task, "mono", fleet)
    with pytest.raises(DataError, match="1 normal images are too few"):
        propose(SWEEP, "lemo", {}, Task("one", task.train[:1], task.test), "mono", fleet)
