"""`data.join_lines`: paragraphs of texts whose lines are broken at a fixed width."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_ablate.config.fingerprint import comparable
from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.data.documents import Documents
from gpt_ablate.data.named_sets import located, text_sets
from gpt_ablate.utils.texts import joined

words = st.text(alphabet="abc.,'-", min_size=1, max_size=9)
paragraphs = st.lists(words, min_size=1, max_size=60).map(" ".join)


@given(st.lists(paragraphs, min_size=1, max_size=5), st.integers(10, 80), st.integers(1, 3))
def test_wrapped_paragraphs_are_as_they_were(texts: list[str], width: int, empty: int) -> None:
    between = "\n" * (empty + 1)
    wrapped = between.join(textwrap.fill(text, width, break_on_hyphens=False) for text in texts)
    assert joined(wrapped) == between.join(texts)


def test_white_space_at_the_ends_of_lines_goes_and_an_empty_line_may_hold_some() -> None:
    assert joined("\none \n  two\n \t\nthree\n\n\nfour\n") == "\none two\n \t\nthree\n\n\nfour\n"
    assert joined("") == ""


def test_it_is_the_text_that_is_trained_on_and_evaluated(
    tmp_path: Path, with_data: Callable[..., Config], configure: Callable[..., Config]
) -> None:
    lines = [f"The {i}th of {i * i} sheep said nothing." for i in range(40)]
    (tmp_path / "wrapped.txt").write_text("\n".join(lines))
    (tmp_path / "one.txt").write_text(" ".join(lines))
    wrapped, one = (str(tmp_path / f"{name}.txt") for name in ("wrapped", "one"))
    corpora = [loading.load(with_data("text", path=path, join_lines=True)) for path in (wrapped, one)]
    assert [corpus.sha256 for corpus in corpora] == [corpora[1].sha256] * 2
    for split in ("train", "val"):
        a, b = (getattr(corpus, split).tokens.tolist() for corpus in corpora)
        assert a == b
    assert loading.load(with_data("text", path=wrapped)).sha256 != corpora[0].sha256


@pytest.mark.parametrize(("value", "told"), [("false", False), ("true", True)])
def test_runs_that_were_made_before_keep_their_fingerprints(
    value: str, told: bool, configure: Callable[..., Config]
) -> None:
    flat = comparable(configure(f"data.join_lines={value}").model_dump())
    assert ("data.join_lines" in flat) == told


def test_the_books_of_wharton_are_laid_out_as_the_verdict_is(verdict: Path, books: Path) -> None:
    """Few lines of The Verdict follow one another without an empty line, and nearly all lines of the books do."""

    def share(text: str) -> float:
        lines = text.strip().split("\n")
        return sum(bool(a.strip() and b.strip()) for a, b in pairwise(lines)) / len(lines)

    assert share(verdict.read_text("utf-8")) < 0.01
    for text in Documents(located(text_sets()["wharton"], str(books))).texts():
        assert share(text) > 0.5
        assert share(joined(text)) == 0
