"""unfinished.json: which shards of a folder are whole, and where in the texts each one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import gpt_ablate
from gpt_ablate.data.shards import SPLITS, UNFINISHED, Shard
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of, write_json


class Place(BaseModel):
    """A whole shard, and where its end lies in the texts."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    shard: Shard
    chunk: int
    """The chunk in which it ends, ..."""
    used: int
    """... after so many of the chunk's tokens of this split."""
    source_sha256: str
    """Of all texts up to the end of the chunk."""


_START = Place(shard=Shard(tokens=0, bytes=0, sha256=""), chunk=0, used=0, source_sha256="")


def _no_places() -> dict[str, list[Place]]:
    return {split: [] for split in SPLITS}


class Journal(BaseModel):
    """What a folder that is not finished has."""

    model_config = ConfigDict(strict=True, extra="forbid")

    gpt_ablate: str = gpt_ablate.__version__
    """The version that began: another may cut texts otherwise."""
    arguments: dict[str, Any]
    tokenizer_sha256: str | None = None
    """None until tokenizer.json is whole."""
    places: dict[str, list[Place]] = Field(default_factory=_no_places)

    @classmethod
    def read(cls, folder: Path) -> Journal | None:
        """That of a folder; None if it has none. Raises UsageError for one that is damaged or of another version."""
        path = folder / UNFINISHED
        if not path.exists():
            return None
        try:
            journal = cls.model_validate_json(content_of(path))
        except (OSError, ValidationError) as error:
            allowed = f"a journal that can be read ({error}): remove the folder and prepare it again"
            raise UsageError([Problem("--to", str(path), allowed)]) from error
        if journal.has_shards and journal.gpt_ablate != gpt_ablate.__version__:
            allowed = (
                f"a folder that this version of gpt_ablate began; version {journal.gpt_ablate} did: continue with that "
                "version, or remove the folder"
            )
            raise UsageError([Problem("--to", str(folder), allowed)])
        return journal

    @property
    def has_shards(self) -> bool:
        """Whether anything would be lost if the work began anew."""
        return any(self.places.values())

    def after(self, split: str) -> Place:
        """The end of the last whole shard of a split."""
        places = self.places[split]
        return places[-1] if places else _START

    def write(self, folder: Path) -> None:
        """Write the whole file or nothing."""
        write_json(folder / UNFINISHED, self.model_dump())
