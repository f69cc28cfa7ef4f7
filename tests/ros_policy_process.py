"""policy_node with the swaying policy: ``python -m tests.ros_policy_process --ros-args ...``."""

import sys

from pi0_control.ros.policy_node import main
from tests.swaying_policy import SwayingPolicy

if __name__ == "__main__":
    main(sys.argv, load=lambda config: SwayingPolicy())
