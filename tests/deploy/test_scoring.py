"""What a replica holds in memory, and that what it computes for one line does not depend on the others."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from everline.deploy.scoring import Counter, Job, Queue, Seen, backbones, look, wanted
from everline.methods.backbones import Backbone
from everline.methods.conformance import images
from everline.methods.detector import Detector, FeatureDetector
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.images import views
from everline.platform.line import embed_image
from PIL import Image

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


def job(line: Counter, data: bytes) -> Job:
    return Job(line, data, views(data, **wanted(line, own=True, picture=False)))


def alone(line: Counter, data: bytes) -> Seen:
    queue, one = Queue(), job(line, data)
    queue.put(one)
    queue.work()
    return one.done.result(timeout=0)


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
        alone(other, part)
        features = alone(mine, part).features
        torch.set_num_threads(1)
        assert torch.equal(torch.from_numpy(features), embed_image(build("padim", **SMALL), part))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in each pass of a backbone that takes four together, as one on a GPU takes eight."""
    seen: list[int] = []
    one_by_one = Backbone.forward

    def forward(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.cat([one_by_one(self, image[None]) for image in images])

    monkeypatch.setattr(FeatureDetector, "together", 4)
    monkeypatch.setattr(Backbone, "forward", forward)
    return seen


def test_images_of_different_lines_that_wait_go_through_their_backbone_together(
    parts: list[bytes], passes: list[int]
) -> None:
    lines = [counter("padim"), counter("coreset"), counter("subspace", size=96)]
    jobs = [job(lines[n % 3], data) for n, data in enumerate(parts[:9])]
    passes.clear()
    queue = Queue()
    for one in jobs:
        queue.put(one)
    for _ in jobs:
        queue.work()
    assert passes == [4, 3, 2]  # of 64 pixels, two lines: a pass of four and the rest; of 96, one line
    for one in jobs:
        found, wanted = one.done.result(timeout=0), alone(one.counter, one.data)
        assert found.scored == wanted.scored and (found.features == wanted.features).all()


def test_lines_take_turns_however_many_images_of_one_wait(parts: list[bytes]) -> None:
    flood, other = counter("padim"), counter("coreset")
    queue, jobs = Queue(), [job(flood, parts[n]) for n in range(4)] + [job(other, parts[n]) for n in range(2)]
    for one in jobs:
        queue.put(one)
    order: list[int] = []
    for n, one in enumerate(jobs):
        one.done.add_done_callback(lambda _, n=n: order.append(n))
    for _ in jobs:
        queue.work()
    assert order == [0, 4, 1, 5, 2, 3]


def test_one_decoding_is_enough_for_a_version_that_takes_another_size(parts: list[bytes]) -> None:
    line, before = counter("padim"), counter("padim", size=96)
    line.scorer = before.scorer
    found = alone(line, parts[0])
    one = Job(line, b"not decoded again", views(parts[0], **wanted(line, own=True, picture=True)), "overlay")
    queue = Queue()
    queue.put(one)
    queue.work()
    assert one.done.result(timeout=0).scored == found.scored
    late = Job(line, parts[0], views(parts[0], (64,)))  # decoded before that version came
    queue.put(late)
    queue.work()
    assert late.done.result(timeout=0).scored == found.scored


def test_a_version_of_other_bits_sees_the_image_as_it_learned_to(parts: list[bytes]) -> None:
    line, before = counter("padim"), counter("padim", bits=12)
    line.scorer = before.scorer
    grey = np.asarray(Image.open(io.BytesIO(parts[0])).convert("L")).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(grey * 16).save(out, "PNG")
    data, want = out.getvalue(), before.scorer.judge(embed_image(before.scorer.detector, out.getvalue()))[0]  # type: ignore[union-attr]
    assert alone(line, data).scored == want and alone(before, data).scored == want
    assert wanted(line, own=False, picture=True)["bits"] == 12 and wanted(line, own=True, picture=True)["bits"] == 0


def test_what_is_wrong_with_one_image_is_not_told_to_those_that_went_with_it(
    parts: list[bytes], passes: list[int]
) -> None:
    good, bad = counter("padim"), counter("padim")
    bad.scorer.calibration = None  # type: ignore[assignment,union-attr]
    queue, jobs = Queue(), [job(line, parts[0]) for line in (good, bad, good)]
    for one in jobs:
        queue.put(one)
    jobs[2].done.cancel()  # whoever asked has gone
    queue.work()
    assert passes[-1] == 2
    assert jobs[0].done.result(timeout=0).scored
    with pytest.raises(AttributeError):
        jobs[1].done.result(timeout=0)


def test_whoever_waits_when_the_desk_stops_does_not_wait_for_ever(parts: list[bytes]) -> None:
    queue, one = Queue(), job(counter("padim"), parts[0])
    queue.put(one)
    queue.clear()
    queue.work()
    assert one.done.cancelled()


def test_a_backbone_that_cannot_be_had_leaves_the_line_without_a_version(tmp_path: Path) -> None:
    broken = counter("padim")
    broken.scorer = None
    broken.versions.state.meta["params"]["weights"] = str(tmp_path / "nothing.pth")
    look(broken)
    assert broken.scorer is None and "nothing.pth" in broken.problem
