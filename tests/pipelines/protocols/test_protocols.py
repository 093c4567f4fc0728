"""The protocol online: who sees what, in which order, and that its figures are those of what was judged."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from everline.methods.detector import Detector, Learned, Scores, Traits
from everline.methods.errors import ConfigError, DataError, NotLearned
from everline.methods.metrics import evaluate
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.protocols.protocols import Online
from PIL import Image
from torch import Tensor


@dataclass(kw_only=True, eq=False)
class MeanImage(Detector):
    """Distance to the mean image: the smallest honest detector."""

    name: ClassVar[str] = "mean_image"

    def embed(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float(), 4)

    def _reset(self) -> None:
        self.total = torch.zeros(3, self.size // 4, self.size // 4)

    def _learn(self, features: Tensor) -> Learned:
        self.total = self.total + features.sum(0)
        return Learned(images=len(features))

    def _score(self, features: Tensor) -> Scores:
        maps = F.interpolate((features - self.total / self.images_learned).abs().mean(1, keepdim=True), self.size)[
            :, 0
        ]
        return Scores(image=maps.amax((1, 2)), maps=maps)

    def _pack(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        self.total = tensors["total"]


@dataclass(kw_only=True, eq=False)
class Spy(MeanImage):
    """Writes down everything it is shown, by instance, and tries to learn while it scores."""

    name: ClassVar[str] = "spy"
    seen: ClassVar[list[tuple[int, str, Any]]] = []

    def embed(self, images: Tensor, *more: Any) -> Tensor:
        features = super().embed(images)
        self.note("embed", features, more)
        return features

    def score(self, features: Tensor, *more: Any) -> Scores:
        self.note("score", features, more)
        found = super().score(features)
        self.total = self.total + 1000 * features[0]  # the cheat: the state changes, and so do later scores
        features.zero_()
        return found

    def learn(self, features: Tensor, *more: Any) -> Learned:
        self.note("learn", features, more)
        return super().learn(features)

    def note(self, what: str, features: Tensor, more: Any) -> None:
        assert type(features) is torch.Tensor and not more and not vars(features)
        self.seen.append((id(self), what, tuple(features.flatten().tolist())))


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Task:
    """A task of 11 images to learn, 5 good and 6 defective ones to judge; masks are the scratches' surroundings."""
    return read_folder(write_disc(tmp_path_factory.mktemp("data") / "disc", 11, 5, 6, masks=True))


def make() -> MeanImage:
    return MeanImage(size=64)


def spies(task: Task) -> tuple[set[int], dict[str, list[tuple[int, Any]]]]:
    """Runs the spy; the ids of those that learned, and what was seen by verb."""
    Spy.seen.clear()
    alive = []  # ids stay unique while all instances live

    def spy() -> Spy:
        alive.append(Spy(size=64))
        return alive[-1]

    Online().run(spy, task)
    by_verb: dict[str, list[tuple[int, Any]]] = {"embed": [], "score": [], "learn": []}
    for who, verb, what in Spy.seen:
        by_verb[verb].append((who, what))
    return {who for who, _ in by_verb["learn"]}, by_verb


def picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]


def features(paths: list[Path]) -> Counter:
    return Counter(tuple(make().embed(picture(path)).flatten().tolist()) for path in paths)


def taught(task: Task) -> MeanImage:
    """What the stream teaches (in whole numbers: in any order)."""
    detector = make()
    for path in task.train:
        detector.learn(detector.embed(picture(path)))
    return detector


def test_the_learner_sees_each_training_image_once_and_nothing_else(disc: Task) -> None:
    learners, seen = spies(disc)
    assert len(learners) == 1
    train = features(list(disc.train))
    assert Counter(what for _, what in seen["learn"]) == train
    assert not learners & {who for who, _ in seen["embed"]}  # it sees no picture at all
    assert Counter(what for _, what in seen["embed"]) == train + features([s.path for s in disc.test])


def test_test_images_are_scored_one_by_one_and_never_by_the_learner(disc: Task) -> None:
    learners, seen = spies(disc)
    rounds = len(Online().points(len(disc.train)))
    wanted = features([s.path for s in disc.test])
    assert not learners & {who for who, _ in seen["score"]}
    assert Counter(what for _, what in seen["score"]) == Counter({k: n * rounds for k, n in wanted.items()})


