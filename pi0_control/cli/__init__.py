"""The ``pi0`` command: composes the rooms; each subcommand is one file with one function."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from pi0_control.cli.bench import bench
from pi0_control.cli.convert import convert
from pi0_control.cli.doctor import doctor
from pi0_control.cli.evaluate import evaluate
from pi0_control.cli.inspect import inspect
from pi0_control.cli.record import record
from pi0_control.cli.ros import ros, split
from pi0_control.cli.serve import serve
from pi0_control.cli.train import train
from pi0_control.errors import Pi0Error

SUBCOMMANDS: dict[str, Callable[..., Any]] = {
    "bench": bench,
    "convert": convert,
    "doctor": doctor,
    "eval": evaluate,
    "inspect": inspect,
    "record": record,
    "ros": ros,
    "serve": serve,
    "train": train,
}
EXTRA_OF = {"pyarrow": "train", "rclpy": "ros", "rosbags": "bag", "tensorboard": "train"}


def main() -> None:
    """Entry point of ``pi0``; user mistakes end with one sentence on stderr and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            SUBCOMMANDS,
            prog="pi0",
            description="π0 and π0.5 policies: record demonstrations, train, evaluate in simulation, drive over ROS 2.",
            args=split(sys.argv[1:])[0],
        )
    except Pi0Error as error:
        print(f"pi0: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"pi0: {error.filename}: {error.strerror}." if error.filename else f"pi0: {error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("pi0: interrupted.", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get(error.name or "")
        if extra is None:
            raise
        print(f"pi0: {error.name} is not installed; pip install 'pi0-control[{extra}]' brings it.", file=sys.stderr)
        sys.exit(2)


def policy_node() -> None:
    """Entry point of the executable that ``ros2 run`` and ``ros2 launch`` start."""
    sys.argv[1:1] = ["ros", "policy", "--no-autostart"]
    main()


def sim_node() -> None:
    """Entry point of the executable that ``ros2 run`` and ``ros2 launch`` start."""
    sys.argv[1:1] = ["ros", "sim"]
    main()
