"""``pi0 doctor``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pi0_control.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from pi0_control.doctor import Examination, Finding, Recording
    from pi0_control.doctor.numbers import Numbers
    from pi0_control.policy import PolicyConfig

TABLE_WIDTH = 120  # a table is never cut off, not even in a pipe of 80 columns
COLOURS = {"error": "red", "warning": "yellow"}


def doctor(
    policy: tyro.conf.Positional[str],
    data: Path | None = None,
    policy_config: str | None = None,
    robot: str | None = None,
    asset: str | None = None,
    cameras: dict[str, str] = {},  # noqa: B006  never changed
    joint_states: str = "joint_states",
    commands: str = "joint_commands",
) -> None:
    """Compare a policy with what its robot shows, and say what to change; exits with 1 where something is wrong.

    Args:
        policy: a bundled policy by name, a policy directory or a public checkpoint; its weights are not read.
        data: a LeRobotDataset, or a rosbag of cameras and joint states; without it only the policy is looked at.
        policy_config: for a public checkpoint, a bundled preset such as pi05_droid, or a file with entries of
            policy.json.
        robot: the robot that is driven, by name or as a YAML file.
        asset: whose statistics, where an openpi checkpoint has those of several robots.
        cameras: pairs of a camera of the robot and what the data call it: a camera of the dataset, or a topic.
        joint_states: topic of the joints in a rosbag.
        commands: topic of what was commanded in a rosbag, a JointState.
    """
    from pi0_control.doctor import examine
    from pi0_control.policy.pretrained import read_policy
    from pi0_control.robot import RobotSpec

    spec = None if robot is None else RobotSpec.from_yaml(robot)
    files = read_policy(policy, policy_config, spec, asset)
    config = files.config
    unknown = sorted({*cameras} - {*config.robot.cameras})
    if unknown:
        raise ConfigError(f"--cameras {unknown[0]}: the robot has no such camera; it has {list(config.robot.cameras)}.")
    topics = {"joint_states": joint_states, "commands": commands}
    recording = None if data is None else _read(data, config, cameras, topics)
    found = examine(config, files.require_norm_stats(), recording)
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(*_summary(policy, config, recording), sep="\n")
    console.print(_number_table(found.state), _number_table(found.actions))
    if recording is not None:
        console.print(_camera_table(config, recording))
    _conclude(console, found)


def _read(data: Path, config: "PolicyConfig", cameras: dict[str, str], topics: dict[str, str]) -> "Recording":
    if not data.exists():
        raise DatasetError(f"No dataset or rosbag {data}.")
    if (data / "meta" / "info.json").exists():
        from pi0_control.train.recording import read_recording

        return read_recording(data, cameras)
    from pi0_control.ros.bag import read_bag

    return read_bag(data, config.robot, cameras, **topics)


def _summary(policy: str, config: "PolicyConfig", recording: "Recording | None") -> list[str]:
    robot = config.robot
    lines = [
        f"[bold]{escape(policy)}[/bold]   robot {escape(robot.name)}: {len(robot.joints)} joints, "
        f"{robot.control_rate_hz:g} Hz, {config.action_space}, chunks of {config.model.action_horizon} steps, "
        f"{config.norm}"
    ]
    return lines if recording is None else [*lines, escape(recording.source)]


def _number_table(numbers: "Numbers") -> Table:
    table = Table("", "expected 1 %", "99 %", title=numbers.where, title_justify="left")
    columns = [*numbers.bounds]
    if numbers.values is not None:
        columns += [*numbers.seen_bounds(), 100 * numbers.outside()]
        for title in ("seen 1 %", "99 %", "outside %"):
            table.add_column(title)
    for joint, row in zip(numbers.joints, zip(*columns, strict=True), strict=True):
        table.add_row(escape(joint.name), *(f"{value:.3g}" for value in row))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _camera_table(config: "PolicyConfig", recording: "Recording") -> Table:
    from pi0_control.policy.camera_stats import CameraStats

    table = Table("", "expected", "red-blue", "seen", "red-blue", title="cameras", title_justify="left")
    for camera in (name for name in config.cameras.values() if name is not None):
        known, pictures = config.camera_stats.get(camera), recording.images.get(camera, ())
        expected = (f"{known.width}x{known.height}", f"{known.red_over_blue:+.2f}") if known else ("not known", "")
        sizes = {f"{picture.shape[1]}x{picture.shape[0]}" for picture in pictures}
        seen = (
            (", ".join(sorted(sizes)), f"{CameraStats.of(pictures).red_over_blue:+.2f}") if sizes else ("nothing", "")
        )
        table.add_row(escape(camera), *expected, *seen)
    return table


def _conclude(console: Console, found: "Examination") -> None:
    """The findings; ends the process with 1 where one is an error."""
    errors = sum(finding.severity == "error" for finding in found.findings)
    if found.findings:
        console.print(_finding_table(found.findings))
        console.print(f"Errors: {errors}, warnings: {len(found.findings) - errors}.")
    else:
        console.print("[green]Nothing suspicious.[/green]")
    if errors:
        sys.exit(1)


def _finding_table(findings: Sequence["Finding"]) -> Table:
    table = Table("", "what", "where", "seen", "expected", "change", title="Findings", title_justify="left")
    for finding in findings:
        colour = COLOURS[finding.severity]
        texts = (finding.where, finding.seen, finding.expected, finding.change)
        table.add_row(
            f"[{colour}]{finding.severity}[/{colour}]", f"[{colour}]{finding.name}[/{colour}]", *map(escape, texts)
        )
    return table
