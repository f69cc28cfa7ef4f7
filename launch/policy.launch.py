"""The policy: ``ros2 launch pi0_control policy.launch.py policy:=mini prompt:='pick up the red block'``."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
PARAMETERS = {  # left out, what params_file says holds
    "policy": (str, "mini, hold, a policy directory, or the address of a server, ws://host:port"),
    "robot": (str, "a robot file, or the name of a bundled one"),
    "policy_config": (str, "what a public checkpoint does not tell: a preset such as pi05_droid, or a file"),
    "asset": (str, "whose statistics, where an openpi checkpoint has those of several robots"),
    "tokenizer": (str, "SentencePiece file, where none lies in or beside the policy"),
    "prompt": (str, "the instruction; the topic ~/prompt changes it"),
    "output": (str, "joint_state, positions, trajectory or twist"),
    "device": (str, "where the policy is computed, such as cpu or cuda"),
    "enabled": (bool, "true: drive from the beginning; else call the service ~/enable"),
    "dry_run": (bool, "true: infer and judge, but publish no command"),
    "lock_step": (bool, "true: answer every observation of a sim_node that waits"),
    "use_sim_time": (bool, "true: take the time from /clock"),
}
OPTIONS = {
    "params_file": ("policy_arm6.yaml", "parameters: a file, or the name of one beside this launch file"),
    "autostart": ("true", "configure and activate the node; false: a lifecycle manager does"),
    "namespace": ("", "in front of all names"),
    "topics": ("", "other names of topics, such as 'base_0_rgb/image_raw:=/camera/image joint_states:=/arm/joints'"),
    "prompt_topic": ("~/prompt", "where prompts come from"),
}


def generate_launch_description():
    """One node, policy_node."""
    about = {**{name: ("", text) for name, (_, text) in PARAMETERS.items()}, **OPTIONS}
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in about.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=policy_node)])


def policy_node(context):
    """The node with the arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (*PARAMETERS, *OPTIONS)}
    parameters = {name: read(kind, given[name]) for name, (kind, _) in PARAMETERS.items() if given[name]}
    parameters["autostart"] = read(bool, given["autostart"])
    remappings = [tuple(rule.split(":=")) for rule in given["topics"].split()]
    node = Node(
        package="pi0_control",
        executable="policy_node",
        name="policy_node",
        namespace=given["namespace"],
        parameters=[find(given["params_file"]), parameters],
        remappings=[*remappings, ("~/prompt", given["prompt_topic"])],
        output="screen",
    )
    return [node]


def find(params_file):
    """The file of this path, or else of this name beside the launch file."""
    beside = Path(__file__).with_name(params_file)
    return str(params_file if Path(params_file).exists() or not beside.exists() else beside)


def read(kind, text):
    """An argument as a parameter has it; text as it is, which launch would read as YAML."""
    if kind is not bool:
        return ParameterValue(kind(text), value_type=kind)
    if text.strip().lower() not in TRUE | FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.strip().lower() in TRUE
