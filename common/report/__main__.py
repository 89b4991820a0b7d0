"""`python -m common.report`, see `common/report/command.py`."""

from common import cli
from common.report.command import Report, main

if __name__ == "__main__":
    cli.command(main, Report)
