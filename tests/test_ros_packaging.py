"""The wheel, plain and editable, and the colcon workspace put everything where ``ros2 run`` and ``ros2 launch`` look.

``ros2 launch`` asks the ament index for the first prefix with the package's marker and takes the one file of the name
below its share folder; an executable is a file of the package's lib folder. Dependencies are not installed here: the
new environments borrow those of the environment that runs the tests.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from runpy import run_path
from typing import Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest
import yaml

pytest.importorskip("rclpy", reason="no rclpy: on Linux pip install 'pi0-control[ros]' brings it")
from ament_index_python.packages import get_package_prefix, get_package_share_directory

from pi0_control.control import Safety
from pi0_control.robot import RobotSpec
from pi0_control.ros.parameters import TABLE, NodeConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "ros2_ws" / "src" / "pi0_control"
LAUNCH_FILES = sorted(file.name for file in (ROOT / "launch").glob("*.launch.py"))
PARAMETER_FILES = sorted((ROOT / "launch").glob("*.yaml"))
LIMIT_S = 600


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        cwd=ROOT / "ros2_ws",
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def build(*command: str | Path) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def pip_prefix(folder: Path, *options: str) -> Path:
    """A new environment with the package in it, installed by pip."""
    prefix = folder / "env"
    build(sys.executable, "-m", "venv", "--without-pip", prefix)
    pip = (sys.executable, "-m", "pip", "--python", prefix / "bin" / "python3", "--disable-pip-version-check")
    borrowed = sysconfig.get_path("purelib")
    (next(prefix.glob("lib/python*/site-packages")) / "borrowed.pth").write_text(f"{borrowed}\n")
    build(*pip, "install", "--no-deps", "--no-build-isolation", "--no-index", *options, ROOT)
    return prefix


def colcon_prefix(folder: Path, *options: str) -> Path:
    """The install space of the workspace."""
    colcon = (sys.executable, "-m", "colcon", "--log-base", folder / "log")
    build(*colcon, "build", "--build-base", folder / "build", "--install-base", folder / "install", *options)
    return folder / "install" / "pi0_control"


def sourced(prefix: Path) -> str:
    """What a shell does first: source the workspace, where there is one."""
    setup = prefix.parent / "setup.sh"
    return f". {setup} &&" if setup.exists() else ""


@pytest.mark.parametrize(
    ("make", "options"),
    [(pip_prefix, ()), (pip_prefix, ("--editable",)), (colcon_prefix, ()), (colcon_prefix, ("--symlink-install",))],
    ids=["wheel", "wheel-editable", "colcon", "colcon-symlink"],
)
def test_installed_it_is_found_and_its_nodes_run(make, options, tmp_path, monkeypatch) -> None:
    prefix = make(tmp_path, *options)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    assert get_package_prefix("pi0_control") == str(prefix)
    share = Path(get_package_share_directory("pi0_control"))
    assert (share / "package.xml").read_text(encoding="utf-8") == (SOURCE / "package.xml").read_text(encoding="utf-8")
    for name in (*LAUNCH_FILES, *(file.name for file in PARAMETER_FILES)):
        assert len(list(share.rglob(name))) == 1, name  # ros2 launch refuses a second one
    for node in ("policy_node", "sim_node"):
        executable = prefix / "lib" / "pi0_control" / node
        assert os.access(executable, os.X_OK)
        start = f"{sourced(prefix)} exec {executable} --ros-args -p seed:=seven"
        done = run("sh", "-c", start, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert done.returncode == 2, done.stderr
        assert "Parameter seed" in done.stderr


def test_versions_and_dependencies_are_the_same_for_pip_and_colcon() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = ElementTree.parse(SOURCE / "package.xml").getroot()
    assert package.findtext("version") == project["version"]
    assert package.findtext("license") == project["license"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["optional-dependencies"]["ros"]}
    on_pypi = {name.removeprefix("ros-").replace("-", "_") for name in names}
    assert {entry.text for entry in package.findall("exec_depend")} == on_pypi | {"launch", "launch_ros"}


@pytest.mark.parametrize("file", PARAMETER_FILES, ids=lambda file: file.stem)
def test_parameter_files_hold_parameters_that_exist_for_robots_that_exist(file: Path) -> None:
    (wildcard, section), *others = yaml.safe_load(file.read_text(encoding="utf-8")).items()
    assert (wildcard, others) == ("/**", [])  # a section that names the node would win over launch arguments
    values = flat(section["ros__parameters"])
    assert set(values) <= set(TABLE)
    config = NodeConfig.from_values({name: entry.default for name, entry in TABLE.items()} | values)
    if config.robot:
        Safety(RobotSpec.from_yaml(config.robot), config.safety)


def flat(values: dict, group: str = "") -> dict[str, Any]:
    """Parameters as ROS names them, with their groups."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        flattened |= flat(value, f"{group}{key}.") if isinstance(value, dict) else {group + key: value}
    return flattened


@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_launch_files_import_nothing_of_ours(name: str) -> None:
    """They run in the Python of the ros2 command, which may know neither torch nor pi0_control."""
    imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / "launch" / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(imported) <= {"launch", "launch_ros", "pathlib"}


@pytest.mark.parametrize("name", ["policy.launch.py", "sim.launch.py"])
def test_launch_arguments_are_read_as_they_are_meant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = MagicMock()
    for module in ("launch", "launch.actions", "launch.substitutions", "launch_ros", "launch_ros.actions"):
        monkeypatch.setitem(sys.modules, module, MagicMock())
    monkeypatch.setitem(sys.modules, "launch_ros.parameter_descriptions", parameters)
    read = run_path(str(ROOT / "launch" / name))["read"]
    assert [read(bool, word) for word in ("true", "On", " yes ", "1")] == [True] * 4
    assert [read(bool, word) for word in ("false", "OFF", "no", "0")] == [False] * 4
    for word in ("ture", "y", "enable"):
        with pytest.raises(ValueError, match=f"'{word}' is neither true nor false"):
            read(bool, word)
    read(str, "lift it # slowly")
    parameters.ParameterValue.assert_called_once_with("lift it # slowly", value_type=str)


LAUNCHED = """
import sys
from pathlib import Path
from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

file, *arguments = sys.argv[1:]
(path,) = Path(get_package_share_directory("pi0_control")).rglob(file)
pairs = [argument.split(":=", 1) for argument in arguments]
service = LaunchService(argv=arguments)
source = PythonLaunchDescriptionSource(str(path))
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=pairs)]))
service.run()
"""


def test_launched_both_nodes_get_their_arguments(tmp_path) -> None:
    """As ``ros2 launch`` does it; each node gets a name that does not exist, says so and ends."""
    pytest.importorskip("launch_ros", reason="launch and ros2 are not on PyPI: this test needs a sourced ROS")
    prefix = pip_prefix(tmp_path, "--editable")
    arguments = ("demo.launch.py", "task:=Dance", "policy:=nobody", "topics:=joint_states:=/arm/joints", "seed:=3")
    done = run(sys.executable, "-c", LAUNCHED, *arguments, AMENT_PREFIX_PATH=str(prefix))
    for sentence in ("No task 'Dance'", "No policy 'nobody'"):
        assert sentence in done.stdout + done.stderr, done.stdout + done.stderr