def test_learning_while_scoring_reaches_neither_the_learner_nor_the_next_point(disc: Task) -> None:
    Spy.seen.clear()
    made: list[Spy] = []

    def spy() -> Spy:
        made.append(Spy(size=64))
        return made[-1]

    _, cheated = Online().run(spy, disc)
    _, honest = Online().run(make, disc)
    learner = next(
        one for one in made if one.images_learned and id(one) in {who for who, v, _ in Spy.seen if v == "learn"}
    )
    assert torch.equal(learner.total, taught(disc).total)
    assert cheated.scores[0] == honest.scores[0] and cheated.scores[1] != honest.scores[1]  # it did cheat, in vain


def test_the_order_is_a_permutation_by_the_seed() -> None:
    assert Online(seed=1).order(50) == Online(seed=1).order(50) != Online(seed=2).order(50)
    assert sorted(Online(seed=1).order(50)) == list(range(50)) != Online(seed=1).order(50)


@pytest.mark.parametrize(
    ("count", "points"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (11, [1, 2, 4, 8, 11])]
)
def test_points_double_and_end_at_the_end(count: int, points: list[int]) -> None:
    assert Online().points(count) == points


def test_the_curve_ends_at_the_reported_figures(disc: Task) -> None:
    result, judged = Online().run(make, disc)
    assert [point["images"] for point in result.curve] == [1, 2, 4, 8, 11]
    assert {k: v for k, v in result.curve[-1].items() if k != "images"} == result.metrics
    found = evaluate(judged.scores, judged.labels, judged.maps, judged.masks)
    assert all(found[name] == value for name, value in result.metrics.items())
    assert (result.n_train, result.n_test, result.state_bytes) == (11, 11, make().state().nbytes)


def test_scores_are_those_of_the_detector_that_learned_it_all(disc: Task) -> None:
    _, judged = Online(seed=5).run(make, disc)
    detector = taught(disc)
    for n, sample in enumerate(disc.test):
        found = detector.score(detector.embed(picture(sample.path)))
        assert judged.names[n] == f"{sample.kind}/{sample.path.name}" and judged.labels[n] == sample.defect
        assert judged.scores[n] == pytest.approx(float(found.image), rel=1e-5)
        assert judged.maps is not None and np.allclose(judged.maps[n], found.maps[0], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_in_memory_is_embedded_anew(disc: Task) -> None:
    kept, few, none = (Online(keep=keep).run(make, disc)[1] for keep in (2**30, 3 * 3 * 16 * 16 * 4, 0))
    assert np.array_equal(kept.scores, few.scores) and np.array_equal(kept.scores, none.scores)


def test_times_are_taken_of_all_three_parts(disc: Task) -> None:
    result, _ = Online().run(make, disc)
    assert all(result.ms_per_image[name] > 0 for name in ("backbone", "score", "learn"))
    assert math.isfinite(result.images_per_s)


def test_progress_is_told_to_the_end(disc: Task) -> None:
    heard: list[tuple[str, int, int]] = []
    Online().run(make, disc, lambda stage, done, of: heard.append((stage, done, of)))
    assert ("embed", 11, 11) in heard and ("learn", 11, 11) in heard and heard[-1] == ("judge", 11, 11)


def test_without_masks_only_the_image_figures_are_there(disc: Task) -> None:
    bare = Task("bare", disc.train, tuple(type(s)(s.path, s.defect, s.kind) for s in disc.test))
    result, judged = Online().run(make, bare)
    assert judged.masks is None and math.isnan(result.metrics["aupro"]) and result.metrics["image_auroc"] > 0


def test_a_method_that_needs_batches_is_refused(disc: Task) -> None:
    class Batches(MeanImage):
        traits = Traits(learns_per_image=False)

    with pytest.raises(ConfigError, match="one image at a time"):
        Online().run(lambda: Batches(size=64), disc)


def test_a_method_that_needs_some_images_first_starts_its_curve_later(disc: Task) -> None:
    class Slow(MeanImage):
        needs = 3

        @property
        def ready(self) -> bool:
            return self.images_learned >= self.needs

    result, _ = Online().run(lambda: Slow(size=64), disc)
    assert [point["images"] for point in result.curve] == [4, 8, 11]
    Slow.needs = 99
    with pytest.raises(NotLearned):
        Online().run(lambda: Slow(size=64), disc)


def test_a_broken_file_is_named(disc: Task, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(disc.train[0].read_bytes()[:200])
    with pytest.raises(DataError, match=r"broken\.png.*truncated"):
        Online().run(make, Task("x", (broken,), disc.test))
