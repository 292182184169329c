"""How the runs of a study stand: `python -m gpt_ablate.status outputs/<study>`, from their files alone."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gpt_ablate.reporting.run_status import Standing, _caption, aligned, look, table
from gpt_ablate.utils import streams
from gpt_ablate.utils.messages import refusals

_SECONDS_BETWEEN_LOOKS = 2
_MOST_ROWS = 1000
"""Rows of a table on a terminal at its end: more would only scroll by."""
_LINES_BESIDE = 5
"""Lines of a screen that the title of the table, its caption and the prompt may take."""


@streams.outlive(needed=True)
def main() -> None:
    """The command: a table that follows the runs until none goes on; into a file or a pipe a line for each run."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.status", description=__doc__)
    parser.add_argument("study", type=Path, help="a folder that holds runs")
    args = parser.parse_args()
    console = streams.console()
    with refusals():
        standings = look(args.study)
        if console.is_terminal:
            _follow(args.study, standings, console)
        else:
            print("\n".join([*aligned(standings), _caption(standings)]))


def _follow(study: Path, standings: list[Standing], console: Console) -> None:
    """As much as the screen holds while a run goes on; Ctrl-C ends it."""

    def fitting() -> Table:
        return table(standings, max(1, console.height - _LINES_BESIDE))

    try:
        if _goes_on(standings):
            with Live(fitting(), console=console, auto_refresh=False, transient=True) as live:
                while _goes_on(standings):
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    standings = look(study)
                    live.update(fitting(), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(table(standings, _MOST_ROWS))


def _goes_on(standings: list[Standing]) -> bool:
    return any(standing.status == "running" for standing in standings)


if __name__ == "__main__":
    main()
