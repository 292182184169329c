"""How long the state of a large study takes to tell: `python -m benchmarks.status`, from the project's folder.

Writes a study of 20,000 planned runs, of which 2,000 are there, into a temporary folder, lets
`python -m gpt_ablate.status` read it in a process of its own, into a pipe and onto a terminal, and prints seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.synthetic import make_study

RATES = [round(1e-4 * (i + 1), 6) for i in range(20)]


def main() -> None:
    """Make the study and time the command twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planned", type=int, default=20_000, help="runs in study.json")
    parser.add_argument("--recorded", type=int, default=2_000, help="how many of them are there")
    args = parser.parse_args()
    there, planned = (range(number // len(RATES)) for number in (args.recorded, args.planned))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "rates-micro"
        absent = [f"pre-fresh-parallel-optimizer.lr_{rate}/seed_{seed}" for rate in RATES for seed in planned]
        kept = {f"pre-fresh-parallel-optimizer.lr_{rate}/seed_{seed}" for rate in RATES for seed in there}
        make_study(root, {"optimizer.lr": RATES}, planned, statuses=dict.fromkeys(set(absent) - kept, "missing"))
        print(f"{len(absent)} runs planned, {len(kept)} recorded")
        command = [sys.executable, "-m", "gpt_ablate.status", str(root)]
        for where, run in (("pipe", subprocess.check_output), ("terminal", _on_a_terminal)):
            began = time.perf_counter()
            told = run(command)
            print(f"{where}: {time.perf_counter() - began:.1f} s, {len(told.splitlines())} lines")


def _on_a_terminal(command: list[str]) -> bytes:
    mine, its = os.openpty()
    with subprocess.Popen(command, stdout=its):  # noqa: S603
        os.close(its)
        told = []
        while part := _read(mine):
            told.append(part)
    os.close(mine)
    return b"".join(told)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what Linux tells of a terminal that the other side has closed
        return b""


if __name__ == "__main__":
    main()
