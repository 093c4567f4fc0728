"""PaDiM with running moments against numpy and scikit-learn in one pass."""

import numpy as np
import pytest
import torch
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.moments import gridded
from everline.methods.padim import PaDiM, merged
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor


def features(count: int, seed: int, channels: int = 6, side: int = 4) -> Tensor:
    own = torch.Generator().manual_seed(seed)
    scale = 1 + torch.arange(channels).float()[:, None, None]
    return torch.randn(count, channels, side, side, generator=own) * scale + scale


def learned(*parts: Tensor, **params: float | str) -> PaDiM:
    detector = PaDiM(size=32, sigma=0.0, channels=4, **params)  # type: ignore[arg-type]
    for part in parts:
        detector.learn(part)
    return detector


def in_turn(*visits: tuple[str, Tensor], **params: float | str) -> PaDiM:
    """A detector that was told which task each part is of."""
    detector = learned(**params)
    for task, part in visits:
        detector.begin_task(task)
        detector.learn(part)
    return detector


def kinds(count: int, seed: int) -> dict[str, Tensor]:
    """Images of three products: apart by their means, and each with variances of its own."""
    shift = {"a": 0.0, "b": 9.0, "c": -9.0}
    return {
        task: features(count, seed + index) * (1 + index / 2) + shift[task]
        for index, task in enumerate(("a", "b", "c"))
    }


def by_numpy(seen: Tensor, asked: Tensor, drawn: Tensor, ridge: float) -> np.ndarray:
    """The paper in a loop over positions: float64 (B, h, w)."""
    x, q = gridded(seen[:, drawn]).numpy(), asked[:, drawn].double().numpy()
    out = np.empty((len(q), *q.shape[2:]))
    for i in range(q.shape[2]):
        for j in range(q.shape[3]):
            inverse = np.linalg.inv(np.cov(x[:, :, i, j].T) + ridge * np.eye(x.shape[1]))
            off = q[:, :, i, j] - x[:, :, i, j].mean(0)
            out[:, i, j] = np.sqrt(np.einsum("bi,ij,bj->b", off, inverse, off))
    return out


def patch_scores(detector: PaDiM, asked: Tensor) -> np.ndarray:
    detector._finish = lambda patches: patches  # type: ignore[method-assign, assignment, return-value]
    return np.asarray(detector.score(asked))


def test_distance_is_that_of_the_paper() -> None:
    seen, asked = features(40, 1), features(3, 2)
    detector = learned(seen, floor=0.0)
    want = by_numpy(seen, asked, detector._picked, 0.01)
    np.testing.assert_allclose(patch_scores(detector, asked), want, rtol=1e-4)


def test_gaussian_is_that_of_sklearn() -> None:
    seen, asked = features(200, 3), features(2, 4)
    detector = learned(seen, floor=0.0, shrinkage=1e-9)
    one = seen[:, detector._picked, 1, 2].numpy()
    want = EmpiricalCovariance().fit(one).mahalanobis(asked[:, detector._picked, 1, 2].numpy()) * 199 / 200
    np.testing.assert_allclose(patch_scores(detector, asked)[:, 1, 2] ** 2, want, rtol=1e-2)


def test_floor_is_a_share_of_the_variance_everywhere() -> None:
    seen, asked = features(40, 5), features(3, 6)
    seen[:, :, 0, 0] = 1.0  # a still corner
    detector = learned(seen, floor=0.1)
    mean = float(gridded(seen[:, detector._picked]).var(0).mean())
    want = by_numpy(seen, asked, detector._picked, 0.01 + 0.1 * mean)
    np.testing.assert_allclose(patch_scores(detector, asked), want, rtol=1e-4)


def test_prior_pulls_few_images_to_the_pooled_covariance() -> None:
    seen, asked = features(5, 7), features(3, 8)
    detector = learned(seen, floor=0.0, prior=1e6)
    x = gridded(seen[:, detector._picked]).numpy()
    pooled = np.mean([np.cov(x[:, :, i, j].T) for i in range(4) for j in range(4)], 0)
    off = asked[:, detector._picked, 2, 2].numpy() - x[:, :, 2, 2].mean(0)
    want = np.sqrt(np.einsum("bi,ij,bj->b", off, np.linalg.inv(pooled + 0.01 * np.eye(4)), off))
    np.testing.assert_allclose(patch_scores(detector, asked)[:, 2, 2], want, rtol=1e-3)


def test_order_and_batches_change_nothing() -> None:
    seen = features(21, 9)
    one_by_one = learned(*seen.flip(0).split(1))
    assert same(learned(seen).state(), one_by_one.state())


def test_looking_at_the_state_changes_nothing() -> None:
    looked = learned()
    for one in features(20, 10).split(1):
        looked.learn(one)
        looked.state()
    assert same(looked.state(), learned(*features(20, 10).split(1)).state())


