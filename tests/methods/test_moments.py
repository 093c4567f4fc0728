"""Exact running moments against numpy in one pass."""

import numpy as np
import pytest
import torch
from everline.methods.moments import LIMIT, STEP, Moments, gridded, whitening
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor


def samples(count: int, seed: int, groups: int = 3, dim: int = 5) -> Tensor:
    own = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=own)
    return torch.randn(groups, count, dim, generator=own) @ mix + torch.randn(dim, generator=own)


def taken(*parts: Tensor) -> Moments:
    moments = Moments(parts[0].shape[0], parts[0].shape[2])
    for part in parts:
        moments.add(part)
    return moments


def equal(a: Moments, b: Moments) -> bool:
    return a.count == b.count and torch.equal(a.total, b.total) and torch.equal(a.outer, b.outer)


def test_covariance_is_that_of_numpy() -> None:
    x = samples(40, 1)
    moments = taken(x)
    for group, one in enumerate(gridded(x).numpy()):
        np.testing.assert_allclose(moments.mean()[group], one.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments.covariance(1)[group], np.cov(one.T), atol=1e-10)
        np.testing.assert_allclose(moments.variance(1)[group], one.var(0, ddof=1), atol=1e-10)


def test_covariance_is_that_of_sklearn() -> None:
    x = samples(30, 2, groups=1)
    reference = EmpiricalCovariance().fit(gridded(x)[0].numpy())
    np.testing.assert_allclose(taken(x).covariance()[0], reference.covariance_, atol=1e-10)


def test_chosen_groups_are_those_groups() -> None:
    moments = taken(samples(9, 3))
    assert torch.equal(moments.covariance(groups=slice(1, 3)), moments.covariance()[1:3])


def test_order_does_not_change_a_bit() -> None:
    x = samples(50, 4) * 7
    whole = taken(x)
    assert equal(whole, taken(x.flip(1)))
    assert equal(whole, taken(*x[:, torch.randperm(50, generator=torch.Generator().manual_seed(1))].split(7, 1)))


def test_merging_is_equal_to_one_pass() -> None:
    a, b = samples(20, 5), samples(33, 6)
    left, right = taken(a), taken(b)
    left.merge(right)
    assert equal(left, taken(a, b))


def test_subtracting_is_as_if_never_added() -> None:
    a, b = samples(20, 7), samples(11, 8)
    whole = taken(a, b)
    whole.subtract(taken(b))
    assert equal(whole, taken(a))


def test_subtracting_more_than_was_added_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot take 5 samples away from 4"):
        taken(samples(4, 1)).subtract(taken(samples(5, 1)))


def test_grid_rounds_to_steps_and_clips() -> None:
    x = torch.tensor([0.3, -1e6, 127.9999, 500.0])
    grid = gridded(x)
    assert grid.tolist() == [77 * STEP, -LIMIT, 128.0, LIMIT]
    assert float((gridded(samples(99, 9)) - samples(99, 9)).abs().max()) <= STEP / 2 + 1e-6


def test_exact_says_when_sums_may_round() -> None:
    moments = taken(torch.full((1, 4, 2), 128.0))
    assert moments.exact
    for _ in range(22):  # 4 * 2**22 samples at the limit
        moments.merge(moments)
    assert not moments.exact


def test_tensors_bring_it_back() -> None:
    moments = taken(samples(12, 10))
    assert equal(Moments.of(moments.tensors()), moments)


@pytest.mark.parametrize("key", ["total", "outer"])
def test_misshapen_tensors_are_refused(key: str) -> None:
    tensors = taken(samples(12, 11)).tensors()
    with pytest.raises(ValueError, match=r"expected outer|moments are"):
        Moments.of({**tensors, key: tensors[key].float()})
    with pytest.raises(ValueError, match="expected outer"):
        Moments.of({**tensors, key: tensors[key][:, :-1]})


def test_misshapen_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected samples \(3, N, 5\)"):
        Moments(3, 5).add(samples(4, 1, groups=2))


def test_whitened_samples_have_unit_covariance() -> None:
    x = samples(500, 12, groups=1, dim=6)
    moments = taken(x)
    white = (gridded(x)[0] - moments.mean()) @ whitening(moments.covariance()[0], 0.0).T
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)


def test_whitening_of_no_variance_is_identity() -> None:
    zero = torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(whitening(zero, 0.01), torch.eye(4, dtype=torch.float64))
