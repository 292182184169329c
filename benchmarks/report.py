"""How long the report of a large study takes: `python -m benchmarks.report`, from the project's folder.

Writes 1,000 runs of 1,000 logged steps into a temporary folder, lets `python -m gpt_ablate.report` read them in a
process of its own, and prints seconds, peak memory and whether torch was imported.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.synthetic import Levels, Shape, make_study

CELLS = {"norm": ["post", "pre"], "layers": ["fresh", "clone"], "attention": ["looped", "parallel"]}
COMMAND = """
import sys
from gpt_ablate import report
sys.argv[1:] = {arguments!r}
report.main()
print("torch imported:", "torch" in sys.modules)
"""


def main() -> None:
    """Make the study, time the report, exit with 1 if torch was imported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=125, help="runs for each of 8 cells")
    parser.add_argument("--steps", type=int, default=1000, help="logged steps of a run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "factorial-micro"
        shape = Shape(steps=args.steps, steps_per_epoch=max(1, args.steps // 10))
        make_study(root, CELLS, range(args.seeds), _loss, shape=shape)
        print(f"{args.seeds * 8} runs of {args.steps} steps")
        code = COMMAND.format(arguments=[str(root)])
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{seconds:.1f} s, peak {peak:.2f} GB")
        print(done.stdout.splitlines()[-1])
        sys.exit("torch imported: True" in done.stdout)


def _loss(levels: Levels, seed: int) -> float:
    effects = (levels["norm"] == "pre", levels["layers"] == "clone", levels["attention"] == "parallel")
    return 6 - 3 * effects[0] + 0.2 * effects[1] + 0.1 * math.sin(seed + sum(2**i for i in range(3) if effects[i]))


if __name__ == "__main__":
    main()
