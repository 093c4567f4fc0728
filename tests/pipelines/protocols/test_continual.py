"""The protocol continual: who learns what when, the matrix, its references, and going on after a stop."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from everline.methods import metrics
from everline.methods.detector import Detector, Learned, Scores
from everline.methods.errors import ConfigError, DataError, SecondWriter
from everline.methods.padim import PaDiM
from everline.methods.registry import METHODS, build
from everline.methods.smcc import SMCC
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.data.view import View
from everline.pipelines.protocols import journal as module
from everline.pipelines.protocols.continual import Continual
from everline.pipelines.protocols.journal import Journal
from everline.pipelines.protocols.judging import Features, Judged
from everline.pipelines.records.continued import FIGURES, Continued
from everline.pipelines.records.results import METRICS
from everline.platform.selection import POLICIES
from torch import Tensor

SMALL: dict[str, Any] = {"size": 64, "weights": "none", "sigma": 1.0}


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> list[Task]:
    """Three products with 8, 7 and 6 images to learn, 3 good and 4 defective ones to judge."""
    root = tmp_path_factory.mktemp("data")
    return [read_folder(write_disc(root / f"product{n}", 8 - n, 3, 4, masks=True, product=n)) for n in range(3)]


class Watched(PaDiM):
    """Notes which images it learns, call by call, of which task it is told, and as which task it judges."""

    learned: ClassVar[list[tuple[str, list[bytes]]]] = []
    judged: ClassVar[list[str | None]] = []

    def learn(self, features: Tensor) -> Learned:
        self.learned.append((self.task, [one.numpy().tobytes() for one in features]))
        return super().learn(features)

    def score(self, features: Tensor, task: str | None = None) -> Scores:
        self.judged.append(task)
        assert len(features) == 1
        return super().score(features, task)


@pytest.fixture
def watched() -> type[Watched]:
    Watched.learned.clear()
    Watched.judged.clear()
    return Watched


def make(cls: type[Detector] = PaDiM) -> Detector:
    return cls(**SMALL)


def run(
    tasks: Sequence[Task], cls: type[Detector] = PaDiM, journal: Journal | None = None, **options: Any
) -> Continued:
    return Continual(**options).run_all(partial(make, cls), tasks, journal=journal)[1]


def features_of(tasks: Sequence[Task]) -> dict[bytes, tuple[int, Path]]:
    """What every training image is embedded as -> the task's place and the file."""
    eyes, view = make(), View(64)
    return {
        eyes.embed(view.picture(path)[None])[0].numpy().tobytes(): (place, path)
        for place, task in enumerate(tasks)
        for path in task.train
    }


def test_every_cell_is_what_the_detector_says_then(products: list[Task]) -> None:
    """Against a loop of its own: learn the tasks one after the other, judge each after each."""
    found = run(products).matrix
    learner, view = make(), View(64)
    for row, task in enumerate(products):
        for path in task.train:
            learner.learn(learner.embed(view.picture(path)[None]))
        for column, judged in enumerate(products):
            scores = [learner.score(learner.embed(view.picture(one.path)[None])) for one in judged.test]
            labels = np.array([one.defect for one in judged.test])
            masks = np.array(
                [view.mask(one.masks[0]) if one.masks else np.zeros((64, 64), bool) for one in judged.test]
            )
            image, maps = (torch.cat([getattr(one, what) for one in scores]).numpy() for what in ("image", "maps"))
            expected = metrics.evaluate(image, labels, maps, masks)
            cells = {name: found[name][row][column] for name in FIGURES}
            assert cells == pytest.approx({name: expected[name] for name in FIGURES}, abs=1e-6)


def test_naive_learns_each_image_once_task_by_task(products: list[Task], watched: type[Watched]) -> None:
    run(products, watched)
    known = features_of(products)
    learned = [(task, *[known[one] for one in calls]) for task, calls in watched.learned]
    assert [len(row) for row in learned] == [2] * 21
    assert [task for task, _ in learned] == ["product0"] * 8 + ["product1"] * 7 + ["product2"] * 6
    assert all(task == f"product{place}" for task, (place, _) in learned)
    assert len({path for _, (_, path) in learned}) == 21


