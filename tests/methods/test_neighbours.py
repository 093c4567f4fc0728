"""Nearest neighbours and greedy k-center against numpy and scikit-learn."""

import numpy as np
import pytest
import torch
from everline.methods import neighbours
from everline.methods.neighbours import greedy_kcenter, nearest
from sklearn.neighbors import NearestNeighbors
from torch import Tensor


def points(count: int, seed: int, dim: int = 7) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_that_of_sklearn() -> None:
    queries, bank = points(50, 1), points(80, 2)
    want = NearestNeighbors(n_neighbors=1).fit(bank.numpy()).kneighbors(queries.numpy())[0][:, 0]
    np.testing.assert_allclose(nearest(queries, bank), want, rtol=1e-4)


def test_a_bank_row_is_at_no_distance() -> None:
    bank = points(30, 3)
    assert float(nearest(bank[:5], bank).max()) < 1e-2


def test_an_empty_bank_is_infinitely_far() -> None:
    assert bool(torch.isinf(nearest(points(4, 4), points(0, 5))).all())


def test_kcenter_without_room_for_a_table_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(60, 9)
    want, radius = greedy_kcenter(x, 12)
    monkeypatch.setattr(neighbours, "_TABLE", 60**2 - 1)
    found, other = greedy_kcenter(x, 12)
    assert found.tolist() == want.tolist() and other == pytest.approx(radius, rel=1e-4)


def test_kcenter_takes_the_farthest_each_time() -> None:
    x = points(60, 6).numpy().astype(np.float64)
    chosen = [0]
    for _ in range(11):
        gaps = np.min([np.linalg.norm(x - x[c], axis=1) for c in chosen], 0)
        chosen.append(int(gaps.argmax()))
    radius = np.min([np.linalg.norm(x - x[c], axis=1) for c in chosen], 0).max()
    indices, found = greedy_kcenter(torch.from_numpy(x).float(), 12)
    assert indices.tolist() == sorted(chosen)
    np.testing.assert_allclose(found, radius, rtol=1e-4)


def test_kcenter_keeps_all_when_there_is_room() -> None:
    indices, radius = greedy_kcenter(points(5, 7), 9)
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert radius == 0.0


def test_kcenter_never_takes_a_point_twice() -> None:
    indices, radius = greedy_kcenter(torch.ones(10, 3), 6)
    assert len(set(indices.tolist())) == 6
    assert radius == 0.0
