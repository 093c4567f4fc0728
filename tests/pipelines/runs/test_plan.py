"""Plan files: what they say, and that every mistake in one is named before anything runs."""

import re
from pathlib import Path

import pytest
import yaml
from everline.methods.errors import ConfigError
from everline.pipelines.runs.plan import read_plan

ROOT = Path(__file__).parents[3]


def plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_every_method_runs_under_every_protocol_or_those_it_lists(tmp_path: Path) -> None:
    text = """
        methods:
          padim: {}
          still: {method: lemo, params: {lr: 0, update: none}, protocols: [four]}
        protocols:
          online: {}
          four: {protocol: offline, options: {shots: 4}, seeds: 3}
    """
    found = read_plan(plan(tmp_path, text), {"size": "64"})
    assert list(found) == [("online", "padim"), ("four", "padim"), ("four", "still")]
    still = found["four", "still"]
    assert (still.protocol, still.method, still.detector.params["lr"]) == ("offline", "lemo", 0)
    assert [run.seed for run in still.runs] == [0, 1, 2] and still.runs[0].options == {"shots": 4}
    assert all(trial.detector.size == 64 for trial in found.values())


@pytest.mark.parametrize(
    ("methods", "protocols", "message"),
    [
        ("{}", "online: {}", "no methods"),
        ("padim: {}", "{}", "no protocols"),
        ("padmi: {}", "online: {}", "online, padmi.*did you mean padim"),
        ("padim: {}", "onlin: {}", "unknown protocol 'onlin'; did you mean online"),
        ("padim: {parms: {}}", "online: {}", "'parms'; did you mean params"),
        ("padim: {params: {sigma: -1}}", "online: {}", "sigma must be in"),
        ("padim: {protocols: [drift]}", "online: {}", "methods: padim: unknown protocol 'drift'"),
        ("padim: {protocols: online}", "online: {}", "must be a list"),
        ("padim: {}", "online: {options: {shots: 3}}", "--shots is no option of the protocol online"),
        ("padim: {}", "offline: {options: {shots: many}}", "--shots must be a whole number"),
        ("padim: {}", "offline: {options: {shots: 4.0}}", "--shots must be a whole number"),
        ("padim: {}", "fewshot: {options: {ratio: true}}", "--ratio must be a number"),
        ("padim: {}", "offline: {options: {crop: 100}}", r"--crop must be in \[224"),
        ("smcc: {params: {epochs: 2}}", "fewshot: {}", "cannot go on learning"),
        ("smcc: {params: {epochs: 2}}", "online: {}", "cannot learn one image at a time"),
        ("padim: {params: {1: 2}}", "online: {}", "a name must be text"),
        ("padim: {protocols: []}", "online: {}", "must be a list"),
        ("padim: {}", "drift: {options: {drift: noise}}", "--drift must be a list"),
        ("padim: {}", "drift: {options: {drift: [{noise: 5}]}}", "--drift must be a list"),
        ("padim: {}", "drift: {options: {drift: {noise: loud}}}", "--drift must be a number"),
        ("padim: {}", "offline: {seeds: 0}", "seeds must be at least 1"),
        ("padim: {}", "offline: {seeds: two}", "seeds must be a whole number"),
        ("padim: {}", "drift: {options: {drift: [fog]}}", "unknown kind 'fog'"),
        ("../padim: {method: padim}", "online: {}", "a name has letters"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, methods: str, protocols: str, message: str) -> None:
    text = f"methods:\n  {methods}\nprotocols:\n  {protocols}\n"
    with pytest.raises(ConfigError, match=message):
        read_plan(plan(tmp_path, text))


def test_drifts_are_words_or_levels_as_in_a_record(tmp_path: Path) -> None:
    text = "methods: {padim: {}}\nprotocols:\n  a: {protocol: drift, options: {drift: [noise=10, blur]}}\n"
    text += "  b: {protocol: drift, options: {drift: {noise: 10, blur: 2}}}\n"
    found = read_plan(plan(tmp_path, text))
    assert [trial.runs[0].options for trial in found.values()] == [{"drift": {"noise": 10.0, "blur": 2.0}}] * 2


def test_yaml_nested_too_deep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_plan(plan(tmp_path, "[" * 20_000))


def test_a_missing_file_shows_a_sample(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no plan file(.|\n)*methods:"):
        read_plan(tmp_path / "none.yaml")


def test_the_example_of_the_documents_is_a_plan(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(methods:.*?)```", (ROOT / "docs/protocols.md").read_text(), re.DOTALL)
    assert found and len(read_plan(plan(tmp_path, found[1]))) == 5


@pytest.mark.parametrize("path", sorted((ROOT / "docs/plans").glob("*.yaml")), ids=lambda path: path.name)
def test_the_plans_of_the_documents_can_be_run(path: Path) -> None:
    found = read_plan(path)
    assert {method for _, method in found} == set(yaml.safe_load(path.read_text())["methods"])
