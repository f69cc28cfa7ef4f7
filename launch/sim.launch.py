"""The simulated robot: ``ros2 launch pi0_control sim.launch.py task:=Stack``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
PARAMETERS = {  # left out, the node's own default holds
    "task": (str, "Reach, Lift, PickPlace or Stack"),
    "perturb": (str, "what varies in the scenes, as for pi0 eval"),
    "seed": (int, "of the first episode; every reset counts it up"),
    "lock_step": (bool, "true: time stands still until a command answers the observation"),
    "publish_clock": (bool, "true: simulated time on /clock"),
}
OPTIONS = {
    "namespace": "in front of all names",
    "topics": "other names of topics, such as 'joint_states:=/arm/joint_states joint_trajectory:=/arm/trajectory'",
}


def generate_launch_description():
    """One node, sim_node."""
    about = {**{name: text for name, (_, text) in PARAMETERS.items()}, **OPTIONS}
    arguments = [DeclareLaunchArgument(name, default_value="", description=text) for name, text in about.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=sim_node)])


def sim_node(context):
    """The node with the arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (*PARAMETERS, *OPTIONS)}
    parameters = {name: read(kind, given[name]) for name, (kind, _) in PARAMETERS.items() if given[name]}
    remappings = [tuple(rule.split(":=")) for rule in given["topics"].split()]
    node = Node(
        package="pi0_control",
        executable="sim_node",
        name="sim_node",
        namespace=given["namespace"],
        parameters=[parameters],
        remappings=remappings,
        output="screen",
    )
    return [node]


def read(kind, text):
    """An argument as a parameter has it; text as it is, which launch would read as YAML."""
    if kind is not bool:
        return ParameterValue(kind(text), value_type=kind)
    if text.strip().lower() not in TRUE | FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.strip().lower() in TRUE
