"""Files that appear whole or not at all, and reading them back; places where nothing can be written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import orjson

from .registry import Problem, UsageError

_LONGEST_NAME = 255
_LARGEST = 1 << 30
_NAMES = "ENOSPC EDQUOT EROFS EACCES EPERM EIO ENOENT ENOTDIR ESTALE EMFILE ENFILE"
_OF_THE_PLACE = {getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name)}


def lies_with_the_place(error: OSError) -> bool:
    """Whether an error tells of the disk or its folders (full, read-only, gone), and not of the code.

    So does one without a number that a library raised from such an error.
    """
    cause = error.__cause__
    return error.errno in _OF_THE_PLACE or (isinstance(cause, OSError) and lies_with_the_place(cause))


def unusable(path: Path) -> Problem | None:
    """Why nothing can be written in the folder `path`, which need not exist yet; None if it can."""
    where = str(path)
    if "\0" in where:
        return Problem("run directory", where, "a path without NUL")
    if long := next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None):
        return Problem("run directory", long, f"names of at most {_LONGEST_NAME} bytes")
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        return Problem("run directory", where, f"a folder, not a file ({there} is none)")
    if not os.access(there, os.W_OK | os.X_OK):
        return Problem("run directory", where, f"a folder that can be written to ({there} cannot)")
    return None


def expanded(key: str, path: str) -> Path:
    """`path`, which `key` gives, with ~ as the home folder. Raises UsageError where the system knows none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            [Problem(key, path, "a path from a home folder that the system knows, or without ~")]
        ) from error


def without_home(value: Any) -> Any:
    """`value` (text, or lists and mappings of it) with the user's home folder as ~: records name no user."""
    if isinstance(value, str):
        home = os.path.expanduser("~")  # unchanged where the system knows no home
        if not os.path.isabs(home) or home == os.path.abspath(os.sep):
            return value
        return re.sub(rf"((?<![\w.])|(?<=\\[nt])){re.escape(home)}(?![\w.-])", "~", value)
    if isinstance(value, list):
        return [without_home(each) for each in value]
    if isinstance(value, dict):
        return {key: without_home(each) for key, each in value.items()}
    return value


def foreign_links(*paths: Path) -> list[Problem]:
    """Those of `paths` that are symbolic links: through them, others' files would be written to."""
    links = [path for path in paths if path.is_symlink()]
    return [Problem("run directory", str(link), "a file or folder of its own, not a symbolic link") for link in links]


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: beside it, to disk, renamed into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half-written there, hidden and named .tmp; the caller holds the lock."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def content_of(path: Path) -> bytes:
    """The bytes of a file, of as many as its size says: reading a pipe, a device or /proc might never end.

    Raises OSError for what is no file, and for a file that could not be held in memory.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise OSError(
                errno.EFBIG,
                f"{size / 1e9:.3g} GB, more than the {_LARGEST / 1e9:.3g} GB that are read at once",
                str(path),
            )
        return file.read(size)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError if there is none."""
    try:
        content = orjson.loads(content_of(path))
    except (OSError, ValueError) as error:
        raise UsageError([Problem("run directory", str(path), f"a JSON file that can be read ({error})")]) from error
    if not isinstance(content, dict):
        raise UsageError([Problem("run directory", str(path), "a JSON object")])
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, less a last line that is still being written; none if there is no file.

    Raises UsageError, naming file and line, for a line that is no JSON object.
    """
    if not path.exists():
        return []
    try:
        content = content_of(path)
    except OSError as error:
        raise UsageError(
            [Problem("run directory", str(path), f"a file that can be read ({error.strerror})")]
        ) from error
    whole = content[: content.rfind(b"\n") + 1].splitlines()
    try:
        lines: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(whole) + b"]")
    except orjson.JSONDecodeError:
        lines = []
    if len(lines) != len(whole) or not all(type(line) is dict for line in lines):
        lines = [object_in(line, f"{path}:{number}") for number, line in enumerate(whole, 1)]
    return lines


def object_in(line: bytes, where: str) -> dict[str, Any]:
    """The object that a line of JSON holds. Raises UsageError, naming `where`, if it holds none."""
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError([Problem("run directory", where, f"a line of JSON that can be read ({error})")]) from error
    if not isinstance(parsed, dict):
        raise UsageError([Problem("run directory", where, "a JSON object on each line")])
    return parsed
