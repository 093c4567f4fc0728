"""The protocol fewshot: what the stream is, test before train, no labels for anyone, and its figures."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from everline.methods.detector import Detector, Learned, Scores, Traits
from everline.methods.errors import ConfigError, DataError
from everline.methods.kng import KNG
from everline.methods.padim import PaDiM
from everline.pipelines.data.datasets import Sample, Task, read_folder
from everline.pipelines.data.view import View
from everline.pipelines.protocols.fewshot import FewShot, mean_of_sessions
from everline.pipelines.protocols.judging import Bench, Panel
from everline.pipelines.records.results import METRICS
from torch import Tensor

SHORT = FewShot(shots=4, ratio=3, session=9, batch=4)


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Task:
    """20 images to learn, 5 good and 12 defective ones to judge; at 3 to 1: 4 shots, a stream of 21 and 7."""
    return read_folder(write_disc(tmp_path_factory.mktemp("data") / "disc", 20, 5, 12, masks=True))


class Cheat(PaDiM):
    """Notes what it is shown, learns while it scores, spoils what it scored, and scores what it learned as 0."""

    log: ClassVar[list[tuple[str, list[bytes]]]] = []
    known: ClassVar[set[bytes]] = set()

    def score(self, features: Tensor, *more: object) -> Scores:
        seen = self.note("score", features, more)
        found = super().score(features)
        super().learn(features + 1000)
        features.zero_()
        return replace(found, image=found.image * 0) if self.known & set(seen) else found

    def learn(self, features: Tensor, *more: object) -> Learned:
        self.known.update(self.note("learn", features, more))
        return super().learn(features)

    def note(self, verb: str, features: Tensor, more: object) -> list[bytes]:
        assert type(features) is torch.Tensor and not more and not vars(features)
        seen = [one.numpy().tobytes() for one in features]
        self.log.append((verb, seen))
        return seen


def make(cls: type[Detector] = PaDiM) -> Detector:
    return cls(size=64, weights="none", sigma=1.0)


@pytest.fixture
def cheat() -> Callable[[], Detector]:
    Cheat.log.clear(), Cheat.known.clear()
    return lambda: make(Cheat)


def test_the_stream_has_every_other_normal_once_and_defects_at_the_ratio(disc: Task) -> None:
    shots, stream = SHORT.stream(disc)
    normals = {*disc.train, *(s.path for s in disc.test if not s.defect)}
    good, bad = ([s.path for s in stream if s.defect is d] for d in (False, True))
    assert len(shots) == 4 and set(shots) <= set(disc.train)
    assert sorted(good) == sorted(normals - set(shots)) and (len(good), len(set(bad))) == (21, 7)
    flags = [s.defect for s in stream]
    assert flags != sorted(flags) and flags != sorted(flags, reverse=True)


def test_shots_defects_and_order_are_functions_of_the_seed(disc: Task) -> None:
    first, again, other = (replace(SHORT, seed=seed).stream(disc) for seed in (1, 1, 2))
    assert first == again and set(first[0]) != set(other[0])
    assert {s.path for s in first[1] if s.defect} != {s.path for s in other[1] if s.defect}


def test_where_defects_are_few_all_are_in_the_stream(disc: Task) -> None:
    _, stream = replace(SHORT, ratio=0.5).stream(disc)
    assert sum(s.defect for s in stream) == 12 and len(stream) == 33


@pytest.mark.parametrize(
    ("count", "sizes"), [(28, [9, 10, 9]), (27, [9, 9, 9]), (3, [3]), (13, [13]), (14, [7, 7]), (90, [9] * 10)]
)
def test_sessions_are_even_and_near_their_size(count: int, sizes: list[int]) -> None:
    cuts = SHORT.sessions(count)
    assert [end - start for start, end in cuts] == sizes and (cuts[0][0], cuts[-1][1]) == (0, count)


def test_each_batch_is_scored_before_it_is_learned_and_nothing_twice(
    disc: Task, cheat: Callable[[], Detector]
) -> None:
    shots, stream = SHORT.stream(disc)
    bench = Bench(cheat)
    panel = Panel.of(stream, View(64))
    judged, _ = SHORT.flow(bench, panel, shots, learns=True)
    wanted = {s.path: bench.features.get(s.path)[0].numpy().tobytes() for s in stream}
    assert (judged.scores > 0).all()  # not one was known when it was scored
    verbs = [(verb, len(seen)) for verb, seen in Cheat.log]
    assert verbs[:7] == [("learn", 4), *[("score", 1)] * 4, ("learn", 4), ("score", 1)]
    for kind in ("score", "learn"):
        calls = [one for verb, seen in Cheat.log[1:] if verb == kind for one in seen]
        assert calls == [wanted[s.path] for s in stream]


def test_learning_while_scoring_is_in_vain(disc: Task, cheat: Callable[[], Detector]) -> None:
    shots, stream = SHORT.stream(disc)
    _, learner = SHORT.flow(Bench(cheat), Panel.of(stream, View(64)), shots, learns=True)
    honest = make()
    eyes = Bench(make).features
    for paths in (shots, [s.path for s in stream]):
        honest.learn(torch.cat([eyes.get(path) for path in paths]))
    assert learner.images_learned == honest.images_learned == 32
    for name, tensor in honest.state().tensors.items():
        assert torch.allclose(learner.state().tensors[name].double(), tensor.double(), rtol=1e-5, atol=1e-5), name


def test_other_labels_change_nothing_that_the_detector_does(disc: Task) -> None:
    shots, stream = SHORT.stream(disc)
    lies = [Sample(s.path, not s.defect, "good" if s.defect else "lie") for s in stream]
    told, lied = (SHORT.flow(Bench(make), Panel.of(s, View(64)), shots, learns=True) for s in (stream, lies))
    assert np.array_equal(told[0].scores, lied[0].scores) and told[0].labels.sum() + lied[0].labels.sum() == 28
    mine, theirs = (one[1].state().tensors for one in (told, lied))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_record_has_both_arms_over_sessions_and_the_whole_stream(disc: Task) -> None:
    arms: dict[str, np.ndarray] = {}
    result, judged = SHORT.run(make, disc, sink=lambda name, one: arms.update({name: one.scores}))
    assert (result.n_train, result.n_test, result.defects) == (4, 28, 7)
    assert [point["images"] for point in result.curve] == [9, 19, 28]
    assert result.metrics == mean_of_sessions(result.curve)
    assert [part.name for part in result.parts] == ["whole stream"]
    assert result.parts[0].metrics == judged.figures()
    few = make()
    eyes = Bench(make).features
    shots, stream = SHORT.stream(disc)
    few.learn(torch.cat([eyes.get(path) for path in shots]))
    assert arms["offline"].tolist() == [float(few.score(eyes.get(s.path)).image) for s in stream]
    assert result.offline is not None and result.offline != result.metrics
    assert judged.names[0].split("/")[0] in ("train", "test")
    assert all(value > 0 for value in result.ms_per_image.values())


def test_the_first_batch_is_judged_alike_in_both_arms(disc: Task) -> None:
    arms: dict[str, np.ndarray] = {}
    _, judged = SHORT.run(make, disc, sink=lambda name, one: arms.update({name: one.scores}))
    assert np.array_equal(judged.scores[:4], arms["offline"][:4]) and judged.scores[4] != arms["offline"][4]


def test_the_shares_admitted_are_those_of_the_stream_without_the_shots(disc: Task) -> None:
    open_gate = SHORT.run(lambda: KNG(size=64, weights="none", shots=4, nodes=8, threshold="none"), disc)[0]
    assert open_gate.admitted == {"normal": 1.0, "defective": 1.0}
    result = SHORT.run(lambda: KNG(size=64, weights="none", shots=4, nodes=8, threshold="min"), disc)[0]
    assert result.admitted is not None and 0 < result.admitted["normal"] < 1  # the shots all are
    assert SHORT.run(make, disc)[0].admitted is None  # padim believes everything and does not say so


def test_a_session_without_a_figure_does_not_count() -> None:
    rows = [dict.fromkeys(METRICS, value) for value in (0.5, math.nan, 1.0)]
    assert mean_of_sessions(rows) == dict.fromkeys(METRICS, 0.75)
    assert all(math.isnan(value) for value in mean_of_sessions(rows[1:2]).values())


def test_what_cannot_be_run_is_refused(disc: Task) -> None:
    for wrong in ({"ratio": 0.0}, {"ratio": math.nan}, {"session": 0}, {"batch": 0}, {"shots": 0}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))} must be"):
            FewShot(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="0 defective"):
        SHORT.run(make, replace(disc, test=tuple(s for s in disc.test if not s.defect)))

    class Once(PaDiM):
        traits = Traits(learns_per_image=False)

    with pytest.raises(ConfigError, match="cannot go on learning"):
        SHORT.run(lambda: make(Once), disc)
