"""K-NG: k-means, graph, thresholds, moments and distances against scikit-learn, numpy and plain loops."""

import math

import numpy as np
import pytest
import torch
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.kng import KNG, Gas, Rules, _by_owner, aged, thresholds
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.cluster import KMeans
from torch import Tensor

CHANNELS, SIDE = 6, 8


def patches(count: int, seed: int, dim: int = 4) -> Tensor:
    """Patches about 12 places."""
    places = torch.randn(12, dim, generator=torch.Generator().manual_seed(5)) * 4
    own = torch.Generator().manual_seed(seed)
    return places[torch.randint(12, (count,), generator=own)] + torch.randn(count, dim, generator=own)


def features(count: int, seed: int) -> Tensor:
    return patches(count * SIDE * SIDE, seed, CHANNELS).view(count, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2)


def founded(rules: Rules | None = None, nodes: int = 20, epochs: int = 4) -> Gas:
    return Gas.found(patches(300, 1), nodes, epochs, rules or Rules(), torch.Generator().manual_seed(0))


def kng(**params: int | float | str) -> KNG:
    return KNG(**{"size": 32, "sigma": 0.0, "shots": 3, "nodes": 12, **params})  # type: ignore[arg-type]


def near_enough(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """bool (B, h, w): patches within the threshold of their nearest node, from the numbers of a state."""
    rows = images[:, state["reduce"]].flatten(2).mT.flatten(0, 1).numpy()
    away = cdist(rows, state["centres"].numpy())
    inside = away.min(1) <= state["thresholds"].numpy()[away.argmin(1)]
    return torch.from_numpy(inside).view(len(images), SIDE, SIDE)


def scatter_of(gas: Gas, node: int) -> np.ndarray:
    """(D, D) from the packed triangle."""
    dim = gas.centres.shape[1]
    full = np.zeros((dim, dim))
    full[np.triu_indices(dim)] = gas.scatter[node]
    return full + np.triu(full, 1).T


def plain_ages(ages: np.ndarray, firsts: list[int], seconds: list[int], rules: Rules) -> np.ndarray:
    """Algorithm 2's lines 7 to 13, patch by patch."""
    edges = {(i, j): int(ages[i, j]) for i, j in zip(*np.nonzero(np.triu(ages + 1, 1)), strict=True)}
    for first, second in zip(firsts, seconds, strict=True):
        hit = (min(first, second), max(first, second))
        for edge in edges:
            edges[edge] += rules.ageing == "graph" or first in edge
        edges[hit] = 0
        edges = {edge: age for edge, age in edges.items() if age <= rules.age_max}
    out = np.full_like(ages, -1)
    for (i, j), age in edges.items():
        out[i, j] = out[j, i] = age
    return out


def plain_threshold(centres: np.ndarray, ages: np.ndarray, node: int, kind: str) -> float:
    """Equations 3 and 4 for one node."""
    gaps = [float(np.linalg.norm(centres[node] - other)) for other in centres]
    linked = [gap for gap, age in zip(gaps, ages[node], strict=True) if age >= 0]
    if not linked:
        return min(gap for other, gap in enumerate(gaps) if other != node)
    return {"mean": float(np.mean(linked)), "min": min(linked), "max": max(linked)}[kind]


@pytest.mark.parametrize("ageing", ["winner", "graph"])
@pytest.mark.parametrize("age_max", [1, 4, 25, 1000])
def test_ages_are_those_of_patch_by_patch(ageing: str, age_max: int) -> None:
    rules, rng = Rules(ageing=ageing, age_max=age_max), np.random.default_rng(age_max)
    ages = np.full((6, 6), -1, np.int32)
    for count in (1, 7, 30, 3, 80):
        drawn = [rng.permutation(6)[:2].tolist() for _ in range(count)]
        firsts, seconds = [a for a, _ in drawn], [b for _, b in drawn]
        got = aged(torch.from_numpy(ages), torch.tensor(firsts), torch.tensor(seconds), rules)
        ages = plain_ages(ages, firsts, seconds, rules)
        assert got.dtype == torch.int32 and np.array_equal(got.numpy(), ages)


@pytest.mark.parametrize("kind", ["mean", "min", "max"])
def test_thresholds_are_those_of_a_loop(kind: str) -> None:
    rng = np.random.default_rng(3)
    centres, ages = rng.normal(size=(9, 5)), np.full((9, 9), -1, np.int32)
    for i, j in [(0, 1), (0, 2), (3, 4), (2, 7), (0, 7)]:  # 5, 6 and 8 have no neighbour
        ages[i, j] = ages[j, i] = rng.integers(5)
    got = thresholds(torch.from_numpy(centres), torch.from_numpy(ages), kind)
    np.testing.assert_allclose(got, [plain_threshold(centres, ages, node, kind) for node in range(9)])


def test_founding_is_k_means_of_scikit_learn() -> None:
    data, gas = patches(300, 1), founded(epochs=4)
    drawn = data[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:20]]
    reference = KMeans(20, init=drawn.numpy(), n_init=1, max_iter=4, tol=0, algorithm="lloyd").fit(data.numpy())
    # where four passes did not suffice to converge, the labels are of one pass more: compare centres
    np.testing.assert_allclose(gas.centres, reference.cluster_centers_, atol=1e-4)


