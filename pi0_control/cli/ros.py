"""``pi0 ros``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pi0_control.cli.evaluate import EVALUATION_SEED
from pi0_control.cli.remote import connect, is_address
from pi0_control.cli.terminal import check_counts

if TYPE_CHECKING:
    from pi0_control.policy import Policy
    from pi0_control.ros.parameters import NodeConfig

ROS_ARGS = "--ros-args"


@dataclass(frozen=True)
class PolicyNode:
    """The node that drives a robot: cameras and joint states in, commands out.

    Attributes:
        policy: mini (bundled), hold (stays where it is), a policy directory, or the address of a server, ws://host:port.
        robot: a robot file, or the name of a bundled one.
        policy_config: what a public checkpoint does not tell: a preset such as pi05_droid, or a file.
        asset: whose statistics, where an openpi checkpoint has those of several robots.
        tokenizer: SentencePiece file, where none lies in or beside the policy.
        prompt: the instruction.
        output: kind of the commands: joint_state, positions, trajectory, or twist for policies that move a hand.
        device: where the policy is computed, such as cpu or cuda.
        enabled: drive from the beginning; otherwise the service enable has to be called.
        lock_step: answer every observation of a sim_node that waits.
        autostart: configure and activate by itself.
    """

    policy: str | None = None
    robot: str | None = None
    policy_config: str | None = None
    asset: str | None = None
    tokenizer: str | None = None
    prompt: str | None = None
    output: Literal["joint_state", "positions", "trajectory", "twist"] | None = None
    device: str | None = None
    enabled: bool = False
    lock_step: bool = False
    autostart: bool = True


@dataclass(frozen=True)
class SimNode:
    """The simulated robot and its table on ROS topics.

    Attributes:
        task: of the episodes: Reach, Lift, PickPlace or Stack.
        perturb: what varies in the scenes, as for pi0 eval.
        seed: of the first episode; every reset counts it up.
        lock_step: simulate a control period per command, however long it takes.
        publish_clock: publish simulated time on /clock.
    """

    task: str | None = None
    perturb: str | None = None
    seed: int | None = None
    lock_step: bool = False
    publish_clock: bool = False


@dataclass(frozen=True)
class Examination:
    """Plays episodes with a policy_node and a sim_node that are running, and counts the successes.

    Attributes:
        task: Reach, Lift, PickPlace or Stack.
        episodes: how many.
        seed: of the first; the next ones count up.
        limit_s: how long an episode may take.
    """

    task: str = "Lift"
    episodes: int = 20
    seed: int = EVALUATION_SEED
    limit_s: float = 300.0


Node = (
    Annotated[PolicyNode, tyro.conf.subcommand("policy")]
    | Annotated[SimNode, tyro.conf.subcommand("sim")]
    | Annotated[Examination, tyro.conf.subcommand("eval")]
)


def ros(
    node: Annotated[Node, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes],
) -> None:
    """Run a node of ROS 2, or an evaluation through both; arguments from --ros-args on go to ROS, and come last."""
    _, forwarded = split(sys.argv[1:])
    if isinstance(node, Examination):
        _examine(node, forwarded)
    elif isinstance(node, SimNode):
        from pi0_control.ros.sim_node import main as run_sim
        from sims.live import LiveTabletop

        run_sim(LiveTabletop(), [*_parameters(node), *forwarded])
    else:
        from pi0_control.ros.policy_node import main as run_policy

        run_policy([*_parameters(node), *forwarded], load=load_policy)


def load_policy(config: "NodeConfig") -> "Policy":
    """The policy that policy_node plays: of a server where ``policy`` is an address, else one of this machine."""
    from pi0_control.robot import RobotSpec
    from pi0_control.ros import policy_node

    if not is_address(config.policy):
        return policy_node.local_policy(config)
    robot = RobotSpec.from_yaml(config.robot) if config.robot else None
    return connect(config.policy, robot, config.safety.max_inference_s)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those of ROS, which follow ``--ros-args``."""
    at = arguments.index(ROS_ARGS) if arguments[:1] == ["ros"] and ROS_ARGS in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at:])


def _parameters(node: Any) -> list[str]:
    """The options that were given, as parameters of the node."""
    given = {name: value for name, value in vars(node).items() if value is not None and value is not False}
    settings = [f"{name}:={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    return [ROS_ARGS, *(part for setting in settings for part in ("-p", setting))] if settings else []


def _examine(examination: Examination, forwarded: list[str]) -> None:
    from pi0_control.ros.evaluate import examine

    check_counts(examination.episodes, examination.seed)
    seeds = range(examination.seed, examination.seed + examination.episodes)
    count = successes = 0
    try:
        for episode in examine(examination.task, seeds, examination.limit_s, forwarded):
            count, successes = count + 1, successes + episode["is_success"]
            outcome = "success" if episode["is_success"] else "failure"
            print(f"{episode['seed']}  {outcome} after {episode['steps']:3d} steps  {episode['prompt']}", flush=True)
    finally:
        if count:  # of those there were, if it is cut off
            print(f"{examination.task}: {successes} of {count} episodes, {100 * successes / count:.0f} %")
