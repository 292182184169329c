"""Which runs may be compared though the hashes of their data differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from synthetic import CONFIG, Shape, record_of

from gpt_ablate.studies import comparability
from gpt_ablate.utils.errors import UsageError


@dataclass(frozen=True)
class Made:
    """A run of a cell of its own."""

    name: str
    record: dict[str, Any]

    @property
    def cell(self) -> str:
        return self.name


def two_texts() -> list[Made]:
    records = [record_of(CONFIG, Shape()) for _ in range(2)]
    return [
        Made(name, record | {"data": record["data"] | {"sha256": name}})
        for name, record in zip("ab", records, strict=True)
    ]


@pytest.mark.parametrize("key", ["data", "data.path", "data.dir", "data.val", "data.pairs"])
def test_texts_may_differ_where_the_study_varies_what_decides_them(key: str) -> None:
    comparability.check(two_texts(), [key])


@pytest.mark.parametrize("key", ["norm", "data.batch_size", "data.stride", "data.replacement"])
def test_other_texts_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=r"data\.sha256"):
        comparability.check(two_texts(), [key])
