"""The ``pi0`` command: composes the rooms; each subcommand is one file with one function."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from pi0_control.cli.evaluate import evaluate
from pi0_control.cli.inspect import inspect
from pi0_control.cli.record import record
from pi0_control.cli.train import train
from pi0_control.errors import Pi0Error

SUBCOMMANDS: dict[str, Callable[..., Any]] = {"eval": evaluate, "inspect": inspect, "record": record, "train": train}
EXTRA_OF = {"pyarrow": "train", "tensorboard": "train"}


def main() -> None:
    """Entry point of ``pi0``; user mistakes end with one sentence on stderr and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            SUBCOMMANDS,
            prog="pi0",
            description="π0 and π0.5 policies: record demonstrations, train, and evaluate in simulation.",
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
