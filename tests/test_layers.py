"""The house rule: imports run down the floors only, and third-party packages mark rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(file.relative_to(ROOT) for folder in ("pi0_control", "sims") for file in (ROOT / folder).rglob("*.py"))

FLOORS = {"types": 0, "errors": 0, "files": 0, "robot": 0, "model": 1, "policy": 2, "control": 3, "doctor": 3}
DOOR = 4  # serving, ros, train, sims, bench: they do not know each other
COMPOSERS = ("pi0_control/__init__.py", "pi0_control/__main__.py", "pi0_control/cli/")  # may open every door
ROS = "rclpy builtin_interfaces diagnostic_msgs geometry_msgs lifecycle_msgs rcl_interfaces rosgraph_msgs sensor_msgs"
ROS += " std_msgs std_srvs trajectory_msgs"
ROOMS = {
    "torch": ("pi0_control/model/", "pi0_control/policy/", "pi0_control/train/", "pi0_control/bench/"),
    "gymnasium": ("pi0_control/control/agent.py", "pi0_control/control/mapping.py", "sims/"),
    "mujoco": ("sims/",),
    **dict.fromkeys(ROS.split(), ("pi0_control/ros/",)),
    **dict.fromkeys(("numba", "llvmlite"), ("pi0_control/model/amx.py", "pi0_control/model/llvm.py")),
    **dict.fromkeys(("msgpack", "websockets"), ("pi0_control/serving/",)),
}


def imports(file: Path) -> Iterator[str]:
    """Dotted names of everything a module imports, wherever in it."""
    package = file.parent.parts
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def room(parts: tuple[str, ...]) -> str:
    """``policy`` for pi0_control/policy/..., ``types`` for pi0_control/types.py, ``sims`` for sims/..."""
    return "sims" if parts[0] == "sims" else parts[1].removesuffix(".py")


def is_allowed(importer: str, imported: str) -> bool:
    floors = FLOORS.get(importer, DOOR), FLOORS.get(imported, DOOR)
    is_word = floors == (0, 0)
    return importer == imported or is_word or floors[0] > floors[1]


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_imports_run_down_only(file: Path) -> None:
    if file.as_posix().startswith(COMPOSERS):
        return
    for name in imports(file):
        parts = tuple(name.split("."))
        if parts[0] == "sims" or (parts[0] == "pi0_control" and len(parts) > 1):
            assert is_allowed(room(file.parts), room(parts)), f"{file} imports {name}"


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_third_party_imports_stay_in_their_rooms(file: Path) -> None:
    for package in {name.split(".")[0] for name in imports(file)} & set(ROOMS):
        allowed = ROOMS[package]
        assert file.as_posix().startswith(allowed), f"{file} imports {package}; only {', '.join(allowed)} may"


def test_the_rules_tell_good_from_bad() -> None:
    assert is_allowed("train", "policy")
    assert is_allowed("robot", "errors")
    assert is_allowed("model", "model")
    assert not is_allowed("model", "policy")
    assert not is_allowed("control", "train")
    assert not is_allowed("train", "sims")
    assert not is_allowed("sims", "serving")
    assert "pi0_control.model.pi0.Pi0" in set(imports(Path("pi0_control/policy/policy.py")))
