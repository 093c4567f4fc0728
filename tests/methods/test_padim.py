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


def learned(*parts: Tensor, **params: float) -> PaDiM:
    detector = PaDiM(size=32, sigma=0.0, channels=4, **params)  # type: ignore[arg-type]
    for part in parts:
        detector.learn(part)
    return detector


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
