"""The coreset: bounds, whitening, positions and the guard, against numpy and on streams with defects in them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from everline.methods.conformance import same
from everline.methods.coreset import Coreset, Pool
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.moments import gridded
from sklearn.metrics import roc_auc_score
from torch import Tensor

CHANNELS, SIDE = 12, 6


def features(count: int, seed: int, spread: float = 0.0) -> Tensor:
    """Normal images: correlated noise, and a fixed pattern over the grid of strength `spread`."""
    fixed = torch.Generator().manual_seed(99)
    mix = torch.randn(CHANNELS, CHANNELS, generator=fixed)
    pattern = torch.randn(CHANNELS, SIDE, SIDE, generator=fixed) * 3
    own = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, SIDE, SIDE, CHANNELS, generator=own) @ mix
    return noise.permute(0, 3, 1, 2) + spread * pattern


def defective(count: int, seed: int) -> Tensor:
    """The same with three patches that are far off, in each image in a direction of its own."""
    images = features(count, seed)
    own = torch.Generator().manual_seed(seed + 1)
    images[:, :, 2, 1:4] += 12 * torch.randn(count, CHANNELS, 1, generator=own)
    return images


def learned(*parts: Tensor, **params: int | float | str) -> Coreset:
    given = {"size": 32, "sigma": 0.0, "memory": 60, "sketch": 8, "waiting": 40, **params}
    detector = Coreset(**given)  # type: ignore[arg-type]
    for part in parts:
        for one in part:
            detector.learn(one[None])
    return detector


def far_rows(detector: Coreset) -> int:
    """Rows of the memory that no normal patch looks like."""
    normal = features(40, 1000).flatten(2).mT.flatten(0, 1)
    limit = float((normal - normal.mean(0)).norm(dim=1).max())
    return int((detector._memory["raw"] - normal.mean(0)).norm(dim=1).gt(1.1 * limit).sum())


def auroc(detector: Coreset) -> float:
    good, bad = detector.score(features(40, 500)).image, detector.score(defective(40, 600)).image
    return float(roc_auc_score([0] * 40 + [1] * 40, torch.cat([good, bad])))


def test_score_is_the_whitened_distance_of_numpy() -> None:
    seen, asked = features(20, 1), features(2, 2)
    detector = learned(seen, positions="off", shrinkage=1e-9)
    detector._finish = lambda patches: patches  # type: ignore[method-assign, assignment, return-value]
    first = gridded(seen[:16]).numpy().transpose(0, 2, 3, 1).reshape(-1, CHANNELS)  # refreshed at 16 images
    inverse = np.linalg.inv(np.cov(first.T))
    off = asked.permute(0, 2, 3, 1).reshape(-1, 1, CHANNELS).numpy() - detector._memory["raw"].numpy()
    want = np.sqrt(np.einsum("qmi,ij,qmj->qm", off, inverse, off).min(1)).reshape(2, SIDE, SIDE)
    np.testing.assert_allclose(np.asarray(detector.score(asked)), want, rtol=1e-3)


def test_explained_is_the_analysis_of_variance() -> None:
    seen = features(11, 3, spread=0.7)
    x = gridded(seen).numpy()
    within = x.var(0, ddof=1).mean((1, 2)).sum()
    total = x.transpose(1, 0, 2, 3).reshape(CHANNELS, -1).var(1, ddof=1).sum()
    assert learned(seen).explained == pytest.approx(1 - within / total, abs=1e-9)


@pytest.mark.parametrize(("spread", "aligned"), [(1.0, True), (0.0, False)])
def test_auto_subtracts_positions_of_aligned_parts(spread: float, aligned: bool) -> None:
    detector = learned(features(9, 4, spread))
    assert (detector.explained > 0.15) == aligned
    assert bool((detector._centre[0] == detector._centre[1]).all()) != aligned
    by_hand = learned(features(9, 4, spread), positions="on" if aligned else "off")
    assert torch.equal(detector._whiten, by_hand._whiten)


def test_memory_and_bytes_stay_bounded() -> None:
    detector = learned(features(3, 5))
    nbytes = detector.state().nbytes
    for one in features(60, 6):
        kept = detector.learn(one[None]).kept
        assert kept <= 75
    assert detector.state().nbytes == nbytes


def test_kcenter_covers_better_than_chance() -> None:
    seen = features(60, 7)
    detector = learned(seen, guard=0)
    drawn = torch.randperm(60 * SIDE * SIDE, generator=torch.Generator().manual_seed(1))[: detector._memory.used]
    near = (seen.flatten(2).mT - detector._centre) @ detector._project
    near = near.flatten(0, 1)
    worst = torch.cdist(near, detector._memory["near"]).amin(1).max()
    assert worst < 0.95 * torch.cdist(near, near[drawn]).amin(1).max()


def test_first_image_can_be_scored_while_all_waits() -> None:
    detector = learned()
    done = detector.learn(features(1, 8))
    assert (done.kept, done.detail["admitted"]) == (0, 0)
    assert done.detail["waiting"] == 15
    assert bool(torch.isfinite(detector.score(features(2, 9)).maps).all())


def test_a_new_pattern_waits_until_it_is_confirmed() -> None:
    odd = features(2, 10)
    odd[:, :, 4, 4] = 40.0
    for guard, kept in ((1, [0, 1]), (2, [0, 0])):
        detector = learned(features(40, 11), guard=guard)
        seen = []
        for one in odd:
            detector.learn(one[None])
            seen.append(int((detector._memory["raw"] == 40).all(1).sum()))
        assert seen == kept


def test_one_image_cannot_confirm_itself() -> None:
    odd = features(1, 12)
    odd[:, :, 4, :] = 40.0  # six patches that look the same
    detector = learned(features(40, 13), odd)
    assert not bool((detector._memory["raw"] == 40).all(1).any())


def test_the_oldest_that_wait_are_dropped() -> None:
    detector = learned(features(40, 14), waiting=16, guard=3)
    gone = 0.0
    for index, one in enumerate(features(30, 15)):
        one[0, 0, 0] = 1000.0 * (index + 1)  # like no other
        gone += detector.learn(one[None]).detail["dropped"]
    marks = detector._waiting["raw"][:, 0]
    marks = marks[marks >= 1000]
    assert gone > 0
    assert marks[-1] == 30_000
    assert marks[0] > 10_000
    assert marks.tolist() == sorted(marks.tolist())
    assert len(marks) < 30


def test_what_is_covered_is_not_taken_again() -> None:
    detector = learned(features(40, 22), guard=0)
    one = features(1, 23)
    detector.learn(one)
    assert detector.learn(one).detail["admitted"] <= 2  # a cut in between may have dropped one


def test_no_patch_is_kept_and_waits() -> None:
    detector = learned(features(30, 24), guard=3)
    assert detector._waiting.used
    assert float(torch.cdist(detector._waiting["raw"], detector._memory["raw"]).min()) > 0


def test_new_whitening_brings_a_new_radius() -> None:
    detector = learned(features(30, 25))
    while detector._memory.used == detector.memory:
        detector.learn(features(1, 26))
    detector._radius = 1e9
    detector._refresh()
    assert detector._memory.used == detector.memory
    assert 0 < detector._radius < 100


def test_guard_keeps_defects_out_of_the_memory() -> None:
    stream = torch.cat([features(90, 16), defective(10, 17)])
    stream = stream[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    guarded, open_ = learned(stream), learned(stream, guard=0)
    assert far_rows(guarded) == 0
    assert far_rows(open_) >= 10


def test_guard_keeps_the_auroc_of_a_stream_with_defects() -> None:
    again = defective(40, 600)[:10]  # defects of the test set, on the line before
    stream = torch.cat([features(90, 16), again])[torch.randperm(100, generator=torch.Generator().manual_seed(2))]
    clean = auroc(learned(features(90, 16)))
    guarded, unguarded = auroc(learned(stream)), auroc(learned(stream, guard=0))
    assert guarded > clean - 0.02
    assert unguarded < clean - 0.05


def test_batches_are_learned_image_by_image() -> None:
    seen = features(12, 19)
    whole = learned()
    whole.learn(seen)
    assert same(whole.state(), learned(seen).state())


def test_another_shape_is_refused() -> None:
    detector = learned(features(3, 20))
    for verb in (detector.learn, detector.score):
        with pytest.raises(ConfigError, match=r"expected features \(12, 6, 6\)"):
            verb(torch.zeros(1, CHANNELS, SIDE, SIDE + 1))


@pytest.mark.parametrize(("name", "value"), [("used", [999, 0]), ("memory.place", SIDE * SIDE), ("waiting.place", -1)])
def test_states_that_point_nowhere_are_refused(name: str, value: int | list[int]) -> None:
    state = learned(features(3, 21)).state()
    wrong = state.tensors[name].clone()
    wrong[:] = torch.tensor(value)
    with pytest.raises(StateError, match="not there"):
        learned().load_state(State({**state.tensors, name: wrong}, state.meta))


def test_a_pool_keeps_its_order() -> None:
    pool = Pool(5, 2, 2, torch.device("cpu"))
    for index in range(4):
        row = torch.full((1, 2), float(index))
        pool.append({"raw": row, "near": row, "place": torch.tensor([index]), "votes": torch.tensor([0])})
    pool.keep(pool["place"] != 1)
    assert pool["place"].tolist() == [0, 2, 3]
    assert all(a < b for a, b in pairwise(pool["raw"][:, 0].tolist()))
    assert float(pool.columns["raw"][3:].abs().sum()) == 0
