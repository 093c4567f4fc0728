"""LeMO against references that share no code with it: numpy for the formulas, torch's Adam for the steps."""

import numpy as np
import pytest
import torch
from everline.methods import lemo
from everline.methods.detector import State
from everline.methods.errors import ConfigError
from everline.methods.lemo import LeMO
from sklearn.cluster import KMeans
from torch import Tensor

C, SIDE = 6, 8


def images(count: int, seed: int = 0) -> Tensor:
    """Features (count, C, 8, 8) with correlated channels, away from zero."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(C, C, generator=torch.Generator().manual_seed(99))
    return 2 + torch.einsum("dc,bchw->bdhw", mix, torch.randn(count, C, SIDE, SIDE, generator=rng))


def fresh(**given: object) -> LeMO:
    return LeMO(**{"size": 64, "prototypes": 4, **given})


def taught(count: int = 5, **given: object) -> LeMO:
    detector = fresh(**given)
    detector.learn(images(count))
    return detector


def same(a: State, b: State) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(t, b.tensors[k]) for k, t in a.tensors.items())


def numpy_anonce(d: np.ndarray, positives: int, r: float, tau: float) -> float:
    """Equation 2 as printed, patch by patch."""
    total = 0.0
    for row in np.sort(d, axis=1):
        terms = np.exp(-np.maximum(row - r, 0) / tau)
        total -= np.log(terms[:positives].sum() / terms.sum())
    return total / len(d)


@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("margin", [1e-5, 0.7])
def test_anonce_is_equation_2(positives: int, margin: float) -> None:
    d = np.random.default_rng(0).uniform(0.1, 3, (50, 5))
    got = float(lemo.anonce(torch.from_numpy(d), positives, margin, 0.4))
    assert got == pytest.approx(numpy_anonce(d, positives, margin, 0.4), rel=1e-10)


def test_anonce_stands_distances_whose_exponentials_vanish() -> None:
    d = torch.tensor([[3e4, 4e4, 5e4], [1e4, 1e4, 9e4]])
    assert lemo.anonce(d, 1, 0.0, 0.1) == pytest.approx(np.log(2) / 2)


def test_scores_are_equations_3_and_4() -> None:
    d = np.random.default_rng(1).uniform(0, 3, (7, 5))
    nearest = d.min(1)
    weight = np.exp(-nearest) / np.exp(-d).sum(1)
    assert np.allclose(lemo.anomaly(torch.from_numpy(d), "nearest").numpy(), nearest)
    assert np.allclose(lemo.anomaly(torch.from_numpy(d), "softmin").numpy(), weight * nearest)


def test_a_detectors_map_is_the_distance_that_numpy_finds() -> None:
    detector = taught(whiten=False, sigma=0.0, size=SIDE * 8)
    one = images(1, seed=5)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    rows = np.concatenate([one[0].numpy(), y[None], x[None], np.ones_like(x)[None]]).reshape(C + 3, -1).T
    tensors = {k: t.numpy() for k, t in detector.state().tensors.items()}
    z = rows @ tensors["projector"].T
    nearest = np.linalg.norm(z[:, None] - tensors["prototypes"], axis=2).min(1).reshape(SIDE, SIDE)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(nearest)[None, None].float(), scale_factor=8, mode="bilinear"
    )
    assert torch.allclose(detector.score(one).maps, want[0], rtol=1e-4)


def test_coordinates_run_from_corner_to_corner_on_any_grid() -> None:
    extra = fresh(whiten=False)._inputs(images(1)[..., :5])[0, :, C:].reshape(SIDE, 5, 3)
    assert extra[0, 0].tolist() == [-1, -1, 1] and extra[-1, -1].tolist() == [1, 1, 1]
    assert extra[0, -1].tolist() == [-1, 1, 1]


@pytest.mark.parametrize(("rows", "cols"), [(4, 9), (9, 4), (5, 5)])
def test_orthogonal_noise_is_orthonormal(rows: int, cols: int) -> None:
    a = lemo.orthogonal(rows, cols, torch.Generator().manual_seed(0))
    gram = a @ a.T if rows <= cols else a.T @ a
    assert a.shape == (rows, cols) and torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_prototypes_start_orthonormal_and_untrained_ones_stay() -> None:
    p = taught(lr=0.0, update="L").state().tensors["prototypes"]
    assert torch.allclose(p @ p.T, torch.eye(4), atol=1e-5)


def test_noise_prototypes_are_not_decoupled() -> None:
    p = taught(lr=0.0, init="noise").state().tensors["prototypes"]
    assert p.min() >= 0 and (p @ p.T).min() > 0.3


def test_image_prototypes_are_as_tight_as_scikit_learns() -> None:
    z = torch.cat([c + 0.1 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) for c in (0.0, 5.0, 9.0)])
    ours = min(
        float(torch.cdist(z, lemo.kmeans(z, 3, torch.Generator().manual_seed(s))).amin(1).square().sum())
        for s in range(5)
    )
    assert ours == pytest.approx(KMeans(3, n_init=5, random_state=0).fit(z.numpy()).inertia_, rel=1e-3)


def test_steps_are_those_of_torchs_adam() -> None:
    given = {"whiten": False, "lr": 1e-2, "attraction": 0.5, "weight_decay": 0.1, "positives": 2, "margin": 4.0}
    detector = taught(1, **given, init="noise")
    start = {k: t.clone().requires_grad_() for k, t in detector._learned.items()}
    stream = images(6)
    adam = torch.optim.Adam(start.values(), lr=1e-2, weight_decay=0.1)
    adam.zero_grad()
    detector.load_state(_without_steps(detector.state()))
    detector.learn(stream)
    for one in stream:
        d = torch.cdist(detector._inputs(one[None])[0] @ start["projector"].T, start["prototypes"])
        loss = lemo.anonce(d, 2, 4.0, 0.1) + 0.5 * (d.amin(1) - 4.0).clamp(min=0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, want in start.items():
        assert torch.allclose(detector._learned[name], want, atol=1e-5), name


def _without_steps(state: State) -> State:
    """The state with its optimiser as new."""
    zero = {k: torch.zeros_like(t) for k, t in state.tensors.items() if k.startswith(("adam", "steps"))}
    return State({**state.tensors, **zero}, state.meta)


def test_learning_lowers_the_loss() -> None:
    detector = fresh(whiten=False, lr=1e-2, attraction=1.0)
    losses = [detector.learn(one[None]).loss for one in images(40)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize(("update", "moves"), [("none", False), ("L", True), ("F", True)])
def test_update_says_whether_prototypes_move(update: str, moves: bool) -> None:
    detector = taught(1, update=update, init="image")
    before = detector.state().tensors
    detector.learn(images(3, seed=1))
    after = detector.state().tensors
    assert torch.equal(before["prototypes"], after["prototypes"]) is not moves
    assert not torch.equal(before["projector"], after["projector"])


def test_feature_enhanced_groups_are_balanced() -> None:
    rng = torch.Generator().manual_seed(3)
    z = torch.randn(200, 5, generator=rng)
    z[:3] += 50  # three far patches must not hold a group of their own
    labels = torch.zeros(200, dtype=torch.int64)
    labels[:3] = 1
    sizes = torch.bincount(lemo.balanced(z, labels, 8, 0.5, rng), minlength=8)
    assert sizes.sum() == 200 and sizes.min() >= 12


def test_groups_that_are_large_enough_are_left_alone() -> None:
    labels = torch.arange(40) % 4
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lemo.balanced(z, labels, 4, 0.5, torch.Generator()), labels)


def test_centroids_are_group_means_and_empty_groups_stay() -> None:
    z = torch.tensor([[0.0, 2.0], [4.0, 4.0], [1.0, 1.0]])
    got = lemo.centroids(z, torch.tensor([0, 0, 2]), torch.full((3, 2), 9.0))
    assert torch.equal(got, torch.tensor([[2.0, 3.0], [9.0, 9.0], [1.0, 1.0]]))


def test_feature_enhanced_prototypes_are_centroids_of_the_last_image() -> None:
    detector = taught(4, update="F", min_share=0.0, init="image")
    z = detector._inputs(images(4)[-1:])[0] @ detector._learned["projector"].T
    assert detector._learned["prototypes"].mean(0).sub(z.mean(0)).norm() < z.std()


@pytest.mark.parametrize("update", ["none", "L", "F"])
@pytest.mark.parametrize("whiten", [False, True])
def test_resumed_is_uninterrupted_bit_for_bit(update: str, whiten: bool) -> None:
    given = {"update": update, "whiten": whiten, "init": "image"}
    stream = images(9)
    whole, half = fresh(**given), fresh(**given)
    whole.learn(stream)
    half.learn(stream[:4])
    half.score(stream[:2])
    rest = fresh(**given)
    rest.load_state(half.state())
    for one in stream[4:]:
        rest.learn(one[None])
    assert same(whole.state(), rest.state())


def test_learns_what_an_inference_mode_backbone_gave() -> None:
    with torch.inference_mode():
        features = images(2)
        inside = fresh()
        inside.learn(features)
    outside = taught(2)
    outside.learn(features)
    inside.learn(features)
    assert same(inside.state(), outside.state())


def test_whitening_makes_channels_unit_and_uncorrelated() -> None:
    detector = taught(30, refresh=1.0, shrinkage=1e-6)
    x = detector._inputs(images(30)).flatten(0, 1)[:, :C]
    assert np.allclose(np.cov(x.numpy().T), np.eye(C), atol=0.02)


def test_whitening_is_made_anew_when_the_stream_has_grown() -> None:
    early, late = taught(16, refresh=2.0), taught(30, refresh=2.0)
    later = taught(33, refresh=2.0)
    matrices = [d.state().tensors["whitening.matrix"] for d in (early, late, later)]
    assert torch.equal(matrices[0], matrices[1]) and not torch.equal(matrices[1], matrices[2])


def test_without_whitening_no_moments_are_kept() -> None:
    assert taught(whiten=False).state().nbytes < taught(whiten=True).state().nbytes


def test_bad_combinations_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="positives must be below prototypes"):
        fresh(positives=4)
    with pytest.raises(ConfigError, match="patches"):
        taught(1, prototypes=100, init="image")


def test_more_prototypes_than_dimensions_start_as_several_orthonormal_sets() -> None:
    first = taught(1, lr=0.0, update="none", prototypes=20).state().tensors["prototypes"]
    dim = first.shape[1]
    assert len(first) == 20 > 2 * dim
    for start in range(0, 20, dim):
        rows = first[start : start + dim]
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def test_other_channels_than_learned_are_refused() -> None:
    detector = taught()
    with pytest.raises(ConfigError, match="channels"):
        detector.score(images(1)[:, :4])
