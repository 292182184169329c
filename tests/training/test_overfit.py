"""A small model learns a short text by heart, whatever it is built from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gpt_ablate.config.schema import Config
from gpt_ablate.data.gpt2_encoding import Gpt2, gpt2
from gpt_ablate.launching import execution
from gpt_ablate.models.generation import generate
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint

VARIANTS = list(itertools.product(("pre", "post"), ("fresh", "clone"), ("looped", "parallel")))
RECIPE = ["optimizer.lr=8e-3", "schedule=warmup", "schedule.warmup_steps=10", "trainer.max_steps=100"]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "layers", "attention"), VARIANTS)
def test_a_small_model_recites_what_it_was_trained_on(
    norm: str, layers: str, attention: str, verdict: Path, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    text = verdict.read_text(encoding="utf-8")
    ids = Gpt2().encode(text)[:1000]
    learned = gpt2().decode(ids)
    (tmp_path / "text.txt").write_text(text[: len(learned) + 1000], encoding="utf-8")
    fraction = (len(learned) + 0.5) / (len(learned) + 1000)
    source = ["data=text", f"data.path={tmp_path}/text.txt", f"data.train_fraction={fraction}", "data.batch_size=3"]
    axes = [f"norm={norm}", f"layers={layers}", f"attention={attention}"]
    seldom = ["trainer.max_epochs=null", "trainer.eval_every=0", "trainer.sample_every=0"]
    config = configure(*axes, *source, *RECIPE, *seldom)
    result = execution.run(config, tmp_path / "run", [], Console(quiet=True))

    directory = RunDirectory(tmp_path / "run")
    assert directory.record()["data"]["train_tokens"] == 1000
    assert result["final"]["eval/train_loss"] < 0.1
    model, _ = checkpoint.load_trained(directory)
    greedy = config.sampling.model_copy(update={"temperature": 0.0, "max_new_tokens": 50})
    assert list(generate(model, ids[:10], greedy, torch.Generator())) == ids[10:60]
