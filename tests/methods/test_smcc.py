"""SMCC and its mixture against numpy, scikit-learn and torch's own Adam."""

import numpy as np
import pytest
import torch
from everline.methods import mixture, smcc
from everline.methods.detector import State
from everline.methods.errors import ConfigError, StateError
from everline.methods.smcc import SMCC
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

C, SIDE = 6, 8


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int = 0) -> Tensor:
    """Features (count, C, 8, 8) of three kinds of patch with correlated channels."""
    mix = 0.3 * torch.randn(C, C, generator=own(99))
    kinds = 4 * torch.randn(3, C, generator=own(98))
    rng = own(seed)
    noise = torch.einsum("dc,bchw->bdhw", mix, torch.randn(count, C, SIDE, SIDE, generator=rng))
    return noise + kinds[torch.randint(3, (count, SIDE, SIDE), generator=rng)].permute(0, 3, 1, 2)


def fresh(**given: object) -> SMCC:
    return SMCC(**{"size": 64, "centers": 3, "bank": 4, "sampling": 0.25, "coreset": 60, **given})


def taught(count: int = 9, **given: object) -> SMCC:
    detector = fresh(**given)
    for one in images(40)[:count]:
        detector.learn(one[None])
    return detector


def same(a: State, b: State) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(t, b.tensors[k]) for k, t in a.tensors.items())


