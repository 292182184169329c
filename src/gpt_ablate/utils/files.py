"""Files that appear whole or not at all, and reading them back; places where nothing can be written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.file_formats import format_of
from gpt_ablate.utils.texts import universal_bytes

_LONGEST_NAME = 255
_LARGEST = 1 << 30
_NAMES = "ENOSPC EDQUOT EROFS EACCES EPERM EIO ENOENT ENOTDIR EISDIR EEXIST ELOOP ENXIO ESTALE EMFILE ENFILE"
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


def user_cache() -> Path | None:
    """The folder in which files are kept between launches; None where the system knows no home folder."""
    import pooch

    try:
        return Path(pooch.os_cache("gpt_ablate"))
    except RuntimeError:
        return None


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


def misplaced(*, files: Iterable[Path] = (), folders: Iterable[Path] = ()) -> list[Problem]:
    """Those of the places for files and folders that something else has taken; a place may be empty.

    Through a symbolic link others' files would be written to, and a pipe or a device may keep a reader for ever.
    """
    return [
        Problem("run directory", str(path), f"a {what} of its own, not a {found}")
        for what, paths in (("file", files), ("folder", folders))
        for path in paths
        if (found := _kind(path)) not in (what, None)
    ]


def _kind(path: Path) -> str | None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe"}
    return kinds.get(stat.S_IFMT(mode), "socket or device")


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


def opened_file(path: Path) -> BinaryIO:
    """The file, open to be read. Raises OSError for what is no file; opening a pipe might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return path.open("rb")


def content_of(path: Path) -> bytes:
    """The bytes of a file, of as many as its size says: reading a pipe, a device or /proc might never end.

    Raises OSError for what is no file, and for a file that could not be held in memory.
    """
    with opened_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise OSError(
                errno.EFBIG,
                f"{size / 1e9:.3g} GB, more than the {_LARGEST / 1e9:.3g} GB that are read at once",
                str(path),
            )
        return file.read(size)


def _text_of(path: Path) -> bytes:
    """`content_of` a record that an editor of any system may have saved. Raises ValueError for what is no UTF-8."""
    content = content_of(path)
    if what := format_of(content):
        raise ValueError(f"this is {what}")
    return universal_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError if there is none."""
    try:
        parsed = orjson.loads(_text_of(path))
    except (OSError, ValueError) as error:
        raise UsageError([Problem("run directory", str(path), f"a JSON file that can be read ({error})")]) from error
    if not isinstance(parsed, dict):
        raise UsageError([Problem("run directory", str(path), "a JSON object")])
    return parsed


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, less a last line that is still being written; none if there is no file.

    Raises UsageError, naming file and line, for a line that is no JSON object.
    """
    if not os.path.lexists(path):
        return []
    try:
        content = _text_of(path)
    except (OSError, ValueError) as error:
        told = f"a file that can be read ({getattr(error, 'strerror', error)})"
        raise UsageError([Problem("run directory", str(path), told)]) from error
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
