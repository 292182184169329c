"""Texts that have a name: what they are, where they are found, and which lines of their files are the author's."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_ablate.data.documents import Document, of_bytes
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import expanded, user_cache
from gpt_ablate.utils.texts import universal_bytes

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_ASSETS = resources.files("gpt_ablate.data").joinpath("assets")
_SUBFOLDERS = ("", "books")


@dataclass(frozen=True)
class NamedText:
    """One text of a named set: a row of assets/text_sets.tsv."""

    set: str
    file: str
    sha256: str
    """Of the file as it is downloaded."""
    url: str
    lines: str
    """Which lines of the file, counted from 1, the author wrote: "35-199,206-39872"; all where this is empty.

    The others are Project Gutenberg's licence, credits and notes of those who typed the text.
    """
    author: str
    title: str

    def is_called(self, name: str) -> bool:
        """Whether `name` is its title or its file, with or without the suffix."""
        return name.casefold() in (self.title.casefold(), self.file, self.file.removesuffix(".txt"))


SAMPLE = NamedText("sample", "sample.txt", "", "", "", "", "A Penny Over, a Penny Back")
"""The text in this package."""


@functools.cache
def text_sets() -> dict[str, tuple[NamedText, ...]]:
    """The texts of each set, by its name."""
    table = _ASSETS.joinpath("text_sets.tsv").read_text(encoding="utf-8").splitlines()
    texts = [SAMPLE, *(NamedText(**row) for row in csv.DictReader(table, delimiter="\t"))]
    names = dict.fromkeys(text.set for text in texts)
    return {name: tuple(text for text in texts if text.set == name) for name in names}


@dataclass(frozen=True)
class NamedSource:
    """A named text and the file that holds it."""

    text: NamedText
    path: Traversable

    def __iter__(self) -> Iterator[Document]:
        document = of_bytes(self.path.read_bytes(), self.text.title)
        if not self.text.lines:
            return iter([document])
        lines = document.text.split("\n")
        ranges = (map(int, each.split("-")) for each in self.text.lines.split(","))
        parts = ("\n".join(lines[first - 1 : last]) for first, last in ranges)
        return iter([Document(self.text.title, "\n\n".join(parts) + "\n")])


def located(texts: Sequence[NamedText], folder: str | None, takes_dir: bool = True) -> list[NamedSource]:
    """The texts in `folder` (data.dir, if the data set takes that key) or $GPT_ABLATE_DATA, or their folder `books`.

    Those that are not there come from the user's cache, and are downloaded into it once. Raises UsageError for files
    with another SHA-256, and for those that can be neither found nor downloaded.
    """
    places: dict[NamedText, Traversable] = {}
    problems: list[Problem] = []
    for text in texts:
        if text is SAMPLE:
            places[text] = _ASSETS.joinpath(text.file)
        elif found := _found(text, folder):
            key, places[text] = found
            problems += _another(text, key, found[1])
    if problems:
        raise UsageError(problems)
    places |= _downloaded([text for text in texts if text not in places], takes_dir)
    return [NamedSource(text, places[text]) for text in texts]


def _found(text: NamedText, folder: str | None) -> tuple[str, Path] | None:
    """The first file of this name, and the key of its place."""
    for key, place in (("data.dir", folder), ("$GPT_ABLATE_DATA", os.environ.get("GPT_ABLATE_DATA"))):
        for below in _SUBFOLDERS if place else ():
            if (path := expanded(key, place or "") / below / text.file).is_file():
                return key, path
    return None


def _another(text: NamedText, key: str, path: Path) -> list[Problem]:
    """What is wrong with a file that is not the one that was meant."""
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) == text.sha256:
        return []
    saved = hashlib.sha256(universal_bytes(content)).hexdigest() == text.sha256
    told = "its byte order mark or line ends were changed" if saved else "for another text use data=text"
    return [Problem(key, str(path), f"{text.title} with SHA-256 {text.sha256}, found {found}; {told}")]


def _downloaded(texts: Sequence[NamedText], takes_dir: bool) -> dict[NamedText, Path]:
    """The files in the user's cache; pooch tells of each that it downloads, and checks the hash of all."""
    if not texts:
        return {}
    import pooch

    places: dict[NamedText, Path] = {}
    cache = user_cache()
    if cache is None:
        raise UsageError([_not_downloaded(texts, RuntimeError("no home folder"), takes_dir)])
    for text in texts:
        try:
            cached = pooch.retrieve(text.url, known_hash=text.sha256, fname=text.file, path=cache)
        except (OSError, ValueError) as error:
            missing = [it for it in texts if it not in places and not (cache / it.file).is_file()] or [text]
            raise UsageError([_not_downloaded(missing, error, takes_dir)]) from error
        places[text] = Path(cached)
    return places


def _not_downloaded(missing: Sequence[NamedText], error: Exception, takes_dir: bool) -> Problem:
    allowed = (
        f"{', '.join(text.title for text in missing)} {'is' if len(missing) == 1 else 'are'} not here and could not be "
        f"downloaded ({type(error).__name__}). Either connect to the network once, or put "
        f"{', '.join(text.file for text in missing)} in a folder and name it with "
        f"{'data.dir=FOLDER or ' if takes_dir else ''}GPT_ABLATE_DATA=FOLDER, or train on the text in the package with "
        "data=sample"
    )
    return Problem("data", ", ".join(dict.fromkeys(text.set for text in missing)), allowed)
