"""What deploy/ holds for clusters: the script runs; manifest and Dockerfile are read."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from everline.pipelines.sweeps.command import sweep

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy/kuberay/sweep.yaml"


@pytest.fixture(scope="module")
def claim() -> Any:
    return next(yaml.safe_load_all(MANIFEST.read_text("utf-8")))


@pytest.fixture(scope="module")
def job() -> Any:
    """The RayJob's spec."""
    _, found = yaml.safe_load_all(MANIFEST.read_text("utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    return found["spec"]


@pytest.fixture(scope="module")
def pods(job: Any) -> list[Any]:
    """Of the head, then of the workers."""
    cluster = job["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def parsed(command: str) -> dict[str, Any]:
    """The options of an `everline sweep`, without running it."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("everline", "sweep")
    return dict(sweep.make_context(name, words).params)


def test_the_entrypoint_is_a_sweep_on_what_the_nodes_share(job: Any, pods: list[Any]) -> None:
    found = parsed(job["entrypoint"])
    mounts = {mount["mountPath"] for pod in pods for one in pod["containers"] for mount in one["volumeMounts"]}
    for path in (*found["folders"], found["out"]):
        assert any(path.is_relative_to(mount) for mount in mounts), path


def test_it_can_be_gone_on_with(job: Any) -> None:
    (again,) = re.findall(r"# entrypoint: (.*)", MANIFEST.read_text("utf-8"))
    found = parsed(again)
    assert found["resume"] and found["out"] == parsed(job["entrypoint"])["out"]


def test_every_node_mounts_the_claim(claim: Any, pods: list[Any]) -> None:
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods:
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]


def test_a_worker_has_room_for_trials_and_the_versions_are_those_of_the_lock(job: Any, pods: list[Any]) -> None:
    cpus = parsed(job["entrypoint"])["cpus"]
    head, *workers = (int(pod["containers"][0]["resources"]["limits"]["cpu"]) for pod in pods)
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert head and workers and all(one % cpus == 0 for one in workers)
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert f"\nray=={job['rayClusterSpec']['rayVersion']} " in lock


def test_the_dockerfile_copies_what_there_is_and_all_that_the_wheel_needs() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text("utf-8")
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {"methods", "platform", "deploy", "pipelines", "__init__.py", "pyproject.toml"}


@pytest.mark.slow
def test_the_script_sweeps_on_a_cluster_and_leaves_nothing_behind(
    write_disc: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = write_disc(tmp_path / "bolt", 8, 6, 6), tmp_path / "out"
    words = ["1", "1", "--method", "padim", "--data", data, "--set", "size=64", "--samples", "2", "--out", out]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [ROOT / "deploy/cluster/sweep.sh", *words],
        env={**os.environ, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    outcome = json.loads((out / "outcome.json").read_text("utf-8"))
    assert outcome["finished"] and [one["status"] for one in outcome["trials"]] == ["complete", "complete"]
    assert not [pid for pid in psutil.pids() if _session(pid) == process.pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1
