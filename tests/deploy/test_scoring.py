"""What a replica holds in memory, and that what it computes for one line does not depend on the others."""

from pathlib import Path

import torch
import torch.nn.functional as F
from everline.deploy.scoring import Counter, backbones, look, see
from everline.methods.conformance import images
from everline.methods.detector import Detector, FeatureDetector
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.line import embed_image

SMALL = {"size": 64, "weights": "none"}


class OneVersion:
    """Double of platform.versions.Versions."""

    def __init__(self, detector: Detector) -> None:
        for image in F.interpolate(images(4, seed=1), detector.size):
            detector.learn(detector.embed(image[None]))
        self.state = detector.state()

    def current(self) -> int:
        return 1

    def load(self, version: int) -> tuple[object, Calibration]:
        return self.state, Calibration.of([1.0, 2.0], 0.4)


def counter(method: str, **more: object) -> Counter:
    """A line with its first version at work."""
    params = {**SMALL, **more}
    found = Counter(method, build(method, **params), OneVersion(build(method, **params)), 1, "cpu")
    look(found)
    assert found.scorer is not None, found.problem
    return found


def storages(detector: Detector) -> list[int]:
    assert isinstance(detector, FeatureDetector)
    return [tensor.untyped_storage().data_ptr() for tensor in detector.extractor.state_dict().values()]


def test_eight_lines_and_their_versions_hold_the_weights_of_one_backbone() -> None:
    lines = [counter(method, seed=seed) for method in ("padim", "coreset", "subspace", "lemo") for seed in (0, 1)]
    found = {tuple(storages(d)) for line in lines for d in (line.embedder, line.scorer.detector)}  # type: ignore[union-attr]
    assert len(found) == 1
    assert len(backbones(lines)) == 1


def test_lines_that_embed_otherwise_have_backbones_of_their_own() -> None:
    lines = [counter("padim"), counter("padim", strides=(4, 8)), counter("padim", size=96)]
    first, second, third = (set(storages(line.embedder)) for line in lines)
    assert not first & second
    assert first == third  # a backbone takes images of any size
    assert len(backbones(lines)) == 2


def test_what_a_method_trains_is_its_own() -> None:
    lines = [counter("padim"), counter("padim", seed=1)]
    for a in (lines[0].embedder, lines[0].scorer.detector):  # type: ignore[union-attr]
        for b in (lines[1].embedder, lines[1].scorer.detector):  # type: ignore[union-attr]
            mine = {t.untyped_storage().data_ptr() for t in a._pack().values() if t.numel()}
            assert not mine & {t.untyped_storage().data_ptr() for t in b._pack().values() if t.numel()}


def test_features_of_a_line_are_those_of_a_single_image_whatever_the_other_lines_send(parts: list[bytes]) -> None:
    mine, other = counter("padim"), counter("coreset", size=96)
    mine.threads, other.threads = 1, 2
    for part in parts[:3]:
        see(other, part, "")
        features = see(mine, part, "").features
        torch.set_num_threads(1)
        assert torch.equal(torch.from_numpy(features), embed_image(build("padim", **SMALL), part))


def test_a_backbone_that_cannot_be_had_leaves_the_line_without_a_version(tmp_path: Path) -> None:
    broken = counter("padim")
    broken.scorer = None
    broken.versions.state.meta["params"]["weights"] = str(tmp_path / "nothing.pth")
    look(broken)
    assert broken.scorer is None and "nothing.pth" in broken.problem
