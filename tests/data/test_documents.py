"""Documents: what files, folders, patterns and records give, in which order, and what is refused."""

from __future__ import annotations

import hashlib
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt_ablate.data.documents import Documents, files, measure
from gpt_ablate.utils.errors import UsageError


def texts_of(*paths: Path | str, column: str | None = None) -> list[str]:
    return list(Documents(files([str(path) for path in paths], column)).texts())


def refused(*paths: Path | str, column: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        texts_of(*paths, column=column)
    return str(error.value)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with texts, hidden files, and files that are no texts."""
    named = {
        "b.txt": "b",
        "a.md": "a",
        "a/z.TXT": "a/z",
        "a-b/y.txt": "a-b/y",
        "c.jsonl": '{"text": "c1"}\n{"text": "c2"}\n',
        ".hidden.txt": "hidden",
        ".git/x.txt": "hidden too",
        "notes.pdf": "no text",
    }
    for name, content in named.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_folder_gives_all_its_texts_sorted_by_path(library: Path) -> None:
    assert texts_of(library) == ["a/z", "a-b/y", "a", "b", "c1", "c2"]


def test_documents_can_be_gone_through_again(library: Path) -> None:
    documents = Documents(files(str(library)))
    assert [*documents] == [*documents]
    assert [document.name for document in documents][-2:] == [f"{library / 'c.jsonl'}:{line}" for line in (1, 2)]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("*.txt", ["b"]),
        ("**/*.txt", ["a-b/y", "b"]),
        ("?.md", ["a"]),
        ("a*/?.[tT]*", ["a/z", "a-b/y"]),
        ("a*", ["a"]),
    ],
)
def test_a_pattern_gives_the_files_that_it_matches(pattern: str, texts: list[str], library: Path) -> None:
    assert texts_of(library / pattern) == texts


def test_a_list_keeps_its_order(library: Path) -> None:
    assert texts_of(library / "b.txt", library / "a-b", library / "*.md", library / "b.txt") == ["b", "a-b/y", "a", "b"]


@pytest.mark.parametrize("name", ["part[1].txt", "what?.txt", "a*b.txt"])
def test_a_name_with_the_signs_of_a_pattern(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("this one")
    (tmp_path / "part1.txt").write_text("another one")
    assert texts_of(tmp_path / name) == ["this one"]


def test_a_folder_that_links_lead_around_in_ends(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "one.txt").write_text("one")
    (tmp_path / "inner" / "back").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "inner")
    assert texts_of(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["absent.txt"], "No such file"),
        (["absent*.txt"], "a pattern that matches files"),
        (["empty/*"], "not 1 folders alone"),
        (["empty"], ".txt, .md, .jsonl or .parquet files"),
        ([""], "the path of a file or folder"),
        (["a\0b"], "without NUL"),
        ([], "at least one file"),
        ([".", "b.txt", "*.md"], "a.md is given twice"),
        (["b.txt", "."], "b.txt is given twice"),
        (["."], "b.txt"),
        (["x" * 300], "File name too long"),
        (["blank.txt"], "a text that is not empty"),
        (["pipe.txt"], "not an ordinary file"),
    ],
)
def test_paths_that_give_no_texts(given: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" if given == ["."] else b"b")
    if given == ["blank.txt"]:
        (tmp_path / "blank.txt").write_text(" \n")
    if given == ["pipe.txt"]:
        os.mkfifo(tmp_path / "pipe.txt")
    message = refused(*given)
    assert message.startswith("data.path = ")
    assert told in message


def test_every_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    message = refused(tmp_path / "one*", tmp_path / "two*")
    assert "one*" in message
    assert "two*" in message


def test_the_hash_is_that_of_the_universal_texts_and_of_the_files(tmp_path: Path) -> None:
    stored = [b"\xef\xbb\xbfone\r\ntwo", b"three\n"]
    for number, content in enumerate(stored):
        (tmp_path / f"{number}.txt").write_bytes(content)
    measures = measure(Documents(files(str(tmp_path))))
    assert (measures.documents, measures.characters) == (2, 13)
    assert measures.sha256 == hashlib.sha256(b"one\ntwo\0three\n").hexdigest()
    assert measures.stored_sha256 == hashlib.sha256(b"\0".join(stored)).hexdigest()
    assert measure(Documents(files(str(tmp_path / "1.txt")))).stored_sha256 is None  # the same as sha256


def test_records_have_no_hash_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "one"}')
    (tmp_path / "two.txt").write_bytes(b"two\r\n")
    measures = measure(Documents(files(str(tmp_path))))
    assert measures.stored_sha256 is None
    assert measures.sha256 == hashlib.sha256(b"one\0two\n").hexdigest()


def test_one_record_is_in_memory_at_a_time(tmp_path: Path) -> None:
    with open(tmp_path / "large.jsonl", "w") as file:
        file.writelines('{"text": "%s"}\n' % ("x" * 100_000) for _ in range(200))
    tracemalloc.start()
    try:
        assert measure(Documents(files(str(tmp_path)))).characters == 20_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r\n',
        b"\r\n",
        b'{"id": 1, "text": "Gr\xc3\xb6\xc3\x9fe"}\n',
        b'{"text": " \\n"}\n',
        b'{"text": ""}\n',
        b'{"text": "no line end"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines))
    assert texts_of(tmp_path / "x.jsonl") == ["one\ntwo", "Größe", "no line end"]


def test_the_column_of_lines_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "no", "body": "yes"}\n')
    assert texts_of(tmp_path, column="body") == ["yes"]


def test_all_bad_lines_are_told_together(tmp_path: Path) -> None:
    bad = [b"{", b'["text"]', b'{"texts": "x", "id": 1}', b'{"text": null}', b'{"text": 3}', b'{"text": "\xff"}', b"{}"]
    good = b'{"text": "good"}'
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([good, *bad, good]))
    message = refused(tmp_path / "x.jsonl")
    assert "x.jsonl" in message
    assert "7 are not" in message
    for told in (
        "line 2 is no JSON",
        "line 3 holds no object but list",
        "line 4 has 'texts', 'id'",
        "line 5 has NoneType, not a string",
        "line 6 has int, not a string",
        "line 7 is not in UTF-8",
        "line 8 has no keys",
        "Did you mean 'texts'?",
    ):
        assert told in message
    assert "line 1 " not in message
    assert "line 9" not in message


def test_ten_bad_lines_are_enough(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[]\n" * 1234)
    message = refused(tmp_path / "x.jsonl")
    assert "1,234 are not" in message
    assert "line 10 " in message
    assert "line 11 " not in message
    assert "1,224 more" in message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", b"", "at least one text that is not empty"),
        ("x.jsonl", b'{"text": " "}', "at least one text that is not empty"),
        ("x.jsonl", b'{"text": "a\\u0000b"}', "without NUL characters (there is one in line or row 1)"),
        ("x.jsonl", '{"text": "a"}'.encode("utf-16"), "this is text in UTF-16"),
        ("x.jsonl", b"\x1f\x8b\x08\0abc", "a gzip file"),
        ("state.json", b'{"_fingerprint": 1}', "a data set that was saved whole"),
        ("state.json", b"{", "a JSON file that can be read"),
        ("dataset_dict.json", b'{"splits": ["train", "test"]}', "/train, "),
    ],
)
def test_records_that_are_refused(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path)
    assert told in message
    assert str(tmp_path) in message


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "pip install 'gpt_ablate[parquet]'" in refused(tmp_path)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table(columns), path)
    return path


def write_stream(path: Path, columns: dict[str, Any]) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it, of two files."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    path.mkdir()
    half = table.num_rows // 2
    for name, part in (("data-1.arrow", table.slice(half)), ("data-0.arrow", table.slice(0, half))):
        with pa.ipc.new_stream(str(path / name), table.schema) as writer:
            writer.write_table(part)
    (path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}')
    return path


def write_arrow(path: Path, columns: dict[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    with pa.ipc.new_file(str(path.with_suffix(".arrow")), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path.with_suffix(".arrow")


WRITERS = pytest.mark.parametrize("write", [write_parquet, write_stream, write_arrow])


@WRITERS
def test_columns_of_arrow(write: Callable[[Path, dict[str, Any]], Path], tmp_path: Path) -> None:
    columns = {"id": [1, 2, 3, 4], "text": ["one\r\n", " ", "zwölf", ""], "other": ["a", "b", "c", "d"]}
    path = write(tmp_path / "x.parquet", columns)
    assert texts_of(path) == ["one\n", "zwölf"]
    assert texts_of(path, column="other") == ["a", "b", "c", "d"]


@WRITERS
@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"texts": ["a", "b"], "id": [1, 2]}, "texts, id. Did you mean 'texts'?"),
        ({"text": [1, 2]}, "a column of strings"),
        ({"text": [["a"], ["b"]]}, "a column of strings"),
        ({"text": ["a", None, "b", None]}, "2"),
        ({"text": ["", " "]}, "at least one text"),
    ],
)
def test_columns_that_are_refused(
    write: Callable[[Path, dict[str, Any]], Path], columns: dict[str, Any], told: str, tmp_path: Path
) -> None:
    message = refused(write(tmp_path / "x.parquet", columns))
    assert told in message
    assert ("null" in message) == (columns["text"][-1] is None if "text" in columns else False)


def test_strings_of_other_types_of_arrow(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    strings = pa.array(["a", "b"])
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        assert texts_of(write_parquet(tmp_path / "x.parquet", {"text": strings.cast(kind)})) == ["a", "b"]


def test_a_parquet_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a", "b"]})
    path.write_bytes(path.read_bytes()[:-20])
    assert "a file that can be read" in refused(path)


def test_a_data_set_that_the_datasets_package_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(100)]})
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    assert texts_of(tmp_path / "one") == rows["text"][:]
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "dict")
    assert f"{tmp_path / 'dict' / 'train'}, {tmp_path / 'dict' / 'test'}" in refused(tmp_path / "dict")
    assert len(texts_of(tmp_path / "dict" / "test")) == 100
