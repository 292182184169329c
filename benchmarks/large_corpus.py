"""A run on a corpus of 10**10 tokens: `python -m benchmarks.large_corpus`, from the project's folder.

The shards are sparse files, which hold zeros and take no place on the disk; only the index is written. Measured are
the seconds to the first step and the peak memory, for shards of several totals (they should not grow with it), and
for both orders; and a run that is stopped after half of its steps and continued gives the losses of one that is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import common

SHARD = 10**8
MODEL = ("model=micro", "model.context_length=64", "trainer.eval_every=null", "trainer.eval_batches=1")
END = ("trainer.final_eval_batches=1", "trainer.device=cpu", "trainer.threads=1", "trainer.sample_every=null")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e8, 1e9, 1e10])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir="outputs") as made:
        folder = Path(made)
        for tokens in map(int, args.tokens):
            write(folder / f"{tokens}", tokens)
        names = [f"{int(tokens)} {order}" for tokens in args.tokens for order in ("permutation", "replacement")]
        found = common.in_turn(args.rounds, names, lambda name: _measure(name, folder))
        for name, runs in found.items():
            tokens, order = name.split()
            rows.append(
                {
                    "tokens": tokens,
                    "order": order,
                    "seconds_to_first_step": round(min(one["seconds"] for one in runs), 2),
                    "peak_memory_mb": round(max(one["peak_memory_mb"] for one in runs)),
                    "machine": common.machine(),
                }
            )
        _check_resume(folder, int(max(args.tokens)))
    better = {"seconds_to_first_step": "less", "peak_memory_mb": "less"}
    common.record("large_corpus", rows, ["tokens", "order"], better)


def write(folder: Path, tokens: int) -> None:
    """A folder of shards whose tokens are all 0, and a validation split of one shard of 10**6."""
    from gpt_ablate.data import shards, tokenizer_files
    from gpt_ablate.data.gpt2_encoding import Gpt2
    from gpt_ablate.data.shards import Index, Shard, SplitIndex

    folder.mkdir()
    tokenizer = Gpt2()
    length = int(tokenizer.byte_lengths()[0])

    def split(name: str, total: int) -> SplitIndex:
        sizes = [min(SHARD, total - start) for start in range(0, total, SHARD)]
        for file, size in zip(shards.names(name, len(sizes)), sizes, strict=True):
            (folder / file).touch()
            os.truncate(folder / file, 2 * size)
        every = [Shard(tokens=size, bytes=size * length, sha256="") for size in sizes]
        digest = hashlib.sha256(f"{name} {total}".encode()).hexdigest()
        return SplitIndex(
            documents=1, tokens=total, bytes=total * length, unigram_entropy=0.0, sha256=digest, shards=every
        )

    tokenizer_files.save(tokenizer, folder / shards.TOKENIZER)
    index = Index(
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        source_sha256="",
        arguments={"tokenizer": {"name": "gpt2"}},
        train=split("train", tokens),
        val=split("val", 10**6),
    )
    shards.write_index(folder, index)


def _measure(name: str, folder: Path) -> dict[str, Any]:
    tokens, order = name.split()
    began = time.time()
    to = folder / f"first-{time.time_ns()}"
    first = _train(folder / tokens, to, order, "plugins=[benchmarks.first_step]", "trainer.max_steps=20")
    seconds = float(first.splitlines()[-1]) - began
    peak = _losses(folder, tokens, order, f"memory-{time.time_ns()}", 20)["peak"]
    return {"seconds": round(seconds, 2), "peak_memory_mb": peak / 1e6}


def _train(data: Path, to: Path, order: str, *overrides: str) -> str:
    command = [
        *(sys.executable, "-m", "gpt_ablate.train", "data=tokens", f"data.dir={data}", f"hydra.run.dir={to}"),
        *(f"data.replacement={str(order == 'replacement').lower()}", *MODEL, *END, *overrides),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return done.stdout


def _losses(folder: Path, tokens: str, order: str, name: str, steps: int, *more: str) -> dict[str, Any]:
    """The losses of a run of so many steps, and the peak of its resident memory."""
    to = folder / name
    _train(folder / tokens, to, order, f"trainer.max_steps={steps}", *more)
    lines = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((to / "result.json").read_text())
    return {
        "losses": {line["step"]: line["train/loss"] for line in lines if "train/loss" in line},
        "peak": next(value for key, value in _flat(result) if key.endswith("peak_rss_bytes")),
    }


def _flat(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    return [pair for key, each in tree.items() for pair in (_flat(each) if isinstance(each, dict) else [(key, each)])]


def _check_resume(folder: Path, tokens: int) -> None:
    """Stop a run in the middle and continue it. Raises AssertionError if its losses are not those of one at once."""
    expected = _losses(folder, str(tokens), "permutation", "whole", 40)["losses"]
    to = folder / "stopped"
    command = [
        *(sys.executable, "-m", "gpt_ablate.train", "data=tokens", f"data.dir={folder / str(tokens)}"),
        *(f"hydra.run.dir={to}", *MODEL, *END, "trainer.max_steps=40", "trainer.checkpoint_every=5"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    while process.poll() is None and not list(to.glob("checkpoint/step_*")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    found = _losses(folder, str(tokens), "permutation", "stopped", 40, "trainer.checkpoint_every=5")["losses"]
    assert found == expected, "a run that was stopped and continued has other losses"
    print("a run that was killed and continued has the losses of one that was not")


if __name__ == "__main__":
    main()
