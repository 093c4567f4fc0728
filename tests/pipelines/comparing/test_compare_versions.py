"""`everline compare LINE@... LINE@...`: versions that lines have, judged on the same images."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Ran
from everline.methods.backbones import Backbone
from everline.methods.errors import ConfigError, DataError, EverlineError, TrackingError, UnknownLine, UnknownVersion
from everline.methods.metrics import evaluate
from everline.pipelines.comparing import versions_page, versions_shown
from everline.pipelines.comparing.compare import compare
from everline.pipelines.comparing.versions_compared import Compared
from everline.pipelines.comparing.versions_judged import Judges, read_judged
from everline.pipelines.comparing.versions_named import is_version, load, resolve
from everline.pipelines.data.datasets import read_folder
from everline.pipelines.data.view import View
from everline.platform.calibration import Calibration
from everline.platform.line import Scorer, embed_image
from everline.platform.settings import read_fleet
from everline.platform.tracking import connect
from everline.platform.versions import Version, Versions


def call(*words: object, **env: str) -> Ran:
    return CliRunner().invoke(compare, [str(word) for word in words], env={"EVERLINE_TRACKING": "none", **env})


def said(ran: Ran, kind: type[EverlineError] = ConfigError) -> str:
    assert isinstance(ran.exception, kind), (ran.output, ran.exception)
    return str(ran.exception)


def plain(fleet: Path, disc: Path, out: Path, *more: object) -> dict[str, Any]:
    ran = call("mono@previous", "mono@current", "--fleet", fleet, "--json", out / "r.json", "--data", disc, *more)
    assert ran.exit_code == 0, ran.exception
    found: dict[str, Any] = json.loads((out / "r.json").read_text())
    return found


def compared(fleet: Path, *folders: Path, words: tuple[str, ...] = ("mono@previous", "mono@current")) -> Compared:
    return Compared.of(Judges(load(words, read_fleet(fleet))), read_judged(folders))


def test_each_image_is_judged_as_the_line_would(fleet: Path, disc: Path, tmp_path: Path, published: str) -> None:
    found = plain(fleet, disc, tmp_path)
    samples = read_folder(disc).test
    assert [one["image"] for one in found["images"]] == [f"{one.kind}/{one.path.name}" for one in samples]
    for word, number in (("mono@previous", 1), ("mono@current", 2)):
        scorer = Scorer(number, *Versions(published, "mono").load(number))
        for sample, row in zip(samples, found["images"], strict=True):
            verdict, _ = scorer.judge(embed_image(scorer.detector, sample.path.read_bytes()))
            own = row["by"][word]
            assert (own["score"], own["p_value"], own["verdict"]) == (
                verdict["score"], verdict["p_value"], verdict["verdict"]
            )  # fmt: skip
            assert own["right"] is ((own["verdict"] == "reject") is sample.defect)


def test_figures_and_errors_are_counted_anew(fleet: Path, disc: Path, tmp_path: Path, published: str) -> None:
    found = plain(fleet, disc, tmp_path)
    samples = read_folder(disc).test
    for number, version in enumerate(found["versions"], 1):
        scorer = Scorer(number, *Versions(published, "mono").load(number))
        judged = [scorer.judge(embed_image(scorer.detector, one.path.read_bytes())) for one in samples]
        scores = np.array([verdict["score"] for verdict, _ in judged])
        masks = np.array([any(View(64).mask(f).any() for f in one.masks) for one in samples])
        pixels = [sum((View(64).mask(f) for f in one.masks), np.zeros((64, 64), bool)) for one in samples]
        wanted = evaluate(scores, masks, np.stack([m.numpy() for _, m in judged]), np.stack(pixels))
        assert version["mean"] == version["folders"]["disc"]["metrics"]
        assert version["mean"] == {name: pytest.approx(wanted[name]) for name in version["mean"]}
        rejected = np.array([verdict["verdict"] == "reject" for verdict, _ in judged])
        assert (version["false_rejects"]["count"], version["false_rejects"]["of"]) == (rejected[~masks].sum(), 6)
        assert (version["missed_defects"]["count"], version["missed_defects"]["of"]) == ((~rejected[masks]).sum(), 4)


def test_what_a_version_is_stands_beside_its_figures(fleet: Path, disc: Path, tmp_path: Path, published: str) -> None:
    first, second = plain(fleet, disc, tmp_path)["versions"]
    state, calibration = Versions(published, "mono").load(2)
    assert (second["line"], second["version"], second["aliases"], second["method"]) == (
        "mono",
        2,
        ["current"],
        "coreset",
    )
    assert second["threshold"] == calibration.threshold and second["state_bytes"] == state.nbytes
    assert (first["images_learned"], second["images_learned"]) == (1, 4)
    assert (first["false_reject_rate"], second["calibrated"]) == (0.5, True)
    assert all(second["ms_per_image"][name] > 0 for name in ("backbone", "score"))
    assert first["against_the_first"] is None and second["against_the_first"]["of"] == 10


def test_verdicts_that_change_are_counted_by_who_is_right(fleet: Path, disc: Path) -> None:
    found = compared(fleet, disc)
    changed = [row for row in found.rows if row.rejected[0] != row.rejected[1]]
    assert changed, "the first version rejects half of what is good"
    one = found.against(1)
    right = [sum(row.rejected[n] is row.defect for row in changed) for n in (0, 1)]
    assert (one.changed, one.of, one.first, one.other) == (len(changed), 10, *right)
    assert right[1] > right[0]
    assert found.changes == sorted(changed, key=lambda row: -row.spread)


def test_the_spread_is_the_difference_of_ranks(fleet: Path, disc: Path) -> None:
    rows = compared(fleet, disc).rows
    for row in rows:
        ranks = [sum(other.scores[n] < row.scores[n] for other in rows) for n in (0, 1)]
        assert row.spread == pytest.approx(abs(ranks[0] - ranks[1]) / len(rows))


def test_an_image_goes_through_a_shared_backbone_once(
    fleet: Path, disc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(self: Backbone, images: Any, forward: Any = Backbone.forward) -> Any:
        calls.append(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    compared(fleet, disc, words=("mono@1", "mono@2", "poly@1"))
    assert calls == [64] * 10  # poly@1 is of the same backbone and size
    calls.clear()
    found = compared(fleet, disc, words=("mono@current", "poly@current"))
    assert sorted(calls) == [32] * 10 + [64] * 10
    assert [one[0].judged.maps.shape[-1] for one in found.outcomes if one[0].judged.maps is not None] == [64, 32]


def test_images_without_labels_have_scores_and_verdicts_alone(fleet: Path, disc: Path, tmp_path: Path) -> None:
    found = plain(fleet, disc / "train/good", tmp_path)
    version = found["versions"][0]
    assert found["folders"] == [{"name": "good", "images": 2, "defects": None}]
    assert set(version["mean"].values()) == {None} and version["false_rejects"] is version["missed_defects"] is None
    assert version["folders"]["good"]["rejects"]["of"] == 2
    assert (
        {row["defect"] for row in found["images"]}
        == {None}
        == {row["by"]["mono@current"]["right"] for row in found["images"]}
    )


def test_folders_have_figures_of_their_own_and_together(
    fleet: Path, disc: Path, tmp_path: Path, write_disc: Callable[..., Path]
) -> None:
    other = write_disc(tmp_path / "data/plate", train=1, good=3, bad=2)  # without masks
    found = plain(fleet, disc, tmp_path, other, disc / "train/good")
    version = found["versions"][1]
    own = [version["folders"][name]["metrics"] for name in ("disc", "plate")]
    assert version["mean"]["image_auroc"] == pytest.approx((own[0]["image_auroc"] + own[1]["image_auroc"]) / 2)
    assert version["mean"]["aupro"] is None and own[0]["aupro"] is not None
    assert version["false_rejects"]["of"] == 9 and version["missed_defects"]["of"] == 6
    assert len(found["images"]) == 17


def test_the_terminal_and_the_markdown_show_all_tables(fleet: Path, disc: Path, tmp_path: Path) -> None:
    words = ("mono@1", "mono@2", "--fleet", fleet, "--data", disc, disc / "train/good")
    ran = call(*words, "--markdown", tmp_path / "p.md")
    page = (tmp_path / "p.md").read_text()
    assert ran.exit_code == 0, ran.exception
    titles = (
        "versions",
        "disc: 6 good images, 4 defects",
        "good: 2 images, not labelled",
        "verdicts against mono@1",
        "verdicts that change",
    )
    for text in (ran.stdout, page):
        places = [text.index(title) for title in titles]
        assert places == sorted(places)
    assert "* mono@2: version 2 (current) of mono, size=64" in page
    assert "disc/scratch/" in page or "disc/good/" in page


def test_a_long_table_of_changes_is_cut_and_says_so(fleet: Path, disc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(fleet, disc)
    monkeypatch.setattr(versions_shown, "MOST", 1)
    (table,) = versions_shown.changes(found)
    assert len(table.rows) == 1 and table.note == f"The 1 most different of {len(found.changes)}."


def test_the_page_shows_heatmaps_side_by_side_and_loads_nothing(fleet: Path, disc: Path, tmp_path: Path) -> None:
    found = plain(fleet, disc, tmp_path, "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<h2>Changed: ") == found["changed"] > 0
    assert page.count("<h2>Different: ") == min(versions_page.DIFFERENT, 10 - found["changed"])
    assert page.count("repeat(2, minmax(0, 1fr))") == page.count("<h2>Changed: ") + page.count("<h2>Different: ")
    assert "Scores of mono@current over those of mono@previous" in page


def test_the_number_of_heatmaps_is_bounded(fleet: Path, disc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions_page, "CHANGED", 1)
    monkeypatch.setattr(versions_page, "DIFFERENT", 2)
    subjects = load(("mono@1", "mono@2"), read_fleet(fleet))
    judges = Judges(subjects)
    found = Compared.of(judges, read_judged([disc]))
    made = versions_page.galleries(found, judges)
    assert len(made) == 3 and f"of {len(found.changes)} changed" in made[0].note
    for gallery in made:
        low, high = gallery.pictures
        assert (low.caption.split(",")[0], high.caption.split(",")[0]) == ("mono@1", "mono@2")
        assert (low.image == high.image).all() and low.map.shape == high.map.shape == (64, 64)
    row = versions_page.shown(found)[0]
    maps = [one.map for one in made[0].pictures]
    raw = [anomaly for _, anomaly in judges.look(found.folders[0].samples[row.place[1]].path)]
    for scaled, own in zip(maps, raw, strict=True):  # another scale, the same picture
        assert np.corrcoef(scaled.ravel(), own.ravel())[0, 1] == pytest.approx(1)


def test_a_run_for_each_version_lands_in_the_fleets_store(
    own_fleet: Path, disc: Path, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERLINE_TRACKING")
    words = ["mono@previous", "mono@current", "--fleet", own_fleet, "--data", disc, "--json", tmp_path / "r.json"]
    ran = CliRunner().invoke(compare, list(map(str, words)))
    assert ran.exit_code == 0, ran.exception
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name("everline/versions")
    runs = {run.data.params["version"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"1", "2"} and all(run.info.run_id in ran.stderr for run in runs.values())
    run, version = runs["2"], json.loads((tmp_path / "r.json").read_text())["versions"][1]
    assert (run.data.params["line"], run.data.params["method"], run.data.params["size"]) == ("mono", "coreset", "64")
    assert run.data.metrics["image_auroc"] == run.data.metrics["disc/image_auroc"] == version["mean"]["image_auroc"]
    assert run.data.metrics["false_reject_rate/high"] == pytest.approx(version["false_rejects"]["high"])
    assert run.data.metrics["changed_verdicts"] == version["against_the_first"]["changed"]
    assert {"state_bytes", "ms_per_image/score", "missed_defect_rate"} <= set(run.data.metrics)
    assert run.data.tags["everline.compared"] == "mono@1, mono@2"
    (file, _) = tmp_path.glob("mlartifacts/**/comparison.json")
    assert file.read_text() == (tmp_path / "r.json").read_text()


def test_a_store_of_ones_own_or_none_is_taken_at_its_word(
    own_fleet: Path, disc: Path, tmp_path: Path, tracking_uri: str
) -> None:
    words = ("mono@1", "mono@2", "--fleet", own_fleet, "--data", disc)
    assert "MLflow" not in call(*words).stderr  # EVERLINE_TRACKING=none
    assert connect(tracking_uri).get_experiment_by_name("everline/versions") is None
    assert said(call(*words, "--tracking", "sqlite:////dev/null/x.db"), TrackingError)


def test_aliases_and_numbers_are_found_and_others_named(fleet: Path, disc: Path) -> None:
    known = [
        Version(n, aliases, 0, 0, math.inf, False, "coreset", 0, {})
        for n, aliases in ((12, ("candidate",)), (3, ("current", "best")), (1, ()))
    ]
    found = [resolve("mono", which, known).version for which in ("candidate", "current", "3", "1")]
    assert found == [12, 3, 3, 1]
    with pytest.raises(
        UnknownVersion, match=r"no version 2; valid: candidate \(12\), current \(3\), best \(3\), 12, 3, 1"
    ):
        resolve("mono", "2", known)
    words = ("mono@candidate", "mono@1", "--fleet", fleet, "--data", disc)
    assert "no version candidate; valid: current (2), previous (1), 2, 1" in said(call(*words), UnknownVersion)
    assert "no version yet" in said(call("mono@1", "none@1", *words[2:]), UnknownVersion)
    assert "unknown line 'duo'" in said(call("duo@1", *words[1:]), UnknownLine)


def test_words_that_are_versions_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(map(is_version, ("mono@current", "a.b-c_d@7", "mono@candidate")))
    assert not any(map(is_version, ("mono", "mono@", "@current", "a/mono@current", "mono@a.json", "mono@current@2")))
    Path("mono@current").touch()
    assert not is_version("mono@current")


def test_what_does_not_apply_is_refused(fleet: Path, disc: Path, tmp_path: Path) -> None:
    rest = ("--fleet", fleet, "--data", disc)
    assert "is a version and a.json a record" in said(call("mono@1", "a.json", *rest))
    assert "is a version and 0123abcd a record" in said(call("0123abcd", "mono@1", *rest))
    assert "--experiment is of records" in said(call("mono@1", "mono@2", "--experiment", "e", *rest))
    assert "give --data" in said(call("mono@1", "mono@2", "--fleet", fleet))
    assert "takes 2 to 6 versions" in said(call("mono@1", *rest))
    assert "mono@2 and mono@current are both version 2" in said(call("mono@2", "mono@current", *rest))
    assert "two folders are called 'disc'" in said(call("mono@1", "mono@2", *rest, disc))
    assert "no fleet file" in said(call("mono@1", "mono@2", "--fleet", tmp_path / "none.yaml", "--data", disc))
    assert "no images in it" in said(call("mono@1", "mono@2", "--fleet", fleet, "--data", tmp_path), DataError)


def test_a_version_without_a_threshold_passes_everything(
    own_fleet: Path, disc: Path, tmp_path: Path, tracking_uri: str
) -> None:
    state, _ = Versions(tracking_uri, "mono").load(1)
    Versions(tracking_uri, "mono").publish(state, Calibration.of([], 0.1), watermark=9, key="bare")
    words = ("mono@2", "mono@3", "--fleet", own_fleet, "--data", disc, "--json", tmp_path / "r.json")
    assert call(*words, "--report", tmp_path / "r.html").exit_code == 0
    version = json.loads((tmp_path / "r.json").read_text())["versions"][1]
    assert version["threshold"] is None and version["missed_defects"]["count"] == 4
