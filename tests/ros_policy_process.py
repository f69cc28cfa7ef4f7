"""policy_node with the swaying policy: ``python tests/ros_policy_process.py --ros-args ...``."""

import sys

from swaying_policy import SwayingPolicy

from pi0_control.ros.policy_node import main

if __name__ == "__main__":
    main(sys.argv, load=lambda config: SwayingPolicy())
