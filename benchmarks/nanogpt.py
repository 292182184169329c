"""nanoGPT's small CPU benchmark, here and by nanoGPT itself: `python -m benchmarks.nanogpt --nanogpt FOLDER`.

FOLDER is your checkout of nanoGPT, whose data/shakespeare_char/prepare.py has run. For each seed, in turn:
`experiment=nanogpt_shakespeare_char` here, with start, samples and report, and nanoGPT's train.py with the flags that
its README gives for a CPU (about 90 seconds each). The losses are those of the validation split after the last step:
here of all of its windows, there of 200 random batches, which the measured seconds leave out.
The study stays in outputs/nanogpt_shakespeare_char.

`--same-batches` instead: how far apart the losses of 200 steps are, from the same weights on the same batches at
nanoGPT's learning rates.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
    parser.add_argument("--same-batches", action="store_true")
    args = parser.parse_args()
    if args.same_batches:
        print(json.dumps(_on_same_batches(args.nanogpt, 200)))
        return
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


def _on_same_batches(folder: Path, steps: int) -> dict[str, float]:
    """The largest differences of loss and of gradient's norm over so many steps."""
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # nanoGPT's

    torch.manual_seed(0)
    its = GPT(GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False))
    optimizer = its.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    tokens = torch.from_numpy(np.fromfile(folder / "data/shakespeare_char/train.bin", np.uint16).astype(np.int64))
    draws = torch.Generator().manual_seed(1)
    losses, norms = [], []
    with common.training(common.config_of("experiment=nanogpt_shakespeare_char", "data=shakespeare")) as trainer:
        _copy(its, trainer.model)
        trainer.schedule = lambda step, _: _rate(step - 1)
        for step in range(1, steps + 1):
            starts = torch.randint(len(tokens) - 64, (12,), generator=draws).tolist()
            windows = torch.stack([tokens[start : start + 65] for start in starts])
            batch = windows[:, :-1], windows[:, 1:].contiguous()
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * _rate(step - 1)
            _, loss = its(*batch)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(its.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            trainer._parts = lambda _, batch=batch: [batch]
            line = trainer._optimise(step)
            losses.append(abs(loss.item() - line["train/loss"]))
            norms.append(abs(norm.item() - line["grad_norm"]))
    return {"steps": steps, "loss": max(losses), "grad_norm": max(norms)}


def _rate(done: int) -> float:
    """Of the largest learning rate, nanoGPT's after so many steps: its warm-up ends at step 101 and not at 100."""
    if done < 100:
        return (done + 1) / 101
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 100) / 1900))


@torch.no_grad()
def _copy(its: nn.Module, ours: nn.Module) -> None:
    parts = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "layers.": "transformer.h.",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.fc": "mlp.c_fc",
        "mlp.out": "mlp.c_proj",
    }
    values = dict(its.named_parameters())
    for name, parameter in ours.named_parameters():
        for part, called in parts.items():
            name = name.replace(part, called)
        parameter.copy_(values[name])


if __name__ == "__main__":
    main()
