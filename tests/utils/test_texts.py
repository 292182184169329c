"""Texts, configs, prompts and records as other systems save them: byte order marks, line ends, encodings."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import small_run, train

from gpt_ablate.config.schema import Config, SamplingConfig
from gpt_ablate.data import loading
from gpt_ablate.launching.compose import composer
from gpt_ablate.launching.execution import fingerprint
from gpt_ablate.reporting import run_status
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils import texts
from gpt_ablate.utils.errors import UsageError

MARK = codecs.BOM_UTF8
LINES = "".join(f"{i} Größen, naïve 漢字.\n" for i in range(400))
WINDOWS = LINES.replace("\n", "\r\n")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    loading._corpus.cache_clear()
    yield
    loading._corpus.cache_clear()


@pytest.fixture
def of_texts(tmp_path: Path, with_data: Callable[..., Config]) -> Callable[..., Config]:
    """The config for text files of the given bytes."""

    def make(*contents: bytes) -> Config:
        paths = [tmp_path / f"text{i}.txt" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        loading._corpus.cache_clear()
        return with_data("text", path=[str(path) for path in paths])

    return make


@pytest.mark.parametrize(
    "saved",
    [
        MARK + LINES.encode(),
        WINDOWS.encode(),
        MARK + WINDOWS.encode(),
        LINES.replace("\n", "\r").encode(),
        (WINDOWS[:999] + LINES[-len(LINES) + len(WINDOWS[:999].replace("\r\n", "\n")) :]).encode(),
    ],
    ids=["mark", "CRLF", "mark and CRLF", "CR", "mixed"],
)
def test_marks_and_line_ends_change_no_run(saved: bytes, of_texts: Callable[..., Config]) -> None:
    found = []
    for content in (LINES.encode(), saved):
        config = of_texts(content, content)
        corpus = loading.load(config)
        tokens = (corpus.train.tokens.tolist(), corpus.val.tokens.tolist())
        found.append((tokens, corpus.describe(), fingerprint(config, corpus)))
    assert found[0] == found[1]
    assert found[0][1]["sha256"] == hashlib.sha256(b"\0".join(2 * [LINES.encode()])).hexdigest()


def test_a_text_is_read_as_pythons_text_mode_reads_it(tmp_path: Path) -> None:
    content = MARK + "a\r\nb\rc\n\r\nd\r\r\ne\u2028f\x85g\x0ch".encode()
    (tmp_path / "text.txt").write_bytes(content)
    assert texts.decode(content) == (tmp_path / "text.txt").read_text("utf-8-sig")


REFUSED = [
    (LINES.encode("utf-16"), "UTF-16"),
    (codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"), "UTF-16"),
    (LINES.encode("utf-16-le"), "UTF-16LE"),
    (LINES.encode("utf-16-be"), "UTF-16BE"),
    (b"All ASCII.\n".decode().encode("utf-16-le"), "UTF-16LE"),
    (("漢語の文" * 30 + "\n").encode("utf-16-le"), "UTF-16LE"),
    (LINES.encode("utf-32"), "UTF-32"),
    (codecs.BOM_UTF32_BE + LINES.encode("utf-32-be"), "UTF-32"),
    (LINES.encode("utf-32-le"), "UTF-32LE"),
    (LINES.encode("utf-32-be"), "UTF-32BE"),
    (b"one\r\ntwo\rna\xefve", "byte 11, 0xef on line 3"),
    (MARK + "“quoted”".encode("cp1252"), "byte 3, 0x93 on line 1"),
    (b"cut off: \xe6\xbc", "byte 9"),
    (b"before\0after", "NUL"),
    (b"\0" * 64, "NUL"),
    (LINES.encode() + MARK + LINES.encode(), "(U+FEFF) after its start (1 more, the first on line 401"),
    (MARK + MARK + LINES.encode(), "1 more, the first on line 1"),
    (b"", "not empty"),
    (MARK, "not empty"),
    (MARK + b"\r\n\r\n", "not empty"),
    (b"\x1f\x8b\x08\0" + bytes(range(200)), "gzip"),
]


@pytest.mark.parametrize(("content", "told"), REFUSED)
def test_what_is_no_text_in_utf8_is_named(content: bytes, told: str, of_texts: Callable[..., Config]) -> None:
    config = of_texts(LINES.encode(), content)
    with pytest.raises(UsageError) as error:
        loading.load(config)
    (problem,) = error.value.problems
    assert (problem.key, Path(problem.value).name) == ("data.path", "text1.txt")
    assert told in problem.allowed


def test_a_run_of_an_older_version_on_carriage_returns_is_not_gone_on_with(
    tmp_path: Path, configure: Callable[..., Config]
) -> None:
    (tmp_path / "win.txt").write_bytes(WINDOWS.encode())
    small = [override for override in small_run(tmp_path) if not override.startswith("data")]
    config = configure(*small, "data=text", f"data.path={tmp_path}/win.txt", "trainer.max_steps=1")
    directory = train(config, tmp_path / "run")
    record = directory.record()
    stored = hashlib.sha256(WINDOWS.encode()).hexdigest()  # what older versions took
    directory.update(data=record["data"] | {"sha256": stored}, fingerprint="another")
    with pytest.raises(UsageError, match="trained on this text with its byte order mark or carriage returns"):
        train(config, tmp_path / "run")


def test_the_verdict_with_other_line_ends_says_so(
    verdict: Path, tmp_path: Path, with_data: Callable[..., Config]
) -> None:
    (tmp_path / verdict.name).write_bytes(MARK + verdict.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UsageError, match=r"SHA-256 .* its byte order mark or line ends were changed"):
        loading.load(with_data("verdict", dir=str(tmp_path)))


YAML = '# @package _global_\ndefaults:\n  - override /norm: post\nreport:\n  question: "Größe?"\n'


@pytest.mark.parametrize("saved", [YAML.encode(), MARK + YAML.replace("\n", "\r\n").encode()], ids=["LF", "Windows"])
def test_a_config_is_read_as_any_system_saves_it(saved: bytes, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_bytes(saved)
    with composer(str(tmp_path)) as opened:
        composed = opened.compose_config("config", ["experiment=mine"], run_mode=None, with_log_configuration=False)
    assert (composed.norm.name, composed.report.question) == ("post", "Größe?")


def test_a_prompt_has_the_line_ends_of_texts() -> None:
    rest = {"temperature": 1.0, "top_k": None, "top_p": None, "max_new_tokens": 1}
    assert SamplingConfig(prompt="\ufeffone\r\ntwo\rthree\n", **rest).prompt == "one\ntwo\nthree\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> RunDirectory:
    folder = tmp_path_factory.mktemp("finished")
    return train(configure(*small_run(folder), "trainer.max_steps=2", "sampling.max_new_tokens=2"), folder / "run")


SAVED: dict[str, Callable[[bytes], bytes]] = {
    "mark": lambda content: MARK + content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "mark and CRLF": lambda content: MARK + content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("how", SAVED)
def test_records_are_read_as_any_editor_saves_them(how: str, finished: RunDirectory, tmp_path: Path) -> None:
    here = RunDirectory(tmp_path / "run")
    here.path.mkdir()
    for file in ("run.json", "result.json", "metrics.jsonl", "samples.jsonl"):
        (here.path / file).write_bytes(SAVED[how]((finished.path / file).read_bytes()))
    assert len(finished.metrics()) > 2
    assert here.record() == finished.record()
    assert here.result() == finished.result()
    assert here.metrics() == finished.metrics()
    assert here.samples() == finished.samples()
    (standing,) = run_status.look(tmp_path)
    assert standing.line == finished.metrics()[-1]
    (here.path / "metrics.jsonl").write_bytes(SAVED[how](json.dumps({"step": 0}).encode() + b"\n"))
    assert run_status.look(tmp_path)[0].line == {"step": 0}


@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl"])
def test_records_in_another_encoding_are_named(file: str, finished: RunDirectory, tmp_path: Path) -> None:
    here = RunDirectory(tmp_path)
    (tmp_path / file).write_bytes((finished.path / file).read_bytes().decode().encode("utf-16"))
    with pytest.raises(UsageError, match="UTF-16") as error:
        here.record() if file == "run.json" else here.metrics()
    assert len(error.value.problems) == 1
    assert file in str(error.value)
