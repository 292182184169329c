"""Small runs that several tests train, and what of their records two runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.launching import execution
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.run_directory import RunDirectory

TIMES = ("wall_time", "tokens_per_second")


TEXT = " ".join(f"The {i}th of {i * i} sheep said {'baa' if i % 3 else 'no'}." for i in range(23))


def small_run(folder: Path) -> list[str]:
    """Overrides for 16-token windows of a text, written into `folder`: 6 steps an epoch, one epoch."""
    (folder / "text.txt").write_text(TEXT)
    sizes = ["data=text", f"data.path={folder}/text.txt", "data.batch_size=2", "model.d_model=16"]
    return [*sizes, "model.context_length=16", "trainer.max_epochs=1", "trainer.eval_every=0"]


def train(config: Config, path: Path) -> RunDirectory:
    execution.run(config, path, [], Console(quiet=True))
    return RunDirectory(path)


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records less what no two runs share."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def losses(directory: RunDirectory) -> list[float]:
    return [line["train/loss"] for line in directory.metrics() if "train/loss" in line]


def scramble(module: nn.Module) -> None:
    """Move every parameter off its initial value, so that ones and zeros hide nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def plain_losses(config: Config) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a loop written anew, on the same model and batches."""
    model, corpus = GPT(config), loading.load(config)
    lr, warmup = config.optimizer.lr, getattr(config.schedule, "warmup_steps", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=config.optimizer.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / max(1, warmup)))
    found: tuple[list[float], list[float]] = ([], [])
    for windows in corpus.train.order(config.seed, 1).split(config.data.batch_size):
        x, y = corpus.train.batch(windows, torch.device("cpu"))
        loss = -model(x).log_softmax(-1).gather(-1, y[..., None]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.grad_clip or float("inf"))
        optimizer.step()
        rate.step()
        found[0].append(loss.item())
        found[1].append(norm.item())
    return found
