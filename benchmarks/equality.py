"""Whether the fast paths change what is learned: `python -m benchmarks.equality` (GPT-2 small: about 20 minutes).

Trains 90 steps on The Verdict at dropout 0 twice, from one start: as the trainer does, and with the plain loss (whole
logits, `torch.nn.functional.cross_entropy`), attention (mask, softmax, product), embedding, GELU, linear layers and
optimiser's loop.
Prints the largest difference of any step's loss; with several seeds also how the losses of the last step are
distributed, and what Welch's test says of their means (`model=micro model.dropout=0.1 --seeds 10`, where the two draw
other masks).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes.attention import ParallelAttention
from gpt_ablate.axes.mlp import Gelu
from gpt_ablate.config.schema import Config
from gpt_ablate.kernels.dropout import Dropout
from gpt_ablate.kernels.embedding import Embedding
from gpt_ablate.kernels.linear import Linear
from gpt_ablate.models.gpt import GPT

from . import common


def plain_loss(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """As one writes it."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction=reduction)


def plain_attend(self: ParallelAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As one writes it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return self.dropout(scores.masked_fill(future, -math.inf).softmax(dim=-1)) @ v


def plain_mlp(self: Gelu, x: Tensor) -> Tensor:
    """As one writes it."""
    return self.out(F.gelu(self.fc(x), approximate="tanh"))


PLAIN: dict[type[nn.Module], Callable[..., Tensor]] = {
    Linear: nn.Linear.forward,
    Embedding: nn.Embedding.forward,
    Dropout: nn.Dropout.forward,
    Gelu: plain_mlp,
}


class PlainAdamW:
    """torch.optim's loop over parameters, once the backward pass is done."""

    def __init__(self, model: GPT, config: Config) -> None:
        self.parameters = list(model.parameters())
        self.loop = torch.optim.AdamW(
            self.parameters,
            betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
            weight_decay=config.optimizer.weight_decay,
        )

    def begin(self, lr: float, loss: Tensor) -> None:
        """As the trainer calls it."""
        self.loop.param_groups[0]["lr"] = lr

    def finish(self) -> Tensor:
        """As the trainer calls it."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.loop.step()
        self.loop.zero_grad()
        return norm


def main() -> None:
    """Train both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="such as model=mini attention=sdpa")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--against", type=Path, help="metrics.jsonl of the same config, instead of the plain training")
    args = parser.parse_args()
    if args.against and args.seeds > 1:
        parser.error("--against is one run's record: without --seeds")
    last: list[tuple[float, float]] = []
    for seed in range(123, 123 + args.seeds):
        config = common.config_of("data=verdict", "model.dropout=0", f"seed={seed}", *args.overrides)
        fast = losses(config, args.steps, plain=False)
        plain = _recorded(args.against) if args.against else losses(config, args.steps, plain=True)
        apart = [abs(a - b) for a, b in zip(fast, plain, strict=True)]
        worst = max(range(len(apart)), key=apart.__getitem__)
        print(f"{config.model.name}, seed {seed}: {args.steps} steps, loss {plain[0]:.4f} to {plain[-1]:.4f}")
        print(f"largest difference {apart[worst]:.2e}, at step {worst + 1}; at the last {apart[-1]:.2e}", flush=True)
        last.append((fast[-1], plain[-1]))
    if args.seeds > 1:
        for name, its in zip(("fast", "plain"), zip(*last, strict=True), strict=True):
            print(f"{name}: last losses {statistics.fmean(its):.4f}, standard deviation {statistics.stdev(its):.4f}")
        test = stats.ttest_ind(*zip(*last, strict=True), equal_var=False)
        print(f"p of equal means {test.pvalue:.3f}")


def _recorded(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["train/loss"] for line in lines if line["step"]]


def losses(config: Config, steps: int, plain: bool) -> list[float]:
    """The training loss of each step."""
    with common.training(config) as trainer:
        if plain:
            trainer.loss = plain_loss
            trainer.optimizer = PlainAdamW(trainer.model, config)  # type: ignore[assignment]
            for module in trainer.model.modules():
                if isinstance(module, ParallelAttention):
                    module.attend = plain_attend.__get__(module)  # type: ignore[method-assign]
                for fast, plain_forward in PLAIN.items():
                    if isinstance(module, fast):
                        module.forward = plain_forward.__get__(module)
        return [trainer._optimise(step)["train/loss"] for step in range(1, steps + 1)]


if __name__ == "__main__":
    main()
