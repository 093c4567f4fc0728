"""The protocol offline, and any protocol with several seeds."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from everline.methods.detector import Detector, Learned, Traits
from everline.methods.errors import ConfigError
from everline.methods.padim import PaDiM
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.protocols.course import nowhere
from everline.pipelines.protocols.judging import Features, untold
from everline.pipelines.protocols.protocols import Offline, Online
from everline.pipelines.protocols.seeds import over_seeds
from everline.pipelines.records.results import METRICS
from torch import Tensor


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Task:
    """9 images to learn, 4 good and 5 defective ones to judge, without masks."""
    return read_folder(write_disc(tmp_path_factory.mktemp("data") / "disc", 9, 4, 5))


class Noted(PaDiM):
    """Writes down what comes in each call of `learn`, and counts the pictures that are embedded."""

    calls: ClassVar[list[list[bytes]]] = []
    embedded: ClassVar[int] = 0

    def embed(self, images: Tensor) -> Tensor:
        type(self).embedded += len(images)
        return super().embed(images)

    def learn(self, features: Tensor) -> Learned:
        self.calls.append([one.numpy().tobytes() for one in features])
        return super().learn(features)


class Whole(Noted):
    traits = Traits(learns_per_image=False)


@pytest.fixture(autouse=True)
def _forget() -> None:
    Noted.calls.clear()
    Noted.embedded = Whole.embedded = 0


def make(cls: type[Detector] = Noted, seed: int = 0) -> Detector:
    return cls(size=64, weights="none", sigma=1.0, seed=seed)


def learned(task: Task) -> Counter:
    eyes = Features(make, 0)
    return Counter(eyes.get(path)[0].numpy().tobytes() for path in task.train)


def test_everything_is_learned_once_and_then_judged_once(disc: Task) -> None:
    wanted = learned(disc)
    heard: list[tuple[str, int, int]] = []
    result, judged = Offline().run(make, disc, lambda *told: heard.append(told))
    assert [len(call) for call in Noted.calls] == [1] * 9
    assert Counter(one for call in Noted.calls for one in call) == wanted
    assert [told for told in heard if told[0] == "judge"] == [("judge", n, 9) for n in range(1, 10)]
    assert result.metrics["image_auroc"] == judged.figures()["image_auroc"]
    assert (result.n_train, result.n_test, [p["images"] for p in result.curve]) == (9, 9, [9])


def test_padim_offline_ends_where_online_does(disc: Task) -> None:
    offline, online = (protocol.run(make, disc)[1] for protocol in (Offline(seed=1), Online(seed=1)))
    assert np.array_equal(offline.scores, online.scores)


def test_a_method_that_needs_all_images_at_once_gets_them(disc: Task) -> None:
    Offline().run(partial(make, Whole), disc)
    assert [len(call) for call in Noted.calls] == [9]


def test_shots_are_drawn_by_the_seed_and_nested(disc: Task) -> None:
    drawn = []
    for shots, seed in ((2, 0), (4, 0), (2, 1)):
        assert Offline(shots=shots, seed=seed).run(make, disc)[0].n_train == shots
        drawn.append(set(Noted.calls.pop()))
    assert not Noted.calls and [len(d) for d in drawn] == [2, 4, 2]
    assert drawn[0] < drawn[1] and drawn[0] != drawn[2]


def test_impossible_shots_are_refused(disc: Task) -> None:
    with pytest.raises(ConfigError, match="disc: --shots 10, but it has 9"):
        Offline(shots=10).run(make, disc)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Offline(shots=0)


def test_several_seeds_give_means_deviations_and_each_seeds_own_run(disc: Task) -> None:
    names: list[str] = []
    runs = [Offline(shots=2, seed=seed) for seed in (3, 4, 5)]
    told = over_seeds(runs, lambda s: partial(make, seed=s), disc, lambda s: untold, lambda n, j: names.append(n))
    alone = [one.run(partial(make, seed=one.seed), disc)[0].metrics["image_auroc"] for one in runs]
    assert [(run.seed, run.metrics["image_auroc"]) for run in told.runs] == list(zip((3, 4, 5), alone, strict=True))
    assert told.metrics["image_auroc"] == pytest.approx(np.mean(alone))
    assert told.deviation is not None and set(told.deviation) == set(METRICS)
    assert told.deviation["image_auroc"] == pytest.approx(np.std(alone, ddof=1)) and len(set(alone)) > 1
    assert names == ["seed3/", "seed4/", "seed5/"]


def test_seeds_share_one_pass_of_the_backbone(disc: Task) -> None:
    runs = [Online(seed=seed) for seed in range(3)]
    over_seeds(runs, lambda s: make, disc, lambda s: untold, nowhere)
    assert Noted.embedded == 18 and len(Noted.calls) == 27


def test_features_are_the_callers_own_and_kept_within_bounds(disc: Task) -> None:
    path, size = disc.train[0], 176 * 8 * 8 * 4
    features = Features(make, keep=size)
    before = features.get(path).clone()
    features.get(path).zero_()
    assert torch.equal(features.get(path), before) and Noted.embedded == 1
    features.get(disc.train[1]), features.get(disc.train[1])
    assert Noted.embedded == 3  # no room for a second