def test_merged_states_equal_one_that_saw_all() -> None:
    a, b, c = features(9, 11), features(18, 12), features(1, 13)
    whole = merged([learned(a).state(), learned(b).state(), learned(c).state()])
    assert same(whole, learned(a, b, c).state())


def test_merging_takes_pending_images_along() -> None:
    a, b = learned(*features(3, 14).split(1)), learned(*features(5, 15).split(1))
    a.merge(b)
    assert same(a.state(), learned(features(3, 14), features(5, 15)).state())


def test_merging_into_an_empty_one_is_a_copy() -> None:
    source, empty = learned(features(6, 16)), learned()
    empty.merge(source)
    assert same(empty.state(), source.state())
    empty.learn(features(2, 17))
    assert source.images_learned == 6


def test_unlearned_images_leave_no_trace() -> None:
    keep, gone, asked = features(30, 18), features(7, 19), features(2, 20)
    detector = learned(keep, gone)
    detector.score(asked)
    detector.unlearn(learned(gone))
    assert same(detector.state(), learned(keep).state())
    assert torch.equal(detector.score(asked).maps, learned(keep).score(asked).maps)


def test_unlearning_more_than_was_learned_is_refused() -> None:
    with pytest.raises(StateError, match="cannot take 9 samples away from 4"):
        learned(features(4, 21)).unlearn(learned(features(9, 22)))


def test_only_the_same_parameters_combine() -> None:
    with pytest.raises(StateError, match="same parameters"):
        learned(features(4, 23)).merge(learned(features(4, 24), floor=0.5))


def test_other_grids_are_refused() -> None:
    detector = learned(features(4, 25))
    with pytest.raises(ConfigError, match="grid"):
        detector.learn(features(1, 26, side=5))
    with pytest.raises(ConfigError, match="channels"):
        detector.score(features(1, 26, channels=2))
    assert same(detector.state(), learned(features(4, 25)).state())


def test_channels_are_drawn_by_the_seed() -> None:
    a, b = learned(features(2, 27), seed=1), learned(features(2, 27), seed=2)
    assert len(a._picked) == 4
    assert not torch.equal(a._picked, b._picked)


def test_state_with_a_missing_tensor_is_refused() -> None:
    state = learned(features(4, 28)).state()
    short = State({k: t for k, t in state.tensors.items() if k != "grid"}, state.meta)
    with pytest.raises(StateError, match="grid"):
        learned().load_state(short)


def test_pooled_is_one_pass_over_everything() -> None:
    seen = kinds(12, 40)
    told = in_turn(*seen.items())
    assert told.tasks == ["a", "b", "c"]
    everything, asked = learned(torch.cat(list(seen.values()))), features(3, 46)
    assert torch.equal(told.score(asked).maps, everything.score(asked).maps)
    assert all(torch.equal(t, everything.state().tensors[name]) for name, t in told.state().tensors.items())


def test_per_task_equals_detectors_that_learned_one_task_each() -> None:
    seen, asked = kinds(20, 47), torch.cat(list(kinds(4, 50).values()))
    whole = in_turn(*seen.items(), form="per-task")
    for task, part in seen.items():
        single = learned(part)
        assert torch.equal(whole.score(asked, task=task).maps, single.score(asked).maps)


def test_inferred_task_has_the_lowest_total_distance() -> None:
    seen, asked = kinds(20, 53), torch.cat([*kinds(4, 56).values(), features(4, 59) * 3])
    whole = in_turn(*seen.items(), form="per-task")
    singles = [learned(part) for part in seen.values()]
    totals = np.stack([patch_scores(single, asked).sum((1, 2)) for single in singles])
    scores = whole.score(asked)
    assert scores.tasks is not None
    assert scores.tasks[:12].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(scores.tasks.numpy(), totals.argmin(0))
    for image, task in enumerate(scores.tasks.tolist()):
        one = whole.score(asked, task=whole.tasks[task])
        assert torch.equal(scores.maps[image], one.maps[image])


def test_a_known_task_goes_on_with_its_own_moments() -> None:
    a, b, asked = features(14, 60), features(9, 61) + 9, features(3, 62)
    whole = in_turn(("a", a[:6]), ("b", b), ("a", a[6:]), form="per-task")
    assert torch.equal(whole.score(asked, task="a").maps, learned(a).score(asked).maps)


def test_latest_is_a_fresh_detector_on_the_last_visit() -> None:
    a, b, asked = features(14, 63), features(9, 64) + 9, features(3, 65)
    whole = in_turn(("a", a[:6]), ("b", b), ("a", a[6:]), form="latest")
    assert torch.equal(whole.score(asked).maps, learned(a[6:]).score(asked).maps)
    assert torch.equal(whole.score(asked, task="b").maps, whole.score(asked).maps)


