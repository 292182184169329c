"""Studies whose runs have different tokenizers: what can be compared, and what the report shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import TEXT

import gpt_ablate
from gpt_ablate.reporting import figure_curves
from gpt_ablate.utils.errors import UsageError


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = ["model=micro", "model.d_model=16", "model.context_length=16", "data.batch_size=2", "trainer.max_steps=3"]
    return ["data=text", "data.path=text.txt", *sizes, "sampling.prompt=The", "sampling.max_new_tokens=3"]


def test_nats_of_two_tokenizers_are_not_compared(small: list[str], tmp_path: Path) -> None:
    study = [*small, "tokenizer=bytes,chars", "seed=0,1"]
    with pytest.raises(UsageError, match="val_bits_per_byte") as error:
        gpt_ablate.train(study, multirun=True, quiet=True)
    assert [problem.key for problem in error.value.problems] == ["report.metrics"]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_bits_per_byte_of_two_tokenizers_are(small: list[str]) -> None:
    asked = ["report.metrics={val_bits_per_byte: 0.02, train_bits_per_byte: 0.02}"]
    study = gpt_ablate.train([*small, "tokenizer=gpt2,bytes", "seed=0,1", *asked], multirun=True, quiet=True)
    assert set(study.comparisons["metric"]) == {"val_bits_per_byte", "train_bits_per_byte"}
    assert study.comparisons["difference"].notna().all()
    assert " bits per byte" in study.answer
    page = (study.path / "report.html").read_text()
    assert "with the tokenizer of the baseline" in page
    assert figure_curves.unit(study._read) == "bits per byte"


@pytest.mark.slow
def test_within_one_tokenizer_nats_are_compared(small: list[str]) -> None:
    asked = ["report.within=[tokenizer]"]
    study = gpt_ablate.train(
        [*small, "tokenizer=bytes,chars", "norm=pre,post", "seed=0", *asked], multirun=True, quiet=True
    )
    assert len(study.comparisons) == 2
    assert set(study.comparisons["metric"]) == {"eval/train_loss"}


def test_a_task_beside_a_text_needs_no_tokenizer_to_be_named(small: list[str]) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.name = 'bytes': own"):
        gpt_ablate.train([*small[2:], "data=recall", "tokenizer=bytes"], quiet=True)
    with pytest.raises(UsageError, match="this data set is text, and has no tokenizer of its own"):
        gpt_ablate.train([*small, "tokenizer=own"], quiet=True)