def test_replay_learns_an_old_image_beside_every_new_one(products: list[Task], watched: type[Watched]) -> None:
    run(products, watched, strategy="replay", memory=5)
    known = features_of(products)
    calls = [[known[one] for one in calls] for _, calls in watched.learned]
    assert [len(call) for call in calls] == [1] * 8 + [2] * 13
    assert all(call[1][0] < call[0][0] for call in calls[8:])  # what is replayed is of an earlier task
    assert len({call[1][1] for call in calls[8:15]}) <= 5  # no more than the memory holds
    assert {path for call in calls for _, path in call[:1]} == {path for task in products for path in task.train}


def test_without_borders_nobody_is_told_and_the_memory_fills_along_the_way(
    products: list[Task], watched: type[Watched]
) -> None:
    run(products, watched, strategy="replay", memory=5, borders="hidden")
    assert {task for task, _ in watched.learned} == {""}
    assert [len(calls) for _, calls in watched.learned] == [1] + [2] * 20


def test_epochs_and_batches_are_as_asked(products: list[Task], watched: type[Watched]) -> None:
    run(products[:1], watched, epochs=3, batch=4)
    assert [len(calls) for _, calls in watched.learned] == [4] * 6
    known = features_of(products)
    epochs = [[known[one][1] for _, calls in watched.learned[n : n + 2] for one in calls] for n in (0, 2, 4)]
    assert all(set(epoch) == set(products[0].train) for epoch in epochs) and epochs[0] != epochs[1]


def test_shots_are_the_most_that_each_task_shows(products: list[Task], watched: type[Watched]) -> None:
    tasks = Continual(shots=7).run_all(partial(make, watched), products)[0]
    assert [task.n_train for task in tasks] == [7, 7, 6] and len(watched.learned) == 20
    known = features_of(products)
    assert {known[one][1] for _, calls in watched.learned for one in calls} > set(products[2].train)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, {None}),
        ({"scenario": "task"}, {None, "product0", "product1", "product2"}),
        ({"strategy": "single"}, {"product0", "product1", "product2"}),
    ],
)
def test_the_scenario_says_whether_a_judge_knows_the_task(
    products: list[Task], watched: type[Watched], options: dict[str, Any], named: set[str | None]
) -> None:
    found = run(products, watched, **options)
    assert set(watched.judged) == named
    assert found.scenario == ("domain" if not options else "task")


def test_a_model_for_each_task_is_the_one_of_a_sequence_of_that_task_alone(products: list[Task]) -> None:
    found = run(products, strategy="single")
    for column, task in enumerate(products):
        alone = run([task])
        assert [row[column] for row in found.matrix["image_auroc"]][column:] == pytest.approx(
            [alone.matrix["image_auroc"][0][0]] * (3 - column)
        )
        assert np.isnan([row[column] for row in found.matrix["image_auroc"]][:column]).all()


def test_joint_models_of_exact_moments_are_those_of_the_sequence(products: list[Task]) -> None:
    """PaDiM's moments do not depend on the order, so naive loses nothing against all data at once."""
    naive, joint = run(products), run(products, strategy="multitask")
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        lower = np.tri(3, dtype=bool)
        assert np.array(naive.matrix[name])[lower] == pytest.approx(np.array(joint.matrix[name])[lower])
        assert np.isnan(np.array(joint.matrix[name])[~lower]).all()
    beside = naive.beside(run(products, strategy="single"), joint)
    assert beside.measures["pixel_auroc"]["intransigence"] == pytest.approx(0)
    last = run(products, strategy="multitask", joint="last").matrix["aupro"]
    assert np.isnan(last[:2]).all() and last[2] == joint.matrix["aupro"][2]


def test_the_memory_is_what_is_reported(products: list[Task]) -> None:
    found, state = run(products, strategy="replay", memory=5), run(products)
    assert found.memory_bytes["learned"] == state.memory_bytes["learned"] > 0
    sizes = sorted(path.stat().st_size for task in products for path in task.train)
    assert sum(sizes[:5]) <= found.memory_bytes["replay"] <= sum(sizes[-5:])
    assert state.memory_bytes["replay"] == 0
    assert found.memory_bytes["networks"] == make().network_bytes > 1e6


