"""Documents: texts of files, folders and patterns, one after the other, never all in memory."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gpt_ablate.data import record_files
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of, expanded
from gpt_ablate.utils.texts import decode, joined, universal

COLUMN = "text"
"""Where records hold their text unless `data.column` says otherwise."""
_RECORDS = {".jsonl": record_files.json_lines, ".parquet": record_files.parquet, ".arrow": record_files.arrow}
_IN_FOLDERS = (".txt", ".md", ".jsonl", ".parquet")
_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Document:
    """One text, as `texts.universal` has it."""

    name: str
    text: str
    stored: bytes | None = None
    """The bytes that a file of text alone holds; None for a text that is a part of a file."""


class Source(Protocol):
    """Documents that can be gone through any number of times; equal for the same documents of the same place."""

    def __iter__(self) -> Iterator[Document]: ...


@dataclass(frozen=True)
class JoinedLines:
    """The documents of a source, each paragraph on one line."""

    source: Source

    def __iter__(self) -> Iterator[Document]:
        return (Document(document.name, joined(document.text)) for document in self.source)


@dataclass(frozen=True)
class Documents:
    """The documents of several sources, in their order."""

    sources: Sequence[Source]

    def __iter__(self) -> Iterator[Document]:
        for source in self.sources:
            yield from source

    def texts(self) -> Iterator[str]:
        """The texts alone."""
        return (document.text for document in self)


@dataclass(frozen=True)
class Measures:
    """What one pass over documents gives."""

    documents: int
    characters: int
    sha256: str
    """Of the texts in UTF-8, a NUL between two."""
    stored_sha256: str | None
    """The same of the bytes of the files; None where equal, or where files hold more than a text."""


def measure(documents: Iterable[Document]) -> Measures:
    """Count and hash documents, one at a time."""
    count = characters = 0
    read, stored = hashlib.sha256(), hashlib.sha256()
    whole_files = True
    for document in documents:
        whole_files = whole_files and document.stored is not None
        for digest, content in ((read, document.text.encode()), (stored, document.stored or b"")):
            digest.update(b"\0" + content if count else content)
        count += 1
        characters += len(document.text)
    differs = whole_files and stored.digest() != read.digest()
    return Measures(count, characters, read.hexdigest(), stored.hexdigest() if differs else None)


def of_bytes(content: bytes, name: str, key: str = "data.path") -> Document:
    """The document that a text file holds. Raises UsageError, under `key`, for what is no text in UTF-8 or empty."""
    try:
        text = decode(content)
    except ValueError as error:
        raise UsageError([Problem(key, name, str(error))]) from error
    if not text.strip():
        raise UsageError([Problem(key, name, "a text that is not empty")])
    return Document(name, text, content)


@dataclass(frozen=True)
class FileSource:
    """A file: one text, or records with a text in each."""

    path: Path = field(compare=False)
    real: str
    """The path without links."""
    name: str = field(compare=False)
    """What messages call it."""
    key: str = field(compare=False)
    column: str = field(compare=False)

    @property
    def has_columns(self) -> bool:
        """Whether it holds records."""
        return self.path.suffix.lower() in _RECORDS

    def __iter__(self) -> Iterator[Document]:
        """Raises UsageError for a file that cannot be read or holds no text."""
        if self.has_columns:
            return self._records()
        try:
            content = content_of(self.path)
        except OSError as error:
            told = f"a file that can be read ({error.strerror})"
            raise UsageError([Problem(self.key, self.name, told)]) from error
        return iter([of_bytes(content, self.name, self.key)])

    def _records(self) -> Iterator[Document]:
        empty = True
        read = _RECORDS[self.path.suffix.lower()]
        for number, raw in read(self.path, self.column, self.key):
            text = universal(raw)
            if "\0" in text:
                allowed = f"texts without NUL characters (there is one in line or row {number})"
                raise UsageError([Problem(self.key, str(self.path), allowed)])
            if text.strip():
                empty = False
                yield Document(f"{self.path}:{number}", text)
        if empty:
            raise UsageError([Problem(self.key, str(self.path), "at least one text that is not empty")])


def files(paths: str | Sequence[str], column: str | None = None, key: str = "data.path") -> list[FileSource]:
    """The files of paths, folders and patterns such as `books/**/*.txt`, in this order, each sorted.

    In a folder these are all .txt, .md, .jsonl and .parquet files below it, or the data set that Hugging Face's
    `save_to_disk` wrote there; hidden ones are left out. A path that is there is no pattern, whatever its name.
    Raises UsageError for a folder or a pattern without files, and for one that gives a file a second time.
    """
    found: list[FileSource] = []
    of_many: set[str] = set()
    problems: list[Problem] = []
    for given in [paths] if isinstance(paths, str) else paths:
        try:
            several = _several(given, key)
        except UsageError as error:
            problems += error.problems
            continue
        named = [(str(path), path) for path in several] if several is not None else [(given, expanded(key, given))]
        sources = [FileSource(path, os.path.realpath(path), name, key, column or COLUMN) for name, path in named]
        before = {source.real for source in found} if several is not None else of_many
        if twice := [source.name for source in sources if source.real in before]:
            problems.append(
                Problem(key, given, f"files that no other entry gives ({', '.join(twice[:3])} is given twice)")
            )
        of_many |= {source.real for source in sources} if several is not None else set()
        found += sources
    if not found and not problems:
        problems.append(Problem(key, paths, "at least one file, folder or pattern"))
    if problems:
        raise UsageError(problems)
    return found


def _several(given: str, key: str) -> list[Path] | None:
    """The files in a folder or of a pattern; None for the path of one file."""
    if not given.strip() or "\0" in given:
        raise UsageError([Problem(key, given, "the path of a file or folder, or a pattern; without NUL")])
    path = expanded(key, given)
    return _below(path, key) if os.path.isdir(path) else _matching(path, key)


def _below(folder: Path, key: str) -> list[Path]:
    """The files of texts in a folder and in those below it."""
    if (saved := record_files.saved_dataset(folder, key)) is not None:
        return saved
    found, seen = [], {os.path.realpath(folder)}
    try:
        for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            reals = {os.path.realpath(os.path.join(place, name)): name for name in sorted(folders) if name[0] != "."}
            folders[:] = [name for real, name in reals.items() if real not in seen]
            seen |= set(reals)  # a link may lead back
            found += [Path(place, name) for name in names if name[0] != "." and name.lower().endswith(_IN_FOLDERS)]
    except OSError as error:
        raise UsageError([Problem(key, error.filename, f"a folder that can be read ({error.strerror})")]) from error
    if not found:
        allowed = f"a folder with {', '.join(_IN_FOLDERS[:-1])} or {_IN_FOLDERS[-1]} files, not hidden, in or below it"
        raise UsageError([Problem(key, str(folder), allowed)])
    return sorted(found, key=lambda path: path.parts)


def _raise(error: OSError) -> None:
    raise error


def _matching(path: Path, key: str) -> list[Path] | None:
    """The files that a pattern matches; None for what is no pattern."""
    if os.path.lexists(path) or not is_pattern(path):
        return None
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)), key=lambda match: match.parts)
    found = [match for match in matches if not match.is_dir()]
    if not found:
        of_folders = f", and not {len(matches)} folders alone" if matches else ""
        raise UsageError([Problem(key, str(path), f"a pattern that matches files{of_folders}")])
    return found


def is_pattern(path: Path) -> bool:
    """Whether a path that is not there is a pattern."""
    return _PATTERN.search(str(path)) is not None