@pytest.mark.parametrize("form", ["latest", "averaged", "per-task"])
def test_a_task_begins_with_its_first_image(form: str) -> None:
    a, asked = features(14, 66), features(3, 68)
    whole = in_turn(("a", a[:6]), form=form)
    before = whole.score(asked).maps
    whole.begin_task("b")
    assert torch.equal(whole.score(asked).maps, before)
    whole.begin_task("a")
    whole.learn(a[6:])
    assert torch.equal(whole.score(asked).maps, learned(a).score(asked).maps)
    assert whole.tasks == ["a"]


def algorithm(tasks: list[np.ndarray], asked: np.ndarray, ridge: float) -> np.ndarray:
    """Algorithm 5.1 and the distance, position by position: (B, h, w)."""
    out = np.empty((len(asked), *asked.shape[2:]))
    for y, x in np.ndindex(out.shape[1:]):
        mean, covariance = 0.0, 0.0
        for i, task in enumerate(tasks):
            mean = mean * i / (i + 1) + task[:, :, y, x].mean(0) / (i + 1)
            covariance = covariance * i / (i + 1) + np.cov(task[:, :, y, x].T) / (i + 1)
        off = asked[:, :, y, x] - mean
        inverse = np.linalg.inv(covariance + ridge * np.eye(asked.shape[1]))
        out[:, y, x] = np.sqrt(np.einsum("bi,ij,bj->b", off, inverse, off))
    return out


def test_averaged_is_algorithm_5_1() -> None:
    a, b, asked = features(14, 69), features(9, 70) * 2 + 3, features(3, 71)
    visits = [("a", a[:5]), ("b", b), ("a", a[5:])]  # a return counts as a task
    drawn = learned(a)._picked
    for many in (1, 2, 3):
        detector = in_turn(*visits[:many], form="averaged", floor=0.0)
        tasks = [gridded(part[:, drawn]).numpy() for _, part in visits[:many]]
        want = algorithm(tasks, asked[:, drawn].double().numpy(), 0.01)
        np.testing.assert_allclose(patch_scores(detector, asked), want, rtol=1e-4)


def test_averaging_misses_the_variance_between_tasks() -> None:
    a, b, between = features(40, 72), features(40, 73) + 30, features(4, 74) + 15
    pooled, averaged = (in_turn(("a", a), ("b", b), form=s) for s in ("pooled", "averaged"))
    assert float(averaged.score(a[:4]).image.min()) > 5 * float(pooled.score(a[:4]).image.max())
    assert float(averaged.score(between).image.max()) < float(averaged.score(a[:4]).image.min())


def test_averaged_takes_as_much_memory_for_many_tasks() -> None:
    one, many = (
        in_turn(*((str(i), features(3, i)) for i in range(count)), form="averaged").state() for count in (1, 5)
    )
    assert one.nbytes == many.nbytes


def test_only_latest_forgets_a_product_that_is_unlike_the_next() -> None:
    (a, b, _), good = kinds(30, 75).values(), features(20, 78)
    bad = good.clone()
    bad[:, :, 1, 1] += 12.0
    gap = {}
    for form in ("per-task", "latest"):
        before = in_turn(("a", a), form=form)
        after = in_turn(("a", a), ("b", b), form=form)
        gap[form] = (after.score(bad).image.mean() - after.score(good).image.mean()) / (
            before.score(bad).image.mean() - before.score(good).image.mean()
        )
        kept = torch.equal(after.score(good).image, before.score(good).image)
        assert kept == (form == "per-task")
        assert torch.equal(after.score(good, task="a").image, before.score(good).image) == kept
    assert float(gap["per-task"]) == 1.0
    assert float(gap["latest"]) < 0.5


def test_only_pooled_merges() -> None:
    a, b = (learned(features(4, seed), form="per-task") for seed in (79, 80))
    for verb in (a.merge, a.unlearn):
        with pytest.raises(StateError, match="only form=pooled"):
            verb(b)
    with pytest.raises(StateError, match="only form=pooled"):
        merged([a.state(), b.state()])


def test_merging_brings_names_of_tasks_along() -> None:
    a, b = in_turn(("a", features(4, 81))), in_turn(("b", features(4, 82)))
    a.merge(b)
    assert a.tasks == ["a", "b"]


@pytest.mark.parametrize("name", ["learning", "average.finished", "average.mean", "average.covariance"])
def test_averages_that_do_not_fit_are_refused(name: str) -> None:
    state = in_turn(("a", features(4, 83)), ("b", features(4, 84)), form="averaged").state()
    wrong = torch.full_like(state.tensors[name], -7)[..., :-1] if "." in name else torch.tensor(2)
    with pytest.raises(StateError, match="incomplete or misshapen"):
        learned(form="averaged").load_state(State({**state.tensors, name: wrong}, state.meta))