def test_a_task_that_returns_has_one_column_and_its_steps(products: list[Task]) -> None:
    found = run(products, order="1,0,1,2")
    assert found.columns == ["product1", "product0", "product2"] and found.first == [0, 1, 3]
    assert [list(step) for step in found.steps] == [["product1"], ["product0"], ["product1"], ["product2"]]
    assert np.array(found.matrix["image_auroc"]).shape == (4, 3)


def test_a_block_is_one_step(products: list[Task], watched: type[Watched]) -> None:
    found = run(products, watched, block=2)
    assert len(found.steps) == 2 and set(found.steps[0]) == {"product0", "product1"}
    assert {task for task, _ in watched.learned} == {"+".join(found.steps[0]), "product2"}


def test_single_models_learn_what_a_blended_border_moves_into_another_step(
    products: list[Task], watched: type[Watched]
) -> None:
    run(products, watched, strategy="single", borders="hidden", blend=0.5)
    known = features_of(products)
    assert len({known[one][1] for _, calls in watched.learned for one in calls}) == 21


def test_nothing_comes_before_a_blended_border(products: list[Task]) -> None:
    assert np.isnan(run(products, borders="hidden", blend=0.3).measures["aupro"]["forward_transfer"])
    assert np.isfinite(run(products, borders="hidden").measures["aupro"]["forward_transfer"])


def test_who_keeps_tasks_apart_is_given_none_to_replay() -> None:
    apart = PaDiM(**SMALL, form="per-task")
    with pytest.raises(ConfigError, match="keeps its tasks apart"):
        Continual(strategy="replay").check(apart)


def test_epochs_for_who_takes_all_at_once_are_refused() -> None:
    at_once = SMCC(size=64, weights="none", epochs=1)
    for option in ({"epochs": 2}, {"batch": 2}):
        with pytest.raises(ConfigError, match="without --epochs and --batch"):
            Continual(**option).check(at_once)


def test_a_block_that_returns_is_the_same_task(products: list[Task], watched: type[Watched]) -> None:
    run(products, watched, block=2, order="0,1,2,0,1,0")
    names = list(dict.fromkeys(task for task, _ in watched.learned))
    assert names == ["product0+product1", "product0+product2"]


class Stop(Exception):
    """As if the process had been killed."""


def stopping(step: int, products: list[Task], journal: Journal, **options: Any) -> None:
    """Runs until the first image is judged after a step."""

    def told(stage: str, done: int, of: int) -> None:
        if stage.startswith("judge") and stage.endswith(f"step {step}"):
            raise Stop

    with pytest.raises(Stop):
        Continual(**options).run_all(partial(build, "coreset", **SMALL), products, told, journal=journal)


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_and_resumed_it_gives_the_same_matrix(products: list[Task], tmp_path: Path, policy: str) -> None:
    options: dict[str, Any] = {"strategy": "replay", "memory": 5, "policy": policy, "borders": "told"}
    kept = Journal(tmp_path / "kept", {"a": 1})
    for step in (1, 2, 3, 3):
        stopping(step, products, kept, **options)
    maker = partial(build, "coreset", **SMALL)
    tasks, resumed = Continual(**options).run_all(maker, products, journal=kept)
    straight = Continual(**options).run_all(maker, products)[1]
    assert resumed.matrix == straight.matrix and resumed.memory_bytes == straight.memory_bytes
    again = Continual(**options).run_all(maker, products, journal=kept)[1]  # nothing left to do
    assert again.matrix == straight.matrix and again.training_s == resumed.training_s > 0
    assert [task.metrics["image_auroc"] for task in tasks] == straight.matrix["image_auroc"][-1]


@pytest.mark.parametrize("policy", ["herding", "hardest"])
@pytest.mark.parametrize("when", ["save_state", "Whole"])
def test_a_kill_between_two_writes_is_survived(
    products: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, when: str
) -> None:
    """In the middle of a run without borders, after the states are written or just before the progress is."""
    options: dict[str, Any] = {"strategy": "replay", "memory": 5, "policy": policy, "borders": "hidden", "epochs": 2}
    maker, kept, calls = partial(build, "coreset", **SMALL), Journal(tmp_path, {}), []
    real = getattr(module, when)

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            if when == "save_state":
                real(*args)
            raise Stop
        return real(*args)

    monkeypatch.setattr(module, when, dying)
    with pytest.raises(Stop):
        Continual(**options).run_all(maker, products, journal=kept)
    monkeypatch.undo()
    resumed = Continual(**options).run_all(maker, products, journal=kept)[1]
    assert resumed.matrix == Continual(**options).run_all(maker, products)[1].matrix
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-3"]