@pytest.mark.parametrize(("threshold", "ageing"), [("mean", "winner"), ("max", "graph"), ("min", "winner")])
def test_an_update_is_algorithm_2_patch_by_patch(threshold: str, ageing: str) -> None:
    rules = Rules(threshold, ageing, 10)
    gas = founded(rules)
    for seed in (2, 3):
        centres, ages, limits = gas.centres.numpy().copy(), gas.ages.numpy().copy(), gas.thresholds.clone()
        members = {node: int(gas.counts[node]) for node in range(20)}
        totals = {node: centres[node] * members[node] for node in range(20)}
        firsts, seconds, admitted = [], [], []
        data = patches(150, seed) * 1.1
        for one in data.double().numpy():
            gaps = np.linalg.norm(centres - one, axis=1)
            first, second = gaps.argsort()[:2].tolist()
            admitted.append(bool(gaps[first] <= limits[first]))
            if admitted[-1]:
                firsts, seconds = [*firsts, first], [*seconds, second]
                totals[first], members[first] = totals[first] + one, members[first] + 1
        assert gas.update(data).tolist() == admitted and 0 < sum(admitted) < 150
        assert np.array_equal(gas.ages.numpy(), plain_ages(ages, firsts, seconds, rules))
        assert gas.counts.tolist() == list(members.values())
        means = np.array([totals[node] / max(members[node], 1) for node in range(20)])
        np.testing.assert_allclose(gas.centres[gas.counts > 0], means[gas.counts > 0], atol=1e-6)
        expected = [plain_threshold(gas.centres.numpy(), gas.ages.numpy(), node, threshold) for node in range(20)]
        np.testing.assert_allclose(gas.thresholds, expected, atol=1e-6)


def test_pooled_moments_are_those_of_one_pass() -> None:
    gas = Gas(patches(10, 7), Rules(threshold="none"))  # nodes without members, as after an empty cluster
    owned: list[list[np.ndarray]] = [[] for _ in range(10)]
    for seed, count in enumerate((1, 90, 7, 200)):
        data = patches(count, seed + 50)
        for one, node in zip(data, gas.nearest_two(data)[0].tolist(), strict=True):
            owned[node].append(one.double().numpy())
        gas.update(data)
    assert gas.counts.tolist() == [len(rows) for rows in owned] and sum(map(len, owned)) == 298
    for node, rows in enumerate(owned):
        if len(rows) > 1:
            np.testing.assert_allclose(gas.centres[node], np.mean(rows, 0), rtol=1e-9)
            np.testing.assert_allclose(scatter_of(gas, node), np.cov(rows, rowvar=False) * (len(rows) - 1), atol=1e-9)


