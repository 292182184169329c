"""What the task tells: attention between positions recalls, a model without it guesses (Arora et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import train
from torch import Tensor

from gpt_ablate.axes.attention import ParallelAttention, attentions
from gpt_ablate.config.schema import Config

PAIRS = 4


class Apart(ParallelAttention):
    """Each position attends to itself alone."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v


@pytest.mark.slow
def test_recall_needs_attention_between_positions(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentions, "builders", attentions.builders | {"apart": Apart})
    sizes = ["data.vocab_size=32", "model.context_length=16", f"data.pairs={PAIRS}"]
    recipe = [
        "experiment=recall",
        "data=recall",
        *sizes,
        "trainer.max_epochs=null",
        "trainer.max_steps=600",
        "trainer.eval_every=0",
    ]
    together, apart = (
        train(configure(*recipe, own), tmp_path / own).result()["final"]["eval/accuracy"]
        for own in ("attention=parallel", "attention.name=apart")
    )
    assert together > 0.95
    # It knows which tokens are values, and not which of them this example has.
    assert apart == pytest.approx(1 / 16, abs=0.02)