def cloud(count: int = 300, seed: int = 0) -> Tensor:
    """float64 (count, C): the patches of `images`."""
    return images(-(-count // SIDE**2), seed).flatten(2).mT.flatten(0, 1)[:count].double()


# -- the coreset


def test_importance_is_algorithm_2() -> None:
    x, b = cloud(50).numpy(), cloud(4, seed=1).numpy()
    d = ((x[:, None] - b) ** 2).sum(2)
    near, alpha = d.argmin(1), 16 * (np.log(4) + 2)
    want = np.empty(50)
    for i, j in enumerate(near):
        group = [i2 for i2 in range(50) if near[i2] == j]
        inside = sum(d[i2].min() for i2 in group)
        want[i] = alpha * d[i].min() + 2 * alpha / len(group) * inside + 2 / len(group) * d.min(1).sum()
    got = mixture.sensitivity(torch.from_numpy(x), torch.ones(50).double(), torch.from_numpy(b))
    assert np.allclose(got.numpy(), want)


def test_a_point_of_weight_three_is_three_points() -> None:
    x, b = cloud(30), cloud(4, seed=1)
    gamma = torch.ones(30).double()
    gamma[0] = 3
    whole = mixture.sensitivity(torch.cat([x[:1], x[:1], x]), torch.ones(32).double(), b)
    assert torch.allclose(mixture.sensitivity(x, gamma, b), whole[2:])


def test_rows_come_by_importance_and_weigh_its_inverse() -> None:
    x, gamma = cloud(40), torch.ones(40).double()
    rows, weights = mixture.coreset(x, gamma, 200_000, 3, own(5))
    s = mixture.sensitivity(x, gamma, mixture.seeds(x, gamma, 3, own(5)))  # the same draw of B comes first
    share = torch.bincount(rows, minlength=40) / 200_000
    assert torch.allclose(share.double(), s / s.sum(), atol=2e-3)
    product = weights * s[rows]
    assert torch.allclose(product, product[0].expand_as(product)) and weights.sum() == pytest.approx(40)


def test_the_likelihood_on_a_coreset_is_that_on_all() -> None:
    x, gamma = cloud(5000), torch.ones(5000).double()
    rows, weights = mixture.coreset(x, gamma, 1000, 3, own())
    model = mixture.begin(x, gamma, x[:3], False, 0.1)
    assert model.log_likelihood(x[rows], weights) == pytest.approx(model.log_likelihood(x, gamma), rel=0.02)


def test_kmeans_plus_plus_finds_far_groups_and_stands_equal_points() -> None:
    centers = torch.tensor([[0.0], [100.0], [200.0]]).double()
    x = (centers + torch.rand(3, 20, generator=own()).double()).reshape(-1, 1)
    found = mixture.seeds(x, torch.ones(60).double(), 3, own()).div(100).floor().flatten().sort().values
    assert found.tolist() == [0, 1, 2]
    rows, weights = mixture.coreset(torch.ones(9, 2).double(), torch.ones(9).double(), 5, 3, own())
    assert len(rows) == 5 and torch.isfinite(weights).all()


# -- the mixture


def scikit(model: mixture.Mixture, full: bool, steps: int) -> GaussianMixture:
    """A mixture of scikit-learn that starts where `model` stands and makes `steps` steps."""
    precisions = torch.linalg.inv(model.covariances) if full else 1 / model.covariances
    start = {"weights_init": model.weights, "means_init": model.means, "precisions_init": precisions}
    given = {name: t.numpy() for name, t in start.items()}
    kind = "full" if full else "diag"
    return GaussianMixture(len(model.means), covariance_type=kind, reg_covar=0.05, max_iter=steps, tol=0, **given)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # that many steps and no more
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_those_of_scikit_learn(full: bool, weighted: bool) -> None:
    x = cloud(200)
    gamma = torch.randint(1, 4, (200,), generator=own()).double() if weighted else torch.ones(200).double()
    start = mixture.begin(x, gamma, x[:3], full, 0.05)
    ours = mixture.improve(start, x, gamma, 4, 0.05, tol=-np.inf)
    theirs = scikit(start, full, 4).fit(np.repeat(x.numpy(), gamma.long().numpy(), axis=0))
    for mine, want in zip(
        (ours.weights, ours.means, ours.covariances),
        (theirs.weights_, theirs.means_, theirs.covariances_),
        strict=True,
    ):
        assert np.allclose(mine.numpy(), want, atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_likelihood_is_scikit_learns(full: bool) -> None:
    x, gamma = cloud(200), torch.ones(200).double()
    model = mixture.begin(x, gamma, x[:3], full, 0.05)
    peer = scikit(model, full, 1)
    peer.weights_, peer.means_, peer.covariances_ = (
        t.numpy() for t in (model.weights, model.means, model.covariances)
    )
    factor = np.linalg.cholesky(np.linalg.inv(peer.covariances_)) if full else 1 / np.sqrt(peer.covariances_)
    peer.precisions_cholesky_ = factor
    assert model.log_likelihood(x, gamma) == pytest.approx(peer.score(x.numpy()))


def test_likelihood_never_falls() -> None:
    x, gamma = cloud(200), torch.rand(200, generator=own()).double()
    model = mixture.begin(x, gamma, x[:5], False, 1e-6)
    known = []
    for _ in range(8):
        known.append(model.log_likelihood(x, gamma))
        model = mixture.improve(model, x, gamma, 1, 1e-6)
    assert (np.diff(known) > -1e-9).all() and known[-1] > known[0]


def test_a_component_without_points_stays_finite() -> None:
    x, gamma = cloud(20), torch.ones(20).double()
    model = mixture.improve(mixture.begin(x, gamma, x[[0, 0, 1]], True, 0.01), x, gamma, 5, 0.01)
    assert all(torch.isfinite(t).all() for t in (model.means, model.covariances, model.log_joint(x)))


def test_the_center_set_follows_the_stream() -> None:
    early, late = taught(3), taught(40, coreset=600)
    kinds = 4 * torch.randn(3, C, generator=own(98)).double()
    far = [float(torch.cdist(kinds, d._mixture.means).amin(1).mean()) for d in (early, late)]
    assert far[1] < far[0] and far[1] < 1


def test_the_mixture_is_fitted_anew_when_the_stream_has_doubled() -> None:
    means = [taught(n).state().tensors["mixture.means"] for n in (4, 7, 8)]
    assert torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])


def test_weights_of_the_coreset_count_the_drawn_patches() -> None:
    state = taught(30).state().tensors
    assert float(state["coreset.gamma"].sum()) == pytest.approx(30 * SIDE * SIDE / 4)


# -- losses, steps, selection


def numpy_losses(z: np.ndarray, centers: np.ndarray) -> tuple[float, float]:
    """Equations 4 and 5, patch by patch, divided by their number."""
    near = gap = 0.0
    for patch in z:
        d = sorted(np.linalg.norm(patch - c) for c in centers)
        near, gap = near + d[0] / len(z), gap + (d[0] - d[1]) / len(z)
    return near, gap


def test_losses_are_equations_4_and_5() -> None:
    z, centers = cloud(40), cloud(5, seed=2)
    near, gap, _ = smcc.losses(z, centers, 1.0)
    assert (near, gap) == pytest.approx(numpy_losses(z.numpy(), centers.numpy()))


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.5])
def test_slope_is_what_autograd_finds(apart: float) -> None:
    z, centers = cloud(40).requires_grad_(), cloud(5, seed=2)
    d = (z[:, None] - centers).norm(dim=2).sort(1).values
    (d[:, 0] + apart * (d[:, 0] - d[:, 1])).mean().backward()
    assert torch.allclose(smcc.losses(z.detach(), centers, apart)[2], z.grad)