def test_a_network_that_was_trained_goes_on_with_its_epochs(products: list[Task], tmp_path: Path) -> None:
    options: dict[str, Any] = {"strategy": "replay", "memory": 3, "epochs": 2, "batch": 3}
    maker, kept = partial(build, "efficientad", **small("efficientad"), fresh=2), Journal(tmp_path, {})

    def told(stage: str, done: int, of: int) -> None:
        if stage == "learn, step 2" and done > 3:
            raise Stop

    with pytest.raises(Stop):
        Continual(**options).run_all(maker, products[:2], told, journal=kept)
    resumed = Continual(**options).run_all(maker, products[:2], journal=kept)[1]
    assert resumed.matrix == Continual(**options).run_all(maker, products[:2])[1].matrix


def test_one_folder_is_one_run_s_at_a_time(products: list[Task], tmp_path: Path) -> None:
    kept = Journal(tmp_path, {})
    with kept.held(), pytest.raises(SecondWriter):
        run(products[:1], journal=kept)
    run(products[:1], journal=kept)


def test_a_finished_run_still_gives_its_last_judgements(products: list[Task], tmp_path: Path) -> None:
    kept, taken = Journal(tmp_path, {}), {}
    found = run(products, journal=kept)
    Continual().run_all(make, products, sink=lambda name, judged: taken.update({name: judged}), journal=kept)
    assert [judged.figures(FIGURES)["aupro"] for judged in taken.values()] == found.matrix["aupro"][-1]


@pytest.mark.parametrize("strategy", ["naive", "single", "multitask"])
def test_every_strategy_goes_on_where_it_was(products: list[Task], tmp_path: Path, strategy: str) -> None:
    kept = Journal(tmp_path, {})
    stopping(2, products, kept, strategy=strategy)
    maker = partial(build, "coreset", **SMALL)
    resumed = Continual(strategy=strategy).run_all(maker, products, journal=kept)[1]
    np.testing.assert_equal(resumed.matrix, Continual(strategy=strategy).run_all(maker, products)[1].matrix)


