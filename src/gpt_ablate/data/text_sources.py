"""Data sets of texts: your own, and those that have a name."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeAlias

from pydantic import Field

from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config
from gpt_ablate.data import held_out, named_sets
from gpt_ablate.data.corpus import Corpus, DataContext, sources
from gpt_ablate.data.documents import Documents, FileSource, JoinedLines, files, is_pattern, measure
from gpt_ablate.data.named_sets import NamedText
from gpt_ablate.utils.errors import Problem, UsageError, closest
from gpt_ablate.utils.files import expanded

TrainFraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Paths = str | list[str]
Item: TypeAlias = NamedText | FileSource


@sources.register("text")
def text(
    context: DataContext,
    *,
    path: Paths | None,
    column: str | None = None,
    train_fraction: TrainFraction = 0.9,
    val: Paths | None = None,
    join_lines: bool = False,
) -> Corpus:
    """Files of the user's own. Raises UsageError for files, a column or a split that cannot be had."""
    assert path, "_path refuses that"
    train = files(path, column)
    held = _items(val, (), column)
    if column is not None and not any(isinstance(item, FileSource) and item.has_columns for item in (*train, *held)):
        raise UsageError([Problem("data.column", column, "null: these files have no columns, each is one text")])
    return _corpus(context, train, held, train_fraction, val, join_lines)


@rule("data.name", "data.path")
def _path(config: Config) -> list[Problem]:
    path = getattr(config.data, "path", None)
    if config.data.name != "text" or path:
        return []
    allowed = "the path of a UTF-8 text file, a folder or a pattern, or a list of them"
    return [Problem("data.path", path, allowed)]


def _of_set(name: str) -> Callable[..., Corpus]:
    def build(
        context: DataContext,
        *,
        dir: str | None = None,
        train_fraction: TrainFraction = 0.9,
        val: Paths | None = None,
        join_lines: bool = False,
    ) -> Corpus:
        own = named_sets.text_sets()[name]
        return _corpus(context, own, _items(val, own), train_fraction, val, join_lines, dir, takes_dir=True)

    build.__doc__ = f"The named set `{name}`. Raises UsageError for files or a split that cannot be had."
    return sources.register(name)(build)


verdict, shakespeare, wharton, classics = map(_of_set, ("verdict", "shakespeare", "wharton", "classics"))


@sources.register("sample")
def sample(
    context: DataContext,
    *,
    train_fraction: TrainFraction = 0.9,
    val: Paths | None = None,
    join_lines: bool = False,
) -> Corpus:
    """The text in this package. Raises UsageError for a split that cannot be had."""
    own = named_sets.text_sets()["sample"]
    return _corpus(context, own, _items(val, own), train_fraction, val, join_lines)


def _items(val: Paths | None, own: Sequence[NamedText], column: str | None = None) -> list[Item]:
    """What `data.val` holds out: texts of the data set, named sets, and files, in the order given.

    Raises UsageError for what names nothing, and for a text that is named twice.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    for entry in [val] if isinstance(val, str) else val or []:
        try:
            found = _item(entry, own, column)
        except UsageError as error:
            problems += error.problems
            continue
        if set(found) & set(items):
            problems.append(Problem("data.val", entry, "texts that no other entry holds out"))
        items += found
    if val == []:
        problems.append(Problem("data.val", val, "null, or at least one text to hold out"))
    if problems:
        raise UsageError(problems)
    return items


def _item(entry: str, own: Sequence[NamedText], column: str | None) -> Sequence[Item]:
    if of_own := [each for each in own if each.is_called(entry)]:
        return of_own
    known = named_sets.text_sets()
    if entry in known:
        return known[entry]
    path = expanded("data.val", entry)
    if os.path.lexists(path) or is_pattern(path) or not entry.strip() or "\0" in entry:
        return files(entry, column, "data.val")
    titles = [each.title for each in own] if len(own) > 1 else []
    books = f", or a text of this set: {', '.join(titles)}" if titles else ""
    allowed = f"a file, folder or pattern that is there, a named set: {', '.join(known)}{books}"
    guess = closest(entry, [*titles, *known])
    raise UsageError([Problem("data.val", entry, allowed, guess)])


def _corpus(
    context: DataContext,
    train: Sequence[Item],
    held: Sequence[Item],
    fraction: float,
    val: Paths | None,
    join_lines: bool,
    folder: str | None = None,
    takes_dir: bool = False,
) -> Corpus:
    """Split by document where some are held out, else by a fraction of the characters."""
    left = [item for item in train if item not in set(held)]
    if not left:
        raise UsageError([Problem("data.val", val, "some of the texts; these are all, and none is left to train on")])
    named = [item for item in (*left, *held) if isinstance(item, NamedText)]
    places = {source.text: source for source in named_sets.located(named, folder, takes_dir)}
    placed = [[places[it] if isinstance(it, NamedText) else it for it in items] for items in (left, held)]
    train_files, held_files = ({os.path.realpath(str(source.path)) for source in side} for side in placed)
    if both := train_files & held_files:
        allowed = f"texts that are not in the training split; it holds the text of {', '.join(sorted(both))} too"
        raise UsageError([Problem("data.val", val, allowed)])
    splits = [Documents([JoinedLines(it) for it in side] if join_lines else side) for side in placed]
    return _by_document(context, splits[0], splits[1], val) if held else _by_fraction(context, splits[0], fraction)


def _by_document(context: DataContext, train: Documents, val: Documents, value: object) -> Corpus:
    """The hash covers both splits and which text is in which."""
    sizes = measure(train), measure(val)
    held_out.check(train, val, sizes, value)
    both = hashlib.sha256("\0".join(size.sha256 for size in sizes).encode()).hexdigest()
    return context.of_texts(train.texts, val.texts, both)


def _by_fraction(context: DataContext, documents: Documents, fraction: float) -> Corpus:
    """Split at a character of all documents laid end to end."""
    size = measure(documents)
    cut = int(fraction * size.characters)
    train, val = (functools.partial(_pieces, documents, *part) for part in ((0, cut), (cut, size.characters)))
    return context.of_texts(train, val, size.sha256, size.stored_sha256)


def _pieces(documents: Documents, start: int, stop: int) -> Iterator[str]:
    """The characters start..stop of all documents laid end to end, a piece for each document that has some."""
    offset = 0
    for text in documents.texts():
        if offset >= stop:
            return
        if piece := text[max(0, start - offset) : stop - offset]:
            yield piece
        offset += len(text)