@pytest.mark.parametrize("prior", [0.0, 30.0])
def test_distances_are_those_of_scipy(prior: float) -> None:
    data, gas = patches(300, 1), founded(epochs=40)  # converged: centres are the means of what is nearest to them
    asked = patches(40, 9)
    owner = cdist(data, gas.centres).argmin(1)
    scatters = [(data[owner == n] - gas.centres[n]).numpy() for n in range(20)]
    pooled = sum(d.T @ d for d in scatters) / sum(max(len(d) - 1, 0) for d in scatters)
    for one, got in zip(asked, gas.distances(asked, prior, 0.1), strict=True):
        node = int(cdist(one[None], gas.centres).argmin())
        freedom = len(scatters[node]) - 1
        covariance = (scatters[node].T @ scatters[node] + prior * pooled) / max(freedom + prior, 1)
        expected = mahalanobis(one, gas.centres[node], np.linalg.inv(covariance + 0.1 * np.eye(4)))
        assert float(got) == pytest.approx(expected, rel=1e-4)


def test_the_prior_keeps_a_node_of_one_sample_usable() -> None:
    gas = founded()
    lonely = int(gas.counts.argmin())
    gas.counts[lonely], gas.scatter[lonely] = 1, 0
    with_prior, without = gas.covariances(100, 1e-6)[lonely], gas.covariances(0, 1e-6)[lonely]
    assert torch.allclose(without, 1e-6 * torch.eye(4, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(with_prior).min()) > 0.01
    assert bool(torch.isfinite(gas.distances(patches(50, 3), 0, 1e-6)).all())


def test_min_admits_less_than_mean_than_max_than_none() -> None:
    shares = []
    for kind in ("min", "mean", "max", "none"):
        gas = founded(Rules(threshold=kind))
        shares.append(float(gas.update(patches(500, 8)).float().mean()))
    assert shares == sorted(shares) and shares[0] < shares[2] and shares[3] == 1.0


@pytest.mark.parametrize("count", [1, 2, 63, 500])
def test_every_row_is_in_one_group_of_its_owner(count: int) -> None:
    owner = torch.randint(7, (count,), generator=torch.Generator().manual_seed(count)) ** 2
    seen = torch.zeros(count, dtype=torch.int64)
    for nodes, rows, valid in _by_owner(owner, 40):
        assert bool((owner[rows] == nodes[:, None])[valid].all())
        assert bool((valid.sum(1) * 2 > valid.shape[1]).all())
        seen[rows[valid]] += 1
    assert bool((seen == 1).all())


def test_equal_patches_found_and_are_admitted() -> None:
    detector = kng()
    detector.learn(torch.ones(5, CHANNELS, SIDE, SIDE))
    assert detector.learn(torch.ones(1, CHANNELS, SIDE, SIDE)).detail["admitted"] == 1
    assert bool(torch.isfinite(detector.score(features(2, 1)).image).all())


def test_shots_by_one_call_or_by_many_are_the_same() -> None:
    data = features(8, 1)
    once, single, uneven = kng(), kng(), kng()
    once.learn(data)
    for one in data:
        single.learn(one[None])
        single.score(data)
    uneven.learn(data[:2])
    uneven.learn(data[2:7])
    uneven.learn(data[7:])
    assert same(once.state(), single.state()) and same(once.state(), uneven.state())


def test_before_the_last_shot_a_provisional_gas_answers() -> None:
    few, all_there = kng(shots=5), kng(shots=2)
    few.learn(features(2, 1))
    all_there.learn(features(2, 1))
    assert torch.equal(few.score(features(3, 2)).maps, all_there.score(features(3, 2)).maps)
    assert few.state().tensors["first"].shape == (2, SIDE * SIDE, CHANNELS)
    few.learn(features(3, 3))
    assert "first" not in few.state().tensors


def test_the_rules_hold_still_for_one_batch() -> None:
    data = features(6, 2)
    each, both = kng(), kng(batch=2)
    for detector in (each, both):
        detector.learn(features(3, 1))
    state = both.state().tensors
    assert torch.equal(both.learn(data[:2]).admitted, near_enough(state, data[:2]))
    each.learn(data[:2])
    assert not torch.equal(each.state().tensors["centres"], both.state().tensors["centres"])


def test_learn_reports_the_patches_near_enough_to_what_is_known() -> None:
    detector, image = kng(threshold="min"), features(1, 4)
    first = detector.learn(features(2, 1)).admitted
    assert first is not None and first.shape == (2, SIDE, SIDE) and bool(first.all())  # nothing to judge them by yet
    detector.learn(features(1, 1))
    wanted = near_enough(detector.state().tensors, image)
    learned = detector.learn(image)
    assert torch.equal(learned.admitted, wanted) and learned.detail["admitted"] == float(wanted.float().mean())
    assert 0 < learned.detail["admitted"] < 1
    assert learned.kept == 12 and learned.detail["edges"] == int((detector.state().tensors["ages"] >= 0).sum()) // 2


def test_far_patches_stay_out_and_none_lets_them_in() -> None:
    odd = features(1, 4)
    odd[:, :, 2:4, 2:4] += 60
    for kind, enters in (("max", False), ("mean", False), ("none", True)):
        detector = kng(threshold=kind)
        detector.learn(features(3, 1))
        scores = detector.score(odd).image
        admitted = detector.learn(odd).admitted
        assert admitted is not None and bool(admitted[0, 2:4, 2:4].any()) is enters
        assert bool(detector.score(odd).image < 0.9 * scores) is enters


@pytest.mark.parametrize("reduction", ["channels", "projection"])
def test_features_are_reduced_and_the_choice_is_of_the_seed(reduction: str) -> None:
    states = []
    for seed in (0, 0, 1):
        detector = kng(reduction=reduction, dimensions=3, seed=seed)
        detector.learn(features(3, 1))
        states.append(detector.state().tensors)
    assert all(tensors["centres"].shape == (12, 3) for tensors in states)
    assert torch.equal(states[0]["centres"], states[1]["centres"])
    assert not torch.equal(states[0]["reduce"], states[2]["reduce"])


def test_there_are_never_more_nodes_than_a_quarter_of_the_patches() -> None:
    detector = kng(nodes=4000)
    assert detector.learn(features(3, 1)).kept == 3 * SIDE * SIDE // 4


@pytest.mark.parametrize("batch", [1, 4])
def test_resumes_bit_for_bit_at_every_image(batch: int) -> None:
    data, whole, parts = features(9, 6), kng(batch=batch), kng(batch=batch)
    for one in data:
        whole.learn(one[None])
        parts.learn(one[None])
        parts.score(data[:2])
        again = kng(batch=batch)
        again.load_state(parts.state())
        assert torch.equal(again.score(data).maps, whole.score(data).maps)
        parts = again
    assert same(whole.state(), parts.state())


@pytest.mark.parametrize(
    ("images", "name", "value"),
    [
        (2, "first", torch.zeros(3, SIDE * SIDE, CHANNELS)),
        (2, "first", torch.zeros(1, 5, CHANNELS)),
        (2, "shape", torch.tensor([CHANNELS, 10**9, 0])),
        (2, "shape", torch.tensor([10**12, SIDE, SIDE])),
        (4, "reduce", torch.arange(CHANNELS) + 1),
        (4, "centres", torch.zeros(12, 3, dtype=torch.float64)),
        (4, "counts", torch.zeros(12)),
        (4, "ages", torch.zeros(11, 12, dtype=torch.int32)),
    ],
)
def test_misshapen_states_are_refused(images: int, name: str, value: Tensor) -> None:
    detector = kng()
    detector.learn(features(images, 1))
    good = detector.state()
    with pytest.raises(StateError, match="kng"):
        kng().load_state(State({**good.tensors, name: value}, good.meta))


def test_features_of_another_shape_are_refused_by_their_shape() -> None:
    detector = kng()
    detector.learn(features(1, 1))
    with pytest.raises(ConfigError, match=r"\(6, 8, 8\)"):
        detector.learn(features(1, 1)[:, :4])
    with pytest.raises(ConfigError, match="at least 2 patches"):
        kng().learn(torch.zeros(1, CHANNELS, 1, 1))


def test_it_must_be_shown_normals_first() -> None:
    assert KNG.traits.needs_normals_first and KNG.traits.bounded_memory
    assert math.isinf(float(Gas(patches(4, 1), Rules()).thresholds[0]))  # until edges are known nothing is refused