def test_a_folder_of_another_run_is_refused(products: list[Task], tmp_path: Path) -> None:
    run(products[:1], journal=Journal(tmp_path, {"seed": 0}))
    with pytest.raises(ConfigError, match="other settings"):
        run(products[:1], journal=Journal(tmp_path, {"seed": 1}))
    file = tmp_path / "progress.json"
    file.write_text(file.read_text().replace("0.", "1.", 1))
    with pytest.raises(DataError, match="checksum"):
        run(products[:1], journal=Journal(tmp_path, {"seed": 0}))
    file.write_text("{}")
    with pytest.raises(DataError, match="not the progress"):
        run(products[:1], journal=Journal(tmp_path, {"seed": 0}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "reply"}, "strategy must be in naive"),
        ({"memory": 5}, "--memory is of the strategy replay"),
        ({"policy": "herding"}, "--policy is of the strategy replay"),
        ({"strategy": "single", "scenario": "domain"}, "must know the task"),
        ({"strategy": "multitask", "scenario": "task"}, "told of no tasks"),
        ({"strategy": "multitask", "scenario": "class"}, "told of no tasks"),
        ({"joint": "last"}, "--joint is of the strategy multitask"),
        ({"borders": "hidden", "scenario": "task"}, "cannot be asked by task"),
        ({"blend": 0.2}, "give --borders hidden"),
        ({"blend": 0.7, "borders": "hidden"}, "blend must be in"),
        ({"block": 0}, "block must be in"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Continual(**options)


def test_class_incremental_asks_for_a_method_that_finds_out_the_task() -> None:
    with pytest.raises(ConfigError, match="does not find out the task"):
        Continual(scenario="class").check(make())
    Continual(scenario="class").check(PaDiM(**SMALL, form="per-task"))


def test_the_task_found_out_is_measured(products: list[Task]) -> None:
    maker = partial(build, "padim", **SMALL, form="per-task")
    found = Continual(scenario="class").run_all(maker, products)[1]
    assert found.inferred[-1] == pytest.approx([1, 1, 1], abs=0.3)
    assert np.isnan(found.inferred[0][1:]).all()
    assert not Continual(scenario="task").run_all(maker, products)[1].inferred
    assert not run(products).inferred


def test_features_of_another_method_lend_it_their_eyes_alone(products: list[Task]) -> None:
    """A bench shares features between all methods that see alike; traits are the learner's own."""
    shared = Features(make, again=True)
    maker = partial(build, "padim", **SMALL, form="per-task")
    apart, lent = (Continual(scenario="class").run_all(maker, products, features=f)[1] for f in (None, shared))
    assert lent.inferred == apart.inferred and lent.matrix == apart.matrix


def test_what_was_learned_first_is_forgotten_by_who_keeps_the_latest_only(products: list[Task]) -> None:
    """The matrix can tell the two apart: a detector of the latest task, and one of them all."""
    latest = Continual().run_all(partial(build, "padim", **SMALL, form="latest"), products)[1]
    apart = Continual(scenario="task").run_all(partial(build, "padim", **SMALL, form="per-task"), products)[1]
    assert latest.measures["image_auroc"]["forgetting"] > 0.1
    assert apart.measures["image_auroc"]["forgetting"] == pytest.approx(0)


def small(method: str) -> dict[str, Any]:
    """Parameters that make a method small."""
    own = {"patchcore": {"pool": 1000}, "efficientad": {"teacher": "none", "width": 0.05}, "draem": {"width": 0.04}}
    return {"size": 64, **({} if METHODS[method].traits.end_to_end else {"weights": "none"}), **own.get(method, {})}


@pytest.mark.parametrize("strategy", ["naive", "replay"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_works_under_the_strategies(products: list[Task], method: str, strategy: str) -> None:
    maker = partial(build, method, **small(method))
    found = Continual(strategy=strategy, epochs=1).run_all(maker, products[:2])[1]
    assert np.isfinite([found.matrix[name] for name in FIGURES]).all()


def test_a_method_that_takes_all_at_once_gets_the_memory_with_it(products: list[Task]) -> None:
    counts = []

    class Counting(SMCC):
        def learn(self, features: Tensor) -> Learned:
            counts.append(len(features))
            return super().learn(features)

    maker = partial(Counting, size=64, weights="none", epochs=1)
    Continual(strategy="replay", memory=5).run_all(maker, products)
    assert counts == [8, 7 + 5, 6 + 5]


def test_the_sink_takes_each_task_after_the_last_step(products: list[Task]) -> None:
    taken: dict[str, Judged] = {}
    found = Continual().run_all(make, products, sink=lambda name, judged: taken.update({name: judged}))[1]
    assert list(taken) == [task.name for task in products]
    last = [judged.figures(FIGURES)["aupro"] for judged in taken.values()]
    assert last == found.matrix["aupro"][-1]


def test_records_by_task_follow_the_tasks_as_they_were_given(products: list[Task]) -> None:
    tasks, found = Continual(order="2,0,1").run_all(make, products)
    assert [task.task for task in tasks] == ["product0", "product1", "product2"]
    assert list(found.columns) == ["product2", "product0", "product1"]
    for task in tasks:
        column = found.columns.index(task.task)
        assert [point["images"] for point in task.curve] == [6, 14, 21]
        assert [point["aupro"] for point in task.curve] == [row[column] for row in found.matrix["aupro"]]
        assert dict(task.metrics) == {name: found.matrix[name][-1][column] for name in METRICS}


def test_a_task_without_masks_has_image_figures_alone(products: list[Task]) -> None:
    bare = replace(products[1], test=tuple(replace(one, masks=()) for one in products[1].test))
    found = run([products[0], bare, products[2]])
    assert np.isnan(np.array(found.matrix["pixel_f1"])[:, 1]).all()
    assert np.isfinite(found.matrix["image_f1"]).all()
    assert found.measures["pixel_f1"]["average"] == np.nanmean(found.matrix["pixel_f1"][-1])
