"""Token files: read in the width that is asked for; what is no such file is named, honest tokens are taken."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading, token_files
from gpt_ablate.data.gpt2_encoding import Gpt2, gpt2
from gpt_ablate.launching import execution
from gpt_ablate.utils.errors import UsageError

Tokens = npt.NDArray[np.int64]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write train.bin and val.bin, as bytes or as tokens of a dtype; their folder."""

    def make(train: bytes | Tokens, val: bytes | Tokens, dtype: str = "<u2", val_dtype: str | None = None) -> Path:
        for name, content, kind in (("train.bin", train, dtype), ("val.bin", val, val_dtype or dtype)):
            as_bytes = content if isinstance(content, bytes) else content.astype(kind).tobytes()
            (tmp_path / name).write_bytes(as_bytes)
        return tmp_path

    return make


def encoded(text: str) -> Tokens:
    return np.array(Gpt2().encode(text))


@pytest.fixture(scope="module")
def sample() -> Tokens:
    """Tokens of the story in the package."""
    return encoded((Path(loading.__file__).parent / "assets/sample.txt").read_text("utf-8"))


@pytest.fixture(scope="module")
def plays(shakespeare: Path) -> Tokens:
    return encoded(shakespeare.read_text("utf-8"))


@pytest.fixture(params=["sample", "plays"])
def real(request: pytest.FixtureRequest) -> Tokens:
    """Real tokens of GPT-2, few and many."""
    found: Tokens = request.getfixturevalue(request.param)
    return found


def refused(folder: Path, dtype: str | None = None) -> list[str]:
    """Expect a refusal: what it says of each file that it names."""
    with pytest.raises(UsageError) as error:
        token_files.read(str(folder), dtype)
    assert {problem.key for problem in error.value.problems} == {"data.dir"}
    return [f"{Path(problem.value).name}: {problem.allowed}" for problem in error.value.problems]