def test_a_patch_on_a_center_has_a_finite_slope() -> None:
    centers = cloud(3)
    assert torch.isfinite(smcc.losses(centers, centers, 1.0)[2]).all()


def test_steps_are_those_of_torchs_adam() -> None:
    detector = fresh(refit=100.0, lr=1e-2, weight_decay=0.1)
    stream = images(6)
    detector.learn(stream)
    weight = torch.eye(C).requires_grad_()
    adam = torch.optim.Adam([weight], lr=1e-2, weight_decay=0.1)
    for one in stream:
        d = torch.cdist(one.flatten(1).T @ weight.T, detector._mixture.means.float()).sort(1).values
        adam.zero_grad()
        (2 * d[:, 0] - d[:, 1]).mean().backward()
        adam.step()
    assert torch.allclose(detector._weight, weight, atol=1e-5)


def test_training_lowers_the_loss_and_the_control_stays() -> None:
    trained, control = (fresh(lr=lr) for lr in (1e-2, 0.0))
    stream = images(60)
    for one in stream:
        last = [d.learn(one[None]).loss for d in (trained, control)]
    assert last[0] < 0.8 * last[1]
    assert torch.equal(control.state().tensors["projector"], torch.eye(C))
    assert not torch.allclose(trained.score(stream[:2]).image, control.score(stream[:2]).image)


@pytest.mark.parametrize("given", [{"lr": 0.0}, {"select": False}, {"apart": 0.0}])
def test_controls_know_the_same_patches(given: dict[str, object]) -> None:
    one, other = taught(12).state().tensors, taught(12, **given).state().tensors
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith(("bank", "coreset", "mixture")))
    assert not torch.equal(one["projector"], other["projector"]) or "select" in given


def test_separation_is_cohens_d_and_blind_to_scale() -> None:
    a, b = cloud(50)[:, 0], 1 + cloud(50, seed=1)[:, 0]
    want = (b.mean() - a.mean()) / np.sqrt((np.var(a.numpy(), ddof=1) + np.var(b.numpy(), ddof=1)) / 2)
    assert smcc.separation(a, b) == pytest.approx(float(want)) == pytest.approx(smcc.separation(7 * a, 7 * b))


def test_shuffled_patches_keep_each_channel_and_lose_their_company() -> None:
    x = cloud(400).float()
    mixed = fresh()._shuffled(x)
    assert torch.equal(mixed.sort(0).values, x.sort(0).values)
    assert (
        np.abs(np.corrcoef(mixed.numpy().T) - np.eye(C)).max()
        < 0.2
        < np.abs(np.corrcoef(x.numpy().T) - np.eye(C)).max()
    )


def test_a_ruined_projector_is_not_chosen() -> None:
    detector = taught(4, lr=1e-6)
    chosen = detector._chosen
    detector._weight.zero_()
    detector.learn(images(1, seed=3))
    assert torch.equal(detector._chosen, chosen) and not detector._weight.diagonal().sum() > 1


def test_without_selection_the_last_projector_scores() -> None:
    tensors = taught(7, lr=0.05).state().tensors
    assert not torch.equal(tensors["projector"], tensors["projector.chosen"])
    free, held = taught(7, lr=0.05, select=False), taught(7, lr=0.05)
    assert not torch.equal(free.score(images(1)).image, held.score(images(1)).image)


# -- memory and score


@pytest.mark.parametrize("k", [1, 4, 50])
def test_score_is_the_mean_distance_that_scikit_learn_finds(k: int) -> None:
    queries, known = cloud(30), cloud(20, seed=1)
    want = NearestNeighbors(n_neighbors=min(k, 20)).fit(known.numpy()).kneighbors(queries.numpy())[0].mean(1)
    assert np.allclose(smcc.mean_nearest(queries, known, k).numpy(), want)


