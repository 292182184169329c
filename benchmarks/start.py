"""From the command to a small model's first training step, against `import torch`: `python -m benchmarks.start`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from . import common

COMMANDS = {
    "import torch": ["-c", "import torch, time; print(time.time())"],
    "gpt_ablate": [
        *("-m", "gpt_ablate.train", "model=mini", "data=sample", "plugins=[benchmarks.first_step]"),
    ],
}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for name in COMMANDS:
        _seconds(name)  # fills the disk's cache
    found = common.in_turn(args.rounds, list(COMMANDS), _seconds)
    seconds = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    above = [ours - torch for ours, torch in zip(seconds["gpt_ablate"], seconds["import torch"], strict=True)]
    rows = [
        {
            "command": name,
            "seconds": round(statistics.median(its), 2),
            "least": round(min(its), 2),
            "most": round(max(its), 2),
            "above_import_torch": round(statistics.median(above), 2) if name == "gpt_ablate" else 0,
            "machine": common.machine(),
        }
        for name, its in seconds.items()
    ]
    common.record("start", rows, ["command"], {"above_import_torch": "less"})


def _seconds(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        end = [f"hydra.run.dir={folder}/run"] if name == "gpt_ablate" else []
        began = time.time()
        done = subprocess.run([sys.executable, *COMMANDS[name], *end], check=True, capture_output=True, text=True)  # noqa: S603
    return {"seconds": round(float(done.stdout.splitlines()[-1]) - began, 3)}


if __name__ == "__main__":
    main()
