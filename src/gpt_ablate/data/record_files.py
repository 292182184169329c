"""Texts in files of records: JSON lines, Parquet, Arrow, and folders that Hugging Face datasets saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from gpt_ablate.utils.errors import Problem, UsageError, closest
from gpt_ablate.utils.file_formats import format_of
from gpt_ablate.utils.files import content_of, opened_file

_TOLD = 10
"""Lines, and keys of each, that a message shows at most."""
_ROWS = 1024


def json_lines(path: Path, column: str, key: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, whose object holds the text in `column`; blank lines are left out.

    Raises UsageError, after the last line, with the numbers of the lines that hold no such object.
    """
    bad: dict[int, str] = {}
    found: set[str] = set()
    with _readable(path, key), opened_file(path) as file:
        if what := format_of(file.read(16)):
            raise UsageError([Problem(key, str(path), f"lines of JSON in UTF-8; this is {what}")])
        file.seek(0)
        for number, line in enumerate(file, 1):
            stripped = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if not stripped:
                continue
            record, reason = _record(stripped, column)
            if reason is None:
                yield number, record[column]
            else:
                bad[number] = reason
                found.update(record)
    if bad:
        lines = "; ".join(f"line {number} {reason}" for number, reason in list(bad.items())[:_TOLD])
        more = f"; and {len(bad) - _TOLD:,} more" if len(bad) > _TOLD else ""
        allowed = f"one JSON object a line with text in {column!r} (data.column); {len(bad):,} are not: {lines}{more}"
        raise UsageError([Problem(key, str(path), allowed, closest(column, sorted(found - {column})))])


def _record(line: bytes, column: str) -> tuple[dict[str, Any], str | None]:
    """The object on a line, and why it has no text; None if it has one."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return {}, "is not in UTF-8"
        return {}, f"is no JSON ({error.msg}, character {error.pos + 1})"
    if not isinstance(record, dict):
        return {}, f"holds no object but {type(record).__name__}"
    if column not in record:
        return record, f"has {', '.join(map(repr, list(record)[:_TOLD])) or 'no keys'}"
    if not isinstance(record[column], str):
        return record, f"has {type(record[column]).__name__}, not a string"
    return record, None


def parquet(path: Path, column: str, key: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each row. Raises UsageError for a column that is not there or holds other things."""
    _pyarrow(path, key)
    import pyarrow.parquet

    with _readable(path, key), opened_file(path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        _check_column(table.schema_arrow, path, column)
        batches = table.iter_batches(_ROWS, columns=[column])
        yield from _texts(batches, path, column, key)


def arrow(path: Path, column: str, key: str) -> Iterator[tuple[int, str]]:
    """The same for Arrow's IPC formats: the stream, which Hugging Face datasets write, and the file."""
    pa = _pyarrow(path, key)
    with _readable(path, key), opened_file(path) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            batches: Iterator[Any] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = reader = pa.ipc.open_stream(file)
        _check_column(reader.schema, path, column)
        yield from _texts(batches, path, column, key)


def saved_dataset(folder: Path, key: str) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` wrote; None for another folder.

    Raises UsageError for a folder of several splits, and for one that is damaged.
    """
    if (splits := folder / "dataset_dict.json").is_file():
        names = _json(splits, key).get("splits", [])
        choices = ", ".join(str(folder / str(name)) for name in names)
        raise UsageError([Problem(key, str(folder), f"one split of this data set: {choices}")])
    if not (state := folder / "state.json").is_file():
        return None
    try:
        return [folder / each["filename"] for each in _json(state, key)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UsageError([Problem(key, str(state), "the state.json of a data set that was saved whole")]) from error


def _json(path: Path, key: str) -> dict[str, Any]:
    try:
        parsed = orjson.loads(content_of(path))
    except (OSError, ValueError) as error:
        raise UsageError([Problem(key, str(path), f"a JSON file that can be read ({error})")]) from error
    if not isinstance(parsed, dict):
        raise UsageError([Problem(key, str(path), "a JSON object")])
    return parsed


def _pyarrow(path: Path, key: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        allowed = "this file is read by pyarrow: pip install 'gpt_ablate[parquet]'"
        raise UsageError([Problem(key, str(path), allowed)]) from error
    return pyarrow


@contextmanager
def _readable(path: Path, key: str) -> Iterator[None]:
    """Tell of a file that cannot be read, or is cut off or damaged; pyarrow's errors are OSError or ValueError."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError([Problem(key, str(path), f"a file that can be read ({reason})")]) from error


def _check_column(schema: Any, path: Path, column: str) -> None:
    """Raise UsageError unless there is one such column, of strings."""
    import pyarrow.types as types

    if schema.names.count(column) != 1:
        listed = ", ".join(schema.names) or "none"
        guess = closest(column, schema.names)
        raise UsageError([Problem("data.column", column, f"one of the columns of {path}: {listed}", guess)])
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UsageError([Problem("data.column", column, f"a column of strings; in {path} it is of {kind}")])


def _texts(batches: Iterator[Any], path: Path, column: str, key: str) -> Iterator[tuple[int, str]]:
    """Raises UsageError, after the last row, with the number of rows that are null."""
    row = null = 0
    for batch in batches:
        for text in batch.column(batch.schema.get_field_index(column)).to_pylist():
            row += 1
            if text is None:
                null += 1
            else:
                yield row, text
    if null:
        allowed = f"a text in {column!r} in every row; {null:,} of {row:,} are null. Write a file without these rows"
        raise UsageError([Problem(key, str(path), allowed)])
