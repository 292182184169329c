"""A plugin outside the package, for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import small_run

from gpt_ablate.config.registry import Registry, load
from gpt_ablate.config.schema import Config

load()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module that a config's `plugins` can name; what it registers lasts for one test."""
    for registered in Registry.by_key.values():
        monkeypatch.setattr(registered, "builders", dict(registered.builders))
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> str:
        (tmp_path / "mine.py").write_text(code)
        return "plugins=[mine]"

    yield write
    sys.modules.pop("mine", None)


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """A config of a few steps on a little text, with dropout; not cached, since a plugin of one name may change."""
    overrides = [*small_run(tmp_path), "trainer.max_steps=4", "model.dropout=0.1", "sampling.max_new_tokens=3"]
    return lambda *more: configure.__wrapped__(*overrides, *more)
