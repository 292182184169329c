"""Two checkouts of the project in turn: `python -m benchmarks.versions OLDER` (about 15 minutes).

Seconds of a training step (GPT-2 small, B = 2, T = 256, fp32, dropout 0) and from the command to a small model's first
step, each in a process of its own, run in the checkout with this environment's packages. Ratios are medians of the
ratios within a round: above 1, this checkout is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import common

HERE = Path(__file__).parents[1]
FIRST_STEP = ["-m", "gpt_ablate.train", "model=mini", "data=sample", "plugins=[benchmarks.first_step]"]
STEP = ["-m", "benchmarks.step", "--worker", "parallel"]


def main() -> None:
    """Measure and print; nothing is recorded, since no other checkout is part of the project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="a checkout of the project, such as a git worktree of a commit")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    folders = {"older": args.older.absolute(), "this": HERE}
    for what, measure in (("start", _start), ("step", _step)):
        for folder in folders.values():
            measure(folder)  # fills the disk's cache
        found = common.in_turn(args.rounds, list(folders), lambda name, measure=measure: measure(folders[name]))
        ratios = [ours["seconds"] / older["seconds"] for ours, older in zip(found["this"], found["older"], strict=True)]
        told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{what}: this / older {statistics.median(ratios):.3f} (of rounds: {told})")


def _step(folder: Path) -> dict[str, Any]:
    return {"seconds": json.loads(_last_line(folder, STEP))["seconds"]}


def _start(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        began = time.time()
        first_step = float(_last_line(folder, [*FIRST_STEP, f"hydra.run.dir={place}/run"]))
    return {"seconds": round(first_step - began, 3)}


def _last_line(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
