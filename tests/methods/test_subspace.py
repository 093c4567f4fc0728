"""The running Gaussian and its subspace against scikit-learn in one pass; merging and unlearning to the last bit."""

import numpy as np
import pytest
import torch
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import ConfigError, NotLearned, StateError
from everline.methods.moments import gridded
from everline.methods.registry import restore
from everline.methods.subspace import Subspace, remainder
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from torch import Tensor

CHANNELS = 8


def features(count: int, seed: int, side: int = 5) -> Tensor:
    """Correlated noise with variances from 0.04 to 25 and a mean."""
    fixed = torch.Generator().manual_seed(99)
    mix = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=fixed)).Q * torch.logspace(-0.7, 0.7, CHANNELS)
    noise = torch.randn(count, side, side, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return (noise @ mix.T + torch.arange(CHANNELS)).permute(0, 3, 1, 2).contiguous()


def rows(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).reshape(-1, CHANNELS).double().numpy()


def learned(*parts: Tensor, **given: float | str) -> Subspace:
    detector = Subspace(size=32, sigma=0.0, **given)  # type: ignore[arg-type]
    for part in parts:
        detector.learn(part)
    return detector


def patch_scores(detector: Subspace, asked: Tensor) -> np.ndarray:
    detector._finish = lambda patches: patches  # type: ignore[method-assign, assignment, return-value]
    return np.asarray(detector.score(asked)).ravel()


def test_whitened_is_the_mahalanobis_distance_of_sklearn() -> None:
    seen, asked = features(30, 1), features(3, 2)
    want = EmpiricalCovariance().fit(rows(gridded(seen))).mahalanobis(rows(asked))
    got = patch_scores(learned(seen, shrinkage=1e-9), asked)
    np.testing.assert_allclose(got**2, want, rtol=1e-3)


def test_shrinkage_is_a_share_of_the_mean_variance() -> None:
    seen, asked = features(30, 1), features(3, 2)
    covariance = np.cov(rows(gridded(seen)).T, ddof=0)
    ridged = covariance + 0.2 * np.trace(covariance) / CHANNELS * np.eye(CHANNELS)
    off = rows(asked) - rows(gridded(seen)).mean(0)
    want = np.sqrt(np.einsum("qi,ij,qj->q", off, np.linalg.inv(ridged), off))
    np.testing.assert_allclose(patch_scores(learned(seen, shrinkage=0.2), asked), want, rtol=1e-4)


@pytest.mark.parametrize("explained", [0.5, 0.9, 0.99])
def test_residual_is_the_reconstruction_error_of_sklearn(explained: float) -> None:
    seen, asked = features(30, 3), features(3, 4)
    pca = PCA(n_components=explained, svd_solver="full").fit(rows(gridded(seen)))
    assert 0 < pca.n_components_ < CHANNELS
    want = np.linalg.norm(rows(asked) - pca.inverse_transform(pca.transform(rows(asked))), axis=1)
    got = patch_scores(learned(seen, score_rule="residual", explained=explained), asked)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_the_subspace_grows_with_what_it_must_explain() -> None:
    covariance = torch.diag(torch.tensor([5.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    assert [len(remainder(covariance, share)) for share in (0.1, 0.5, 0.6, 0.8, 0.85, 0.9)] == [3, 3, 2, 2, 1, 1]
    assert remainder(covariance, 0.8)[:, [0, 2]].abs().max() == 0  # the two largest are left out


def test_something_is_always_left_over() -> None:
    flat, one = torch.zeros(3, 3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64))
    assert len(remainder(flat, 0.99)) == 3
    assert len(remainder(one, 0.99999)) == 2
    assert len(remainder(torch.eye(3, dtype=torch.float64), 0.99999)) == 1


@pytest.mark.parametrize("rule", ["whitened", "residual"])
def test_it_scores_from_the_first_image_even_a_blank_one(rule: str) -> None:
    for first in (features(1, 5), torch.zeros(1, CHANNELS, 5, 5)):
        assert np.isfinite(patch_scores(learned(first, score_rule=rule), features(2, 6))).all()


def test_order_and_batches_do_not_matter() -> None:
    seen = features(12, 7)
    whole, single = learned(seen), learned(*(one[None] for one in seen.flip(0)))
    assert same(whole.state(), single.state())


def test_workers_merge_to_the_bits_of_one() -> None:
    seen = features(12, 8)
    first, second, empty = learned(seen[:5]), learned(seen[5:]), learned()
    first.merge(second)
    empty.merge(first)
    empty.merge(learned())
    assert same(empty.state(), learned(seen).state())


def test_merging_leaves_the_other_alone() -> None:
    seen, mine = features(6, 9), learned()
    other = learned(seen[:3])
    before = other.state()
    mine.merge(other)
    mine.learn(seen[3:])
    assert same(before, other.state())


def test_unlearned_is_as_if_never_learned() -> None:
    seen = features(12, 10)
    detector = learned(seen)
    patch_scores(detector, seen[:1])
    detector.unlearn(learned(seen[3:7]))
    rest = learned(seen[:3], seen[7:])
    assert same(detector.state(), rest.state())
    np.testing.assert_array_equal(patch_scores(detector, seen), patch_scores(rest, seen))


def test_with_all_unlearned_it_must_learn_anew() -> None:
    detector = learned(features(4, 11))
    detector.unlearn(learned(features(4, 11)))
    with pytest.raises(NotLearned):
        detector.score(features(1, 11))
    detector.learn(features(2, 12))
    assert same(detector.state(), learned(features(2, 12)).state())


def test_what_was_not_learned_cannot_be_unlearned() -> None:
    detector = learned(features(4, 13))
    before = detector.state()
    for other in (learned(features(5, 13)), learned(features(3, 14) * 9), learned(features(4, 15))):
        with pytest.raises(StateError, match="cannot take"):
            detector.unlearn(other)
    with pytest.raises(StateError, match="cannot take"):
        learned().unlearn(detector)
    assert same(before, detector.state())


def test_others_are_not_combined() -> None:
    detector = learned(features(2, 16))
    wide = learned(torch.zeros(1, CHANNELS + 1, 5, 5))
    for verb in (detector.merge, detector.unlearn):
        with pytest.raises(StateError, match="same parameters"):
            verb(learned(features(2, 16), shrinkage=0.5))
        with pytest.raises(StateError, match="9 channels do not fit 8"):
            verb(wide)


def test_another_number_of_channels_is_refused() -> None:
    detector = learned(features(2, 17))
    for verb in (detector.learn, detector.score):
        with pytest.raises(ConfigError, match="8 channels, got 7"):
            verb(torch.zeros(1, 7, 5, 5))


def test_states_of_many_gaussians_are_refused() -> None:
    state = learned(features(2, 18)).state()
    doubled = {k: torch.cat([t, t]) if k in ("total", "outer") else t for k, t in state.tensors.items()}
    with pytest.raises(StateError, match="2 groups"):
        learned().load_state(State(doubled, state.meta))


def test_bytes_are_few_and_fixed() -> None:
    few, many = learned(features(1, 19)), learned(features(50, 20))
    assert few.state().nbytes == many.state().nbytes
    assert sum(t.nbytes for k, t in many.state().tensors.items() if k != "rng") == 8 * (1 + 8 + 36)


def test_a_restored_one_scores_the_same() -> None:
    detector, asked = learned(features(4, 21), score_rule="residual"), features(2, 22)
    want = patch_scores(detector, asked)
    np.testing.assert_array_equal(patch_scores(restore(detector.state()), asked), want)  # type: ignore[arg-type]
