"""``python -m samrt``."""

from samrt.cli import main

main()
