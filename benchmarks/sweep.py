"""What a sweep costs beside its runs, and how best to share two cores: `python -m benchmarks.sweep` (about 20 minutes).

overhead: `--multirun` of the eight cells, `model=mini`, 10 epochs, the report included, over the sum of the runs' own
times from their first training step to their result.
arrangement: four runs of GPT-2 small (4 steps and two evaluations each), one after the other with all
cores each, or in as many processes as there are cores with one thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import common

EIGHT = ["norm=pre,post", "layers=fresh,clone", "attention=looped,parallel", "model=mini", "trainer.max_epochs=10"]
FOUR = [
    "model=gpt2",
    "seed=1,2,3,4",
    "trainer.max_steps=4",
    "trainer.eval_every=0",
    "trainer.sample_every=0",
    "trainer.checkpoint_every=0",
]
ARRANGEMENTS = {"one after the other": [], "joblib": ["hydra/launcher=joblib"]}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the overhead; half of them of the arrangements")
    args = parser.parse_args()
    overhead = common.in_turn(args.rounds, ["eight cells"], lambda _: _sweep(EIGHT))["eight cells"]
    arranged = common.in_turn(
        max(1, args.rounds // 2), list(ARRANGEMENTS), lambda name: _sweep(FOUR + ARRANGEMENTS[name])
    )
    alone = [one["seconds"] for one in arranged["one after the other"]]
    rows = [
        {
            "sweep": "eight cells, mini",
            "seconds": round(statistics.median(one["seconds"] for one in overhead), 1),
            "of_runs": round(statistics.median(one["seconds"] / one["of_runs"] for one in overhead), 3),
            "of_sequential": "",
            "machine": common.machine(),
        }
    ]
    for name, its in arranged.items():
        rows.append(
            {
                "sweep": f"four of GPT-2 small, {name}",
                "seconds": round(statistics.median(one["seconds"] for one in its), 1),
                "of_runs": "",
                "of_sequential": round(
                    statistics.median(one["seconds"] / base for one, base in zip(its, alone, strict=True)), 3
                ),
                "machine": common.machine(),
            }
        )
    common.record("sweep", rows, ["sweep"], {"of_runs": "less", "of_sequential": "less"})


def _sweep(overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir="outputs") as folder:
        began = time.perf_counter()
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "gpt_ablate.train", "--multirun", *overrides, f"hydra.sweep.dir={folder}/study"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
        runs = [_own_seconds(path.parent) for path in Path(folder).rglob("result.json")]
    return {"seconds": round(seconds, 2), "of_runs": round(sum(runs), 2), "runs": len(runs)}


def _own_seconds(run: Path) -> float:
    """From the beginning of the first training step to the writing of result.json."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["step"] == 1)
    before = first["wall_time"] - first["tokens"] / first["tokens_per_second"]
    return json.loads((run / "result.json").read_text())["wall_time"] - before


if __name__ == "__main__":
    main()
