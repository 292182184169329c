"""What every test of the data wants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpt_ablate.data import loading


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Corpora are kept between runs of a process; a test wants its own."""
    loading._corpus.cache_clear()
    yield
    loading._corpus.cache_clear()
