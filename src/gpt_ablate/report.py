"""Write the report of a study from the files of its runs: `python -m gpt_ablate.report outputs/<study>`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt_ablate.reporting.report_writer import write
from gpt_ablate.utils import streams
from gpt_ablate.utils.messages import refusals


@streams.outlive(needed=True)
def main() -> None:
    """The command: the answer and a table on the terminal; pages, figures and results.csv beside the runs."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.report", description=__doc__)
    parser.add_argument("study", type=Path, help="a folder that holds runs")
    parser.add_argument("--to", type=Path, help="where to write (default: the study's folder)")
    parser.add_argument("--allow-missing", action="store_true", help="compare the complete pairs if runs are missing")
    parser.add_argument(
        "--noise-floor",
        type=Path,
        metavar="STUDY",
        help="an A/A control to compare the effects with (default: aa_control-<model> next to the study's folder)",
    )
    args = parser.parse_args()
    with refusals():
        write(
            args.study,
            args.to or args.study,
            streams.console(),
            allow_missing=args.allow_missing,
            noise_floor=args.noise_floor,
        )


if __name__ == "__main__":
    main()
