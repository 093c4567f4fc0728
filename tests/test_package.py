"""The wheel holds what the checkout holds: an editable install hides a forgotten folder, the wheel does not."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_module_and_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "tests", ".*_cache", "everline-*")
    shutil.copytree(ROOT, source, ignore=skip)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    ran = subprocess.run(build, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    floors = ("methods", "platform", "deploy", "pipelines")
    wanted = {
        f"everline/{p.relative_to(ROOT)}"
        for f in floors
        for p in (ROOT / f).rglob("*")
        if p.suffix in (".py", ".html", ".css", ".js", ".svg")
    }
    assert inside == wanted | {"everline/__init__.py"}
