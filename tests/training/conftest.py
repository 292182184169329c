"""A small run, whose plugins may change from test to test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import small_run

from gpt_ablate.config.schema import Config


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """A config of a few steps on a little text, with dropout; not cached, since a plugin of one name may change."""
    overrides = [*small_run(tmp_path), "trainer.max_steps=4", "model.dropout=0.1", "sampling.max_new_tokens=3"]
    return lambda *more: configure.__wrapped__(*overrides, *more)
