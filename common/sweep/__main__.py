"""`python -m common.sweep`, see `common/sweep/command.py`."""

from common import cli
from common.sweep.command import Sweep, main

if __name__ == "__main__":
    cli.command(main, Sweep)