def test_a_detectors_map_is_made_of_its_memory_and_chosen_projector() -> None:
    detector = taught(9, sigma=0.0, lr=1e-2)
    one, tensors = images(1, seed=5), {k: t.numpy() for k, t in detector.state().tensors.items()}
    turn = tensors["projector.chosen"].T
    known = tensors["bank"].reshape(-1, C) @ turn
    gaps = NearestNeighbors(n_neighbors=3).fit(known).kneighbors(one[0].flatten(1).T.numpy() @ turn)[0].mean(1)
    grid = torch.from_numpy(gaps).float().reshape(1, 1, SIDE, SIDE)
    want = torch.nn.functional.interpolate(grid, scale_factor=8, mode="bilinear")[0]
    assert torch.allclose(detector.score(one).maps, want, rtol=1e-3)


def test_drawn_patches_are_distinct_and_from_everywhere() -> None:
    detector = taught(1)
    rows = torch.stack([detector._draw(torch.arange(64.0)[:, None].expand(64, C))[:, 0] for _ in range(50)])
    assert all(len(set(one.tolist())) == 16 for one in rows) and len(rows.unique()) == 64


def test_the_memory_is_the_latest_images() -> None:
    stream, bank = images(40), taught(9).state().tensors["bank"]
    for slot, index in enumerate([8, 5, 6, 7]):
        patches = {tuple(p.tolist()) for p in stream[index].flatten(1).T}
        assert {tuple(p.tolist()) for p in bank[slot]} <= patches


# -- state, epochs


@pytest.mark.parametrize("given", [{}, {"covariance": "full"}, {"lr": 0.0}, {"select": False}])
def test_resumed_is_uninterrupted_bit_for_bit(given: dict[str, object]) -> None:
    stream = images(20)
    whole, half, rest = fresh(**given), fresh(**given), fresh(**given)
    whole.learn(stream)
    half.learn(stream[:7])
    half.score(stream[:2])
    rest.load_state(half.state())
    for one in stream[7:]:
        rest.learn(one[None])
    assert same(whole.state(), rest.state())


def test_bytes_of_state_never_change() -> None:
    assert len({taught(n).state().nbytes for n in (1, 5, 40)}) == 1


def test_numpys_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()
    taught(9)
    assert (np.random.get_state()[1] == before).all()


def test_learns_what_an_inference_mode_backbone_gave() -> None:
    with torch.inference_mode():
        features = images(6)
        inside = fresh()
        inside.learn(features)
    inside.learn(features)
    outside = fresh()
    outside.learn(features.clone())
    outside.learn(features)
    assert same(inside.state(), outside.state())


def test_epochs_start_anew_at_each_call_and_resume() -> None:
    detector, other = fresh(lr=1e-2, epochs=5), fresh(lr=1e-2, epochs=5)
    assert not detector.learns_per_image and fresh().learns_per_image
    assert detector.learn(images(30)).images == 30 == detector.images_learned
    other.load_state(detector.state())
    for one in (detector, other):
        one.learn(images(12, seed=8))
    assert same(other.state(), detector.state()) and detector.images_learned == 12


def test_epochs_lower_the_loss_and_a_rate_of_zero_leaves_the_projector() -> None:
    losses = [fresh(lr=1e-2, epochs=n).learn(images(30)).loss for n in (1, 8)]
    assert losses[1] < losses[0]
    untrained = fresh(lr=0, epochs=2)
    untrained.learn(images(30))
    assert torch.equal(untrained.state().tensors["projector.chosen"], torch.eye(C))
    assert untrained.score(images(2)).image.isfinite().all()


def test_a_single_image_can_be_fitted() -> None:
    detector = fresh(epochs=2)
    assert detector.learn(images(1)).kept == 4 * 16  # all of the memory that chose the epoch scores
    assert detector.score(images(1)).image.isfinite().all()


def test_wrong_use_is_refused() -> None:
    detector = taught(2)
    with pytest.raises(ConfigError, match="as learned"):
        detector.learn(images(1)[..., :4])
    with pytest.raises(ConfigError, match="epochs"):
        fresh(epochs=-1)
    state = detector.state()
    counts = torch.tensor([2, 10**6, 2, 4])
    with pytest.raises(StateError, match="rows"):
        fresh().load_state(State({**state.tensors, "counts": counts}, state.meta))
