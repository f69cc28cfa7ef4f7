"""policy_node with the swaying policy: ``python tests/ros_policy_process.py --ros-args ...``."""

import itertools
import sys
import threading
from typing import Any

from swaying_policy import SwayingPolicy

from pi0_control.ros.outputs import Output
from pi0_control.ros.parameters import NodeConfig
from pi0_control.ros.policy_node import main


def load(config: NodeConfig) -> SwayingPolicy:
    """Which takes for ever where the policy is ``endless``; where it is ``stuck``, the tenth command does."""
    if config.policy == "endless":
        print("loading", flush=True)
        threading.Event().wait()
    if config.policy == "stuck":
        send, numbers = Output.send, itertools.count(1)

        def stuck(*command: Any) -> None:
            send(*command)
            if next(numbers) == 10:
                threading.Event().wait()

        Output.send = stuck  # type: ignore[method-assign]
    return SwayingPolicy()


if __name__ == "__main__":
    main(sys.argv, load=load)
