"""A training step against its peers and against the floor: `python -m benchmarks.step` (about 30 minutes).

Step: zero_grad, forward, loss, backward, AdamW; for this project with all that its trainer does in one (gradient norm,
checks for finite numbers, schedule, random streams). GPT-2 small, untied head, B = 2, T = 256, fp32. Every measurement
is a process of its own (a first step that is not counted, then two), all in turn, so that a slow minute falls on all.
The floor is the arithmetic of a step at the rate of a large SGEMM, by the quicker of torch's two libraries, and one
pass of the optimiser (28 bytes a parameter) at the memory's rate, both measured in turn with the rest.
Peers: requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from torch import Tensor

from . import common, peers

OURS = {
    "parallel": ("attention=parallel", "model.dropout=0"),
    "looped": ("attention=looped", "model.dropout=0"),
    "sdpa": ("attention=sdpa", "model.dropout=0"),
    "parallel, dropout 0.1": ("attention=parallel", "model.dropout=0.1"),
}
FUSED = ", fused AdamW"
BATCH = 2
STEPS = 2
OPTIMISER_BYTES = 28
"""Of a parameter in one update: weight, two moments read and written, the gradient read, 4 bytes each."""


def main() -> None:
    """Measure all, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of rows; nothing is recorded")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(_measure(args.worker)))
        return
    names = args.only or [
        "floor",
        *OURS,
        *peers.PEERS,
        *(name + FUSED for name in peers.PEERS if name != "transformers"),
    ]
    found = common.in_turn(args.rounds, names, lambda name: common.worker("benchmarks.step", "--worker", name))
    if not args.only:
        rows = summary(found)
        better = {"of_fastest_peer": "less", "of_fastest_fused": "less", "memory_of_leanest": "less"}
        common.record("step", rows, ["implementation"], better | {"floor_of_it": "more"})
        from .charts import step_chart

        step_chart(rows)


def summary(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each implementation; ratios are medians of the ratios within a round."""
    rounds = range(len(found["floor"]))
    flops = found["parallel"][0]["flops"]
    floors = [
        flops / one["flops_per_second"] + OPTIMISER_BYTES * one_step["parameters"] / one["bytes_per_second"]
        for one, one_step in zip(found["floor"], found["parallel"], strict=True)
    ]
    as_released = [min(found[name][i]["seconds"] for name in peers.PEERS) for i in rounds]
    fused = [
        min(found[name if name == "transformers" else name + FUSED][i]["seconds"] for name in peers.PEERS)
        for i in rounds
    ]
    leanest = [
        min(runs[i]["peak_rss_bytes"] for name, runs in found.items() if name.split(",")[0] in peers.PEERS)
        for i in rounds
    ]
    told = common.machine(["litgpt", "transformers", "x-transformers"])
    rows = []
    for name, runs in found.items():
        if name == "floor":
            continue
        seconds = [run["seconds"] for run in runs]
        row = {
            "implementation": name if name.split(",")[0] in peers.PEERS else f"gpt_ablate {name}",
            "parameters": runs[0]["parameters"],
            "seconds": round(statistics.median(seconds), 3),
            "least": round(min(seconds), 3),
            "most": round(max(seconds), 3),
            "peak_rss_gb": round(statistics.median(run["peak_rss_bytes"] for run in runs) / 1e9, 3),
        }
        ratios = {
            "of_fastest_peer": (seconds, as_released),
            "of_fastest_fused": (seconds, fused),
            "floor_of_it": (floors, seconds),
            "memory_of_leanest": ([run["peak_rss_bytes"] for run in runs], leanest),
        }
        for column, (above, below) in ratios.items():
            row[column] = round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)
        row["gflops_per_second"] = round(statistics.median(one["flops_per_second"] for one in found["floor"]) / 1e9, 1)
        row["gb_per_second"] = round(statistics.median(one["bytes_per_second"] for one in found["floor"]) / 1e9, 1)
        rows.append(row | {"machine": told})
    return rows


def _measure(name: str) -> dict[str, Any]:
    if name == "floor":
        return _floor()
    return _ours(OURS[name]) if name in OURS else _peer(name)


def _floor() -> dict[str, float]:
    """The best rates of a few tries: of a square SGEMM, and of an addition in place over more than any cache."""
    from gpt_ablate.kernels.linear import by_onednn, has_onednn

    n = 4096
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    seconds = common.timed(lambda: torch.mm(a, b, out=out), 5)
    if has_onednn():
        seconds += common.timed(lambda: by_onednn(a, b), 5)
    flops = 2 * n**3 / min(seconds)
    x, y = torch.zeros(64_000_000), torch.ones(64_000_000)
    rate = 3 * 4 * x.numel() / min(common.timed(lambda: x.add_(y), 5))
    return {"flops_per_second": flops, "bytes_per_second": rate}


def _peer(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    peer = peers.PEERS[name.removesuffix(FUSED)]()
    peer.model.train()
    optimizer = (peers.fused if name.endswith(FUSED) else peer.optimizer)(peer.model.parameters())

    def step(tokens: Tensor) -> None:
        optimizer.zero_grad()
        loss = peer.loss(tokens)
        loss.backward()
        optimizer.step()
        loss.item()

    batches = iter(torch.randint(peers.VOCABULARY, (STEPS + 1, BATCH, peers.CONTEXT + 1)))
    return _result(common.timed(lambda: step(next(batches)), STEPS), peer.model)


def _ours(overrides: tuple[str, ...]) -> dict[str, Any]:
    with common.training(common.config_of("data.batch_size=2", *overrides)) as trainer:
        steps = iter(range(1, STEPS + 3))
        trainer._optimise(next(steps))
        flops = trainer.flops_per_step()  # as in a run, which from here on holds the compiler that this imports
        result = _result(common.timed(lambda: trainer._optimise(next(steps)), STEPS), trainer.model)
    return result | {"flops": flops}


def _result(seconds: list[float], model: torch.nn.Module) -> dict[str, Any]:
    from gpt_ablate.utils import devices

    return {
        "seconds": statistics.median(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        **devices.peak_memory(torch.device("cpu")),
    }


if __name__ == "__main__":
    main()
