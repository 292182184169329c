"""Named sets: where their files are found, and which lines of them are the author's."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from gpt_ablate.data.documents import Documents, measure
from gpt_ablate.data.named_sets import NamedText, located, text_sets
from gpt_ablate.utils.errors import UsageError
from gpt_ablate.utils.texts import decode

BOOKS = {
    # file: characters, hashes of the first and the last 100 of them, lines of others between the marks of the licence
    "541.txt": (580149, "baab439d", "bb482dbc", 16),
    "284.txt": (730747, "30f67369", "c47bb2e4", 8),
    "11052.txt": (787951, "237cc753", "39d13d3a", 2),
    "4517-0.txt": (188454, "81629616", "e77047c6", 2),
    "283-0.txt": (534402, "540509ba", "b7464e79", 2),
    "166-0.txt": (314996, "ae5e1730", "c57cb3a4", 2),
    "1263-0.txt": (465662, "ee559704", "fb652cf6", 2),
    "4514-0.txt": (535103, "f684bd6d", "bb0fd84d", 2),
    "1399-0.txt": (1964760, "bf64f0ac", "aa46d61a", 2),
    "1023.txt": (1941390, "08b9d54c", "32866682", 5),
    "766-0.txt": (1934596, "94aa0d03", "506ae3bb", 2),
    "145.txt": (1794735, "a3b3c2e3", "81438e44", 1),
    "2701-0.txt": (1218529, "9c96b1a7", "ac95bd20", 8),
    "28054-0.txt": (1936851, "9149f23d", "979a6428", 0),
    "599.txt": (1715935, "9d1779f4", "a11ea7ec", 2),
    "2600-0.txt": (3208235, "f0d66aca", "5b1f53d1", 2),
}


def test_the_sets() -> None:
    sets = text_sets()
    assert {name: len(texts) for name, texts in sets.items()} == {
        "sample": 1,
        "verdict": 1,
        "shakespeare": 1,
        "wharton": 8,
        "classics": 8,
    }
    assert [text.file for name in ("wharton", "classics") for text in sets[name]] == list(BOOKS)
    assert {text.author for text in sets["wharton"]} == {"Edith Wharton"}
    every = [text for texts in sets.values() for text in texts]
    assert all(re.fullmatch("[0-9a-f]{64}", text.sha256) for text in every if text.set != "sample")
    assert len({text.title for text in every}) == len(every)


@pytest.mark.parametrize("text", [*text_sets()["wharton"], *text_sets()["classics"]], ids=lambda text: text.title)
def test_of_a_book_the_lines_of_its_author_are_left(text: NamedText, books: Path) -> None:
    (source,) = located([text], str(books))
    ((name, book),) = [(document.name, document.text) for document in source]
    ends = [hashlib.sha256(part.encode()).hexdigest()[:8] for part in (book[:100], book[-100:])]
    lines = decode((books / text.file).read_bytes()).split("\n")
    marks = [
        next(i for i, line in enumerate(lines) if re.match(rf"\*\*\* ?{mark} OF", line)) for mark in ("START", "END")
    ]
    inside = [line for line in lines[marks[0] + 1 : marks[1]] if line.strip()]
    kept = [line for line in book.split("\n") if line.strip()]
    assert name == text.title
    assert (len(book), *ends, len(inside) - len(kept)) == BOOKS[text.file]
    assert set(kept) <= set(inside)
    for other in ("Gutenberg", "\nProduced by", "Transcriber", " etext"):
        assert other not in book
    assert not set("\r\ufeff\0") & set(book)


def test_texts_without_a_frame_are_as_they_lie(verdict: Path, shakespeare: Path) -> None:
    for name, path, length in (("verdict", verdict, 20_479), ("shakespeare", shakespeare, 1_115_394)):
        measures = measure(Documents(located(text_sets()[name], str(path.parent))))
        assert (measures.characters, measures.stored_sha256) == (length, None)
        assert measures.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_sample_has_the_hash_that_it_had() -> None:
    measures = measure(Documents(located(text_sets()["sample"], None)))
    assert measures.sha256 == "604f185923427a610f7da422ce4102d9f424656d132dc774175fe72fc571bb73"


CONTENTS = {"one.txt": b"credits\r\nOne\r\n\r\n1\r\nlicence\r\n", "two.txt": b"licence\nTwo\n2\nnote\n22\nlicence\n"}
LINES = {"one.txt": "2-4", "two.txt": "2-3,5-5"}
TEXTS = {"one.txt": "One\n\n1\n", "two.txt": "Two\n2\n\n22\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache, and no $GPT_ABLATE_DATA."""
    folder = tmp_path / "user-cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    monkeypatch.delenv("GPT_ABLATE_DATA", raising=False)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address where it is served, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=partial(served.serve_forever, poll_interval=0.01), daemon=True).start()
    yield folder, f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    served.server_close()


