"""policy_node with the swaying policy: ``python tests/ros_policy_process.py --ros-args ...``."""

import sys
import threading

from swaying_policy import SwayingPolicy

from pi0_control.ros.parameters import NodeConfig
from pi0_control.ros.policy_node import main


def load(config: NodeConfig) -> SwayingPolicy:
    """Which takes for ever where the policy is ``endless``."""
    if config.policy == "endless":
        print("loading", flush=True)
        threading.Event().wait()
    return SwayingPolicy()


if __name__ == "__main__":
    main(sys.argv, load=load)
