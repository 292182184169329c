"""nanoGPT's small CPU benchmark, here and by nanoGPT itself: `python -m benchmarks.nanogpt --nanogpt FOLDER`.

FOLDER is your checkout of nanoGPT, whose data/shakespeare_char/prepare.py has run. For each seed, in turn:
`experiment=nanogpt_shakespeare_char` here, with start, samples and report, and nanoGPT's train.py with the flags that
its README gives for a CPU (about 90 seconds each). The losses are those of the validation split after the last step:
here of all of its windows, there of 200 random batches, which the measured seconds leave out.
The study stays in outputs/nanogpt_shakespeare_char.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from . import common

STUDY = Path("outputs/nanogpt_shakespeare_char")
FLAGS = [
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
SCRIPT = """
import json, sys, time, torch
began, seed = float(sys.argv.pop(1)), int(sys.argv.pop(1))
own = torch.manual_seed
torch.manual_seed = lambda number: own(number + seed)  # train.py fixes 1337
names = {"__name__": "__main__"}
exec(compile(open("train.py").read(), "train.py", "exec"), names)
seconds = time.time() - began
names["eval_iters"] = 200
print(json.dumps({"seconds": seconds, "val_loss": names["estimate_loss"]()["val"].item()}))
"""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT with its data prepared")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    measured: dict[str, int] = defaultdict(int)

    def measure(name: str) -> dict[str, Any]:
        seed = measured[name]
        measured[name] += 1
        return _here(seed) if name == "gpt_ablate" else _nanogpt(args.nanogpt, seed)

    found = common.in_turn(args.seeds, ["gpt_ablate", "nanogpt"], measure)
    rows = [
        {
            "tool": name,
            "seeds": args.seeds,
            "seconds": round(statistics.median(one["seconds"] for one in runs), 1),
            "val_loss": round(statistics.mean(one["val_loss"] for one in runs), 4),
            "val_loss_sd": round(statistics.stdev(one["val_loss"] for one in runs), 4) if args.seeds > 1 else "",
            "machine": common.machine(),
        }
        for name, runs in found.items()
    ]
    common.record("nanogpt", rows, ["tool"], {"seconds": "less", "val_loss": "less"})


def _here(seed: int) -> dict[str, Any]:
    began = time.time()
    given = ["--multirun", "experiment=nanogpt_shakespeare_char", f"seed={seed}"]
    subprocess.run([sys.executable, "-m", "gpt_ablate.train", *given], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    seconds = time.time() - began
    result = json.loads(next(STUDY.glob(f"**/seed_{seed}/result.json")).read_text())
    return {"seconds": seconds, "val_loss": result["final"]["eval/val_loss"]}


def _nanogpt(folder: Path, seed: int) -> dict[str, Any]:
    own = ["-c", SCRIPT, str(time.time()), str(seed), "config/train_shakespeare_char.py", *FLAGS]
    done = subprocess.run([sys.executable, *own], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