def pair(address: str = "http://127.0.0.1:1") -> list[NamedText]:
    return [
        NamedText("pair", name, hashlib.sha256(content).hexdigest(), f"{address}/{name}", LINES[name], "I", name[:3])
        for name, content in CONTENTS.items()
    ]


def write(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(CONTENTS[name])
    return str(folder)


def refused(texts: list[NamedText], folder: str | None = None, **keywords: bool) -> list[tuple[str, str]]:
    with pytest.raises(UsageError) as error:
        located(texts, folder, **keywords)
    return [(problem.key, str(problem)) for problem in error.value.problems]


def test_each_file_is_found_in_each_place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = write(tmp_path / "named", "one.txt")
    write(tmp_path / "environment" / "books", "one.txt", "two.txt")
    monkeypatch.setenv("GPT_ABLATE_DATA", str(tmp_path / "environment"))
    found = located(pair(), named)
    assert [source.path for source in found] == [
        tmp_path / "named" / "one.txt",
        tmp_path / "environment" / "books" / "two.txt",
    ]
    assert [document.text for document in Documents(found)] == list(TEXTS.values())
    monkeypatch.delenv("GPT_ABLATE_DATA")
    write(cache / "gpt_ablate", "two.txt")
    assert located(pair(), named)[1].path == cache / "gpt_ablate" / "two.txt"


def test_what_is_not_there_is_downloaded_once(tmp_path: Path, cache: Path, server: tuple[Path, str, list[str]]) -> None:
    folder, address, asked = server
    write(folder, *CONTENTS)
    named = write(tmp_path / "named", "two.txt")
    for _ in range(2):
        assert [document.text for document in Documents(located(pair(address), named))] == list(TEXTS.values())
    assert asked == ["/one.txt"]
    assert (cache / "gpt_ablate" / "one.txt").read_bytes() == CONTENTS["one.txt"]


def test_a_download_with_another_hash_is_refused(cache: Path, server: tuple[Path, str, list[str]]) -> None:
    folder, address, _ = server
    write(folder, *CONTENTS)
    (folder / "two.txt").write_bytes(b"Not Found")
    ((key, message),) = refused(pair(address))
    assert key == "data"
    assert "two is not here" in message
    assert "two.txt in a folder" in message
    assert [path.name for path in cache.rglob("*.txt")] == ["one.txt"]


def test_all_files_that_cannot_be_downloaded_are_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    ((key, message),) = refused(pair())
    assert key == "data"
    for told in ("pair", "one, two are not here", "network", "data.dir=", "GPT_ABLATE_DATA=", "data=sample"):
        assert told in message
    ((_, message),) = refused(pair(), takes_dir=False)
    assert "data.dir" not in message


@pytest.mark.parametrize("key", ["data.dir", "$GPT_ABLATE_DATA"])
def test_other_texts_under_these_names(key: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_ABLATE_DATA", str(tmp_path) if key[0] == "$" else "")
    (tmp_path / "one.txt").write_bytes(b"another text")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "two.txt").write_bytes(CONTENTS["two.txt"])
    texts = [*pair(), NamedText("pair", "two.txt", hashlib.sha256(b"2\n").hexdigest(), "", "", "I", "three")]
    (first, second) = refused(texts, str(tmp_path) if key == "data.dir" else None)
    assert first[0] == second[0] == key
    assert f"one with SHA-256 {texts[0].sha256}, found {hashlib.sha256(b'another text').hexdigest()}" in first[1]
    assert "data=text" in first[1]
    assert "three with SHA-256" in second[1]


def test_a_file_whose_line_ends_were_changed(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "two.txt").write_bytes(b"\xef\xbb\xbf" + CONTENTS["two.txt"].replace(b"\n", b"\r\n"))
    ((_, message),) = refused(pair()[1:], str(tmp_path))
    assert "its byte order mark or line ends were changed" in message


def test_a_text_is_called_by_its_title_or_its_file() -> None:
    moby_dick = next(text for text in text_sets()["classics"] if text.file == "2701-0.txt")
    assert all(moby_dick.is_called(name) for name in ("Moby-Dick", "moby-dick", "2701-0.txt", "2701-0"))
    assert not any(moby_dick.is_called(name) for name in ("2701", "Moby", "classics", ""))
