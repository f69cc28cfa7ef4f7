"""The simulated robot and the policy that drives it: ``ros2 launch pi0_control demo.launch.py task:=PickPlace``.

Takes the arguments of sim.launch.py and policy.launch.py; the prompt is that of the simulated episode.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    """Both nodes."""
    return LaunchDescription([include("sim"), include("policy", prompt_topic="sim_node/prompt")])


def include(name, **arguments):
    """A launch file beside this one."""
    source = PythonLaunchDescriptionSource(str(Path(__file__).with_name(f"{name}.launch.py")))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())
