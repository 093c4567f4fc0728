"""`everline doctor`: what this machine can run, and the mend for what it cannot."""

import importlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from .console import json_option, show_table, write_json


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, what was seen, and what to do where it is not ok."""

    what: str
    ok: bool
    seen: str
    mend: str = ""


@click.command()
@json_option
def doctor(json_file: Path | None) -> None:
    """What this machine can run, and the mend for what it cannot. Ends with 1 where something needed is missing."""
    found = [check() for check in CHECKS]
    write_json([asdict(finding) for finding in found], json_file)
    if str(json_file) != "-":
        rows = [("ok" if f.ok else "NOT OK", f.what, f.seen, f.mend if not f.ok else "") for f in found]
        show_table("this machine", ["", "what", "seen", "mend"], rows)
    if not all(finding.ok for finding in found):
        raise SystemExit(1)


def check_python() -> Finding:
    seen = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info >= (3, 11), seen, "install Python 3.11 or newer")


def check_torch() -> Finding:
    return _imports("torch", "make setup")


def check_torchvision() -> Finding:
    """torch and torchvision must come from one index; a mixed pair fails at import."""
    return diagnose_torchvision(lambda: importlib.import_module("torchvision").__version__)


def diagnose_torchvision(load: Callable[[], str]) -> Finding:
    """`load` imports torchvision and gives its version."""
    try:
        return Finding("torchvision", True, load())
    except Exception as error:  # noqa: BLE001 - whatever the import raises is the finding
        mend = "make setup"
        if "torchvision::nms does not exist" in str(error):
            mend = (
                "torch and torchvision are builds that do not match (one for CPU only, one for CUDA, or two "
                "releases): install both from the same index with the versions of requirements.lock, or rm -r .venv "
                "and make setup"
            )
        return Finding("torchvision", False, f"{type(error).__name__}: {error}"[:200], mend)


def check_gpu() -> Finding:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Finding("GPU", True, names or "none: everything runs on the CPU")


def check_weights() -> Finding:
    from ..methods.backbones import Backbone

    try:
        Backbone("efficientnet_lite0")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Finding("embedded backbone", False, str(error)[:200], "make setup")
    return Finding("embedded backbone", True, "efficientnet_lite0 with its ImageNet weights")


def check_ray() -> Finding:
    return _imports("ray", "make setup")


def check_mlflow() -> Finding:
    from importlib.metadata import version

    return Finding("mlflow", True, version("mlflow"))


def check_demo_images() -> Finding:
    found = importlib.util.find_spec("elpv_dataset") is not None
    mend = "make setup installs the demo's images (package elpv-dataset, CC BY-NC-SA 4.0)"
    return Finding("demo images", found, "elpv_dataset" if found else "missing", mend)


def check_memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return Finding("memory", free > 2, f"{free:.1f} GiB free", "Ray, MLflow and two lines want 2 GiB: close something")


def check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", free > 1, f"{free:.1f} GiB free here", "make room: a line refuses images when it is full")


def check_cores() -> Finding:
    return Finding("cores", True, str(os.cpu_count()))


def check_temp_folder() -> Finding:
    from ..methods.errors import ConfigError
    from ..platform import noted

    folder = str(noted.temp_folder())
    try:
        noted.check_temp_folder()
    except ConfigError as error:
        return Finding("temporary folder", False, folder, str(error))
    return Finding("temporary folder", True, folder)


def check_token() -> Finding:
    from ..methods.errors import ConfigError
    from ..platform.ray_token import prepare_token

    try:
        prepare_token()
    except ConfigError as error:
        return Finding("Ray's token", False, "cannot be made", str(error))
    return Finding("Ray's token", True, "its owner's alone")


def check_cluster() -> Finding:
    from ..methods.errors import LineDown
    from ..platform.noted import noted

    try:
        found = noted()
    except LineDown as error:
        return Finding("Ray cluster", False, "does not answer", str(error))
    if found is not None and found.owner:
        mend = "set RAY_TMPDIR to a folder of your own"
        return Finding("Ray cluster", False, f"{found.address}, of user {found.owner}", mend)
    return Finding("Ray cluster", True, found.address if found else "none runs; `everline up` starts one")


def check_port() -> Finding:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 8000)) == 0
    return Finding("port 8000", not taken, "in use" if taken else "free", "everline serve --port N takes another")


def _imports(name: str, mend: str) -> Finding:
    try:
        return Finding(name, True, importlib.import_module(name).__version__)
    except Exception as error:  # noqa: BLE001 - whatever the import raises is the finding
        return Finding(name, False, f"{type(error).__name__}: {error}"[:200], mend)


CHECKS = (
    check_python,
    check_torch,
    check_torchvision,
    check_ray,
    check_mlflow,
    check_weights,
    check_demo_images,
    check_gpu,
    check_cores,
    check_memory,
    check_disk,
    check_temp_folder,
    check_token,
    check_cluster,
    check_port,
)
