"""``python -m pi0_control.cli``."""

from pi0_control.cli import main

main()