@pytest.mark.parametrize(("dtype", "lies"), [("uint16", "<u2"), ("uint32", "<u4"), (None, "<u2")])
def test_a_width_changes_no_token_and_no_hash(
    dtype: str | None, lies: str, real: Tokens, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = len(real) * 9 // 10
    train, val, sha256 = token_files.read(str(write(real[:cut], real[cut:], lies)), dtype)
    assert isinstance(train, np.memmap)
    assert (train.dtype, val.dtype) == (lies, lies)
    assert (train.tolist(), val.tolist()) == (real[:cut].tolist(), real[cut:].tolist())
    write(real[:cut], real[cut:], "<u2")
    assert sha256 == token_files.read(str(write(real[:cut], real[cut:], "<u2")), None)[2]
    assert capsys.readouterr().err == ""


def test_a_width_changes_no_run(sample: Tokens, write: Write, with_data: Callable[..., Config]) -> None:
    corpora, fingerprints = [], []
    for dtype, lies in ((None, "<u2"), ("uint16", "<u2"), ("uint32", "<u4")):
        config = with_data("tokens", dir=str(write(sample, sample[:500], lies)), dtype=dtype)
        loading._corpus.cache_clear()
        corpora.append(loading.load(config).describe())
        fingerprints.append(execution.fingerprint(config, loading.load(config)))
    assert corpora[0] == corpora[1] == corpora[2]
    assert len(set(fingerprints)) == 1


@pytest.mark.parametrize("dtype", [None, "uint16", "uint32"])
@pytest.mark.parametrize(
    ("lies", "looks", "remedy"),
    [
        ("<u2", "uint16 tokens", "data.dtype=uint16"),
        ("<u4", "uint32 tokens", "data.dtype=uint32"),
        ("<i4", "uint32 tokens", "data.dtype=uint32"),
        ("<i8", "int64 tokens", "numpy.fromfile(OLD, '<i8')"),
        (">u2", "big-endian uint16", "numpy.fromfile(OLD, '>u2')"),
        (">u4", "big-endian uint32", "numpy.fromfile(OLD, '>u4')"),
        (">i8", "big-endian int64", "numpy.fromfile(OLD, '>i8')"),
    ],
)
def test_another_width_or_byte_order_is_named(
    lies: str, looks: str, remedy: str, dtype: str | None, real: Tokens, write: Write
) -> None:
    if np.dtype(lies).str.replace("i4", "u4") == token_files.DTYPES[dtype or "uint16"].str:
        pytest.skip("what is asked for")
    told = refused(write(real, real[:2000], lies), dtype)
    assert [line.partition(":")[0] for line in told] == ["train.bin", "val.bin"]
    assert all(f"look like {looks}" in line and remedy in line for line in told)


def test_what_a_remedy_writes_is_taken(sample: Tokens, write: Write, tmp_path: Path) -> None:
    write(sample, sample[:500], ">i8")
    for name in token_files.FILES:
        np.fromfile(tmp_path / name, ">i8").astype("<u2").tofile(tmp_path / name)
    assert token_files.read(str(tmp_path), None)[0].tolist() == sample.tolist()


@pytest.mark.parametrize(("train", "val"), [("<u2", "<u4"), ("<u4", "<u2")])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_two_widths(train: str, val: str, dtype: str, sample: Tokens, write: Write) -> None:
    (told,) = refused(write(sample, sample[:500], train, val), dtype)
    wrong = "val.bin" if train == token_files.DTYPES[dtype].str else "train.bin"
    assert told.startswith(wrong)
    assert "write both files in one width" in told


@pytest.mark.parametrize("dtype", [None, "uint32"])
@pytest.mark.parametrize("lies", ["<u4", ">u4"])
def test_a_larger_vocabulary(lies: str, dtype: str | None, sample: Tokens, write: Write) -> None:
    foreign = sample * 2 + np.arange(len(sample)) % 28_000  # to 128,000, as Llama 3's
    told = refused(write(foreign, foreign[:500], lies), dtype)
    assert all("tokens below 50257" in line for line in told)
    assert ("another vocabulary" in told[0]) == ((lies, dtype) != ("<u4", "uint32"))


def test_a_vocabulary_that_fits_is_told_of(sample: Tokens, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = (sample * 7 + 11) % 32_000  # as many ids as Llama 2's
    token_files.read(str(write(foreign, sample[:500])), None)
    told = capsys.readouterr().err
    assert "train.bin: its tokens are not those that GPT-2's tokenizer gives" in told
    assert "val.bin" not in told


def with_header(magic: int, version: int, tokens: Tokens, dtype: str) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + tokens.astype(dtype).tobytes()


def saved(function: Callable[..., None], tokens: Tokens) -> bytes:
    file = io.BytesIO()
    function(file, tokens.astype("<u2"))
    return file.getvalue()


FORMATS: dict[str, Callable[[Tokens], bytes]] = {
    "llm.c": lambda tokens: with_header(20240520, 1, tokens, "<u2"),
    "Llama 3": lambda tokens: with_header(20240801, 7, tokens, "<u4"),
    "tokens below 50257": lambda tokens: tokens.astype("<f4").tobytes(),
    "NumPy array": lambda tokens: saved(np.save, tokens),
    "zip archive": lambda tokens: saved(np.savez, tokens),
    "gzip": lambda tokens: gzip.compress(tokens.astype("<u2").tobytes()),
    "like text": lambda tokens: gpt2().decode(tokens.tolist()).encode(),
    "like text ": lambda _: "Все счастливые семьи похожи друг на друга. ".encode() * 9000,
    "UTF-16": lambda _: "Every effort moves you. ".encode("utf-16") * 90,
    "not 1 bytes": lambda _: b"\0",
}


@pytest.mark.parametrize("dtype", [None, "uint32"])
@pytest.mark.parametrize("told", FORMATS)
def test_another_format_is_named(told: str, dtype: str | None, sample: Tokens, write: Write) -> None:
    lies = token_files.DTYPES[dtype or "uint16"].str
    (problem,) = refused(write(FORMATS[told](sample), sample[:500], lies), dtype)
    assert problem.startswith("train.bin")
    assert told.strip() in problem


@pytest.mark.parametrize(("dtype", "lies", "size"), [(None, "<u2", 9001), ("uint32", "<u4", 9002)])
def test_a_file_cut_off(dtype: str | None, lies: str, size: int, sample: Tokens, write: Write) -> None:
    (told,) = refused(write(sample.astype(lies).tobytes()[:size], sample, lies), dtype)
    assert f"not {size} bytes" in told


@pytest.mark.parametrize("dtype", [None, "uint32"])
def test_a_wider_file_with_an_unknown_header_is_not_taken(dtype: str | None, sample: Tokens, write: Write) -> None:
    long = np.tile(sample, 1 + 30_000 // len(sample))
    refused(write(with_header(7_000_000, 3, long, "<u4"), long[:500].astype("<u4").tobytes()), dtype)


RNG = np.random.default_rng(0)
HONEST: dict[str, Tokens] = {
    "all 0": np.zeros(5000, int),
    "all the highest": np.full(40, 50256),
    "spaces": np.full(4000, 8224),  # bytes that are a text
    "in order": np.arange(40),
    "few": np.array([5, 0, 7, 0, 9, 0, 11, 0, 13, 0]),
    "exclamations": encoded("Hi! " * 500),  # every second token is 0
    "exclamations alone": encoded("!" * 999),
    "mostly 0": np.where(RNG.random(90_000) < 0.999, 0, RNG.integers(0, 50257, 90_000)),
    "end-of-text": np.array([50256, 50256, *encoded("Hello, world")] * 9),
    "separator at even places": np.where(np.arange(9000) % 32 == 0, 17, RNG.integers(0, 2, 9000)),
    "emoji": encoded("🙂🐑 und 漢字 " * 200),
    **{f"below {n}": RNG.integers(0, n, 9000) for n in (2, 4, 65, 256, 1000, 50257)},
}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("kind", HONEST)
def test_honest_tokens_are_taken(kind: str, dtype: str, write: Write) -> None:
    tokens = HONEST[kind]
    train, _, _ = token_files.read(str(write(tokens, tokens[:100], token_files.DTYPES[dtype].str)), dtype)
    assert train.tolist() == tokens.tolist()


@pytest.mark.parametrize("kind", ["in order", "mostly 0", "below 4", "below 65"])
@pytest.mark.parametrize("lies", ["<u4", "<i8", ">u4"])
def test_synthetic_tokens_of_another_width_are_not(kind: str, lies: str, write: Write) -> None:
    assert "look like" in refused(write(HONEST[kind], HONEST["all 0"], lies))[0]


def test_a_file_is_refused_by_a_sample_of_it(sample: Tokens, write: Write, tmp_path: Path) -> None:
    """64 GB, of which nearly all is a hole: reading it whole would take minutes."""
    write(sample, sample[:500], "<u4")
    with (tmp_path / "train.bin").open("r+b") as file:
        file.truncate(1 << 36)
        file.seek(-4096, io.SEEK_END)
        file.write(sample[:1024].astype("<u4").tobytes())
    assert len(refused(tmp_path)) == 2


def test_a_pipe_is_no_token_file(write: Write, sample: Tokens, tmp_path: Path) -> None:
    import os

    write(sample, sample[:500])
    (tmp_path / "train.bin").unlink()
    os.mkfifo(tmp_path / "train.bin")
    (told,) = refused(tmp_path)
    assert "not an ordinary file" in told
