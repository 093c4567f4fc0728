"""The coreset: bounds, whitening, positions and the guard, against numpy and on streams with defects in them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from everline.methods.bank import Pool
from everline.methods.conformance import same
from everline.methods.coreset import Coreset
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.moments import gridded
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
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


def in_turn(*visits: tuple[str, Tensor], **params: int | float | str) -> Coreset:
    """A detector that keeps its tasks apart and was told which one each part is of."""
    detector = learned(**{"form": "routed", **params})
    for task, part in visits:
        detector.begin_task(task)
        for one in part:
            detector.learn(one[None])
    return detector


def other(count: int, seed: int) -> Tensor:
    """Another product: channels in another order and scale, and elsewhere."""
    return 2 * features(count, seed).flip(1) + 6


def far_rows(detector: Coreset) -> int:
    """Rows of the memory that no normal patch looks like."""
    normal = features(40, 1000).flatten(2).mT.flatten(0, 1)
    limit = float((normal - normal.mean(0)).norm(dim=1).max())
    return int((detector._banks[0].memory["raw"] - normal.mean(0)).norm(dim=1).gt(1.1 * limit).sum())


def auroc(detector: Coreset) -> float:
    good, bad = detector.score(features(40, 500)).image, detector.score(defective(40, 600)).image
    return float(roc_auc_score([0] * 40 + [1] * 40, torch.cat([good, bad])))


def test_score_is_the_whitened_distance_of_numpy() -> None:
    seen, asked = features(20, 1), features(2, 2)
    detector = learned(seen, positions="off", shrinkage=1e-9)
    detector._finish = lambda patches: patches  # type: ignore[method-assign, assignment, return-value]
    first = gridded(seen[:16]).numpy().transpose(0, 2, 3, 1).reshape(-1, CHANNELS)  # refreshed at 16 images
    inverse = np.linalg.inv(np.cov(first.T))
    off = asked.permute(0, 2, 3, 1).reshape(-1, 1, CHANNELS).numpy() - detector._banks[0].memory["raw"].numpy()
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
    assert bool((detector._banks[0].centre[0] == detector._banks[0].centre[1]).all()) != aligned
    by_hand = learned(features(9, 4, spread), positions="on" if aligned else "off")
    assert torch.equal(detector._banks[0].whiten, by_hand._banks[0].whiten)


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
    bank = detector._banks[0]
    drawn = torch.randperm(60 * SIDE * SIDE, generator=torch.Generator().manual_seed(1))[: bank.memory.used]
    near = (seen.flatten(2).mT - bank.centre) @ bank.project
    near = near.flatten(0, 1)
    worst = torch.cdist(near, bank.memory["near"]).amin(1).max()
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
            seen.append(int((detector._banks[0].memory["raw"] == 40).all(1).sum()))
        assert seen == kept


def test_one_image_cannot_confirm_itself() -> None:
    odd = features(1, 12)
    odd[:, :, 4, :] = 40.0  # six patches that look the same
    detector = learned(features(40, 13), odd)
    assert not bool((detector._banks[0].memory["raw"] == 40).all(1).any())


def test_the_oldest_that_wait_are_dropped() -> None:
    detector = learned(features(40, 14), waiting=16, guard=3)
    gone = 0.0
    for index, one in enumerate(features(30, 15)):
        one[0, 0, 0] = 1000.0 * (index + 1)  # like no other
        gone += detector.learn(one[None]).detail["dropped"]
    marks = detector._banks[0].waiting["raw"][:, 0]
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
    assert detector._banks[0].waiting.used
    assert float(torch.cdist(detector._banks[0].waiting["raw"], detector._banks[0].memory["raw"]).min()) > 0


def test_new_whitening_brings_a_new_radius() -> None:
    detector = learned(features(30, 25))
    while detector._banks[0].memory.used == detector.memory:
        detector.learn(features(1, 26))
    detector._banks[0].radius = 1e9
    detector._banks[0].refresh()
    assert detector._banks[0].memory.used == detector.memory
    assert 0 < detector._banks[0].radius < 100


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


def test_routed_with_one_task_is_shared() -> None:
    seen, asked = features(40, 30), features(3, 31)
    alone, shared = in_turn(("a", seen)), learned(seen)
    assert torch.equal(alone.score(asked).maps, shared.score(asked).maps)


def test_tasks_share_one_bound_of_rows() -> None:
    detector = in_turn(memory=64, slack=0.25)
    for many, task in enumerate("abcd", start=1):
        detector.begin_task(task)
        for one in features(20, 32 + many) * many:
            kept = detector.learn(one[None]).kept
            assert kept <= 64 + 16
        rows = [bank.memory.used for bank in detector._banks]
        assert rows[:-1] == [64 // many] * (many - 1)
        assert 64 // many <= rows[-1] <= 64 // many + 64 % many + 16


def test_what_a_task_costs_beside_rows_is_as_stated() -> None:
    nbytes = [in_turn(*((str(t), features(3, t)) for t in range(many))).state().nbytes for many in (3, 4, 5)]
    stated = 12 * SIDE**2 * CHANNELS + 12 * CHANNELS**2
    assert nbytes[2] - nbytes[1] == nbytes[1] - nbytes[0]  # 60 rows divide by 3, 4 and 5
    assert nbytes[1] - nbytes[0] == pytest.approx(stated, rel=0.1)


def test_rows_of_a_finished_task_are_its_k_centers() -> None:
    before = in_turn(("a", features(30, 37)))
    rows, near = before._banks[0].memory["raw"].clone(), before._banks[0].memory["near"].clone()
    after = in_turn(("a", features(30, 37)), ("b", other(1, 38)))._banks[0].memory["raw"]
    kept = (rows[:, None] == after).all(2).any(1)
    assert int(kept.sum()) == len(after) == 30
    chosen, gap = [0], torch.cdist(near.double(), near.double())  # farthest first, in four lines
    while len(chosen) < 30:
        chosen.append(int(gap[:, chosen].amin(1).argmax()))
    assert kept.nonzero()[:, 0].tolist() == sorted(chosen)


def test_each_bank_has_the_space_of_its_own_task() -> None:
    a, b = features(16, 39), other(16, 40)
    whole = in_turn(("a", a), ("b", b))
    for place, part in enumerate((a, b)):
        single = learned(part)._banks[0]
        assert torch.equal(whole._banks[place].whiten, single.whiten)
        assert torch.equal(whole._banks[place].centre, single.centre)


def test_images_go_to_the_nearest_prototype() -> None:
    a, b = features(30, 41), 0.05 * features(30, 42) + features(1, 43).mean((2, 3), keepdim=True)
    asked = torch.cat([features(10, 44), b[:10], features(10, 45) + 0.2])
    tasks = in_turn(("a", a), ("b", b)).score(asked).tasks
    means = [part.double().mean((2, 3)).numpy() for part in (a, b)]
    model = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(np.concatenate(means), [0] * 30 + [1] * 30)
    assert tasks is not None
    np.testing.assert_array_equal(tasks.numpy(), model.predict(asked.double().mean((2, 3)).numpy()))
    assert set(tasks.tolist()) == {0, 1}


def test_an_image_is_scored_by_the_bank_it_went_to() -> None:
    detector = in_turn(("a", features(30, 46)), ("b", other(30, 47)))
    asked = torch.cat([other(3, 48), features(3, 49)])
    scores = detector.score(asked)
    assert scores.tasks is not None
    assert scores.tasks.tolist() == [1, 1, 1, 0, 0, 0]
    for name, which in (("b", slice(0, 3)), ("a", slice(3, 6))):
        assert torch.equal(scores.maps[which], detector.score(asked, task=name).maps[which])
        assert not torch.equal(scores.maps, detector.score(asked, task=name).maps)


def test_routed_keeps_what_it_knew_of_the_first_product() -> None:
    first, second = features(60, 16), other(60, 50)
    before = auroc(in_turn(("a", first), memory=120))
    after = auroc(in_turn(("a", first), ("b", second), memory=120))
    assert before > 0.9
    assert after > before - 0.02


def test_a_known_task_goes_on_with_its_bank_and_nothing_waits_elsewhere() -> None:
    detector = in_turn(("a", features(20, 51)), ("b", other(20, 52)))
    detector.begin_task("a")
    detector.learn(features(1, 53))
    a, b = detector._banks
    assert (a.images, b.images) == (21, 20)
    assert a.waiting.room + a.waiting.used == 40
    assert b.waiting.room + b.waiting.used == 0
    assert b.memory.used == 30


def test_a_task_with_nothing_confirmed_keeps_what_waits() -> None:
    detector = in_turn(("a", features(1, 54)), ("b", other(20, 55)))
    assert 0 < detector._banks[0].memory.used <= 30
    assert bool(torch.isfinite(detector.score(features(2, 56), task="a").maps).all())


def test_more_tasks_than_rows_are_refused_and_change_nothing() -> None:
    detector = in_turn(*((str(t), features(1, t)) for t in range(10)), memory=10)
    before = detector.state()
    detector.begin_task("one too many")
    with pytest.raises(ConfigError, match="memory=10 rows are not enough for 11 tasks"):
        detector.learn(features(1, 57))
    detector.begin_task("9")
    assert same(detector.state(), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning", torch.tensor(2)), ("task.0.prototype.total", torch.zeros(1, 3)), ("task.1.memory.extra", None)],
)
def test_banks_that_do_not_fit_are_refused(name: str, value: Tensor | None) -> None:
    state = in_turn(("a", features(3, 58)), ("b", other(3, 59))).state()
    wrong = {**state.tensors, name: torch.zeros(1) if value is None else value}
    with pytest.raises(StateError, match="incomplete or misshapen"):
        in_turn().load_state(State(wrong, state.meta))
