"""Data and tokenizers that are wrong: one clear refusal, exit code 2, no traceback, and nothing written or changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import bad_data
import pooch
import pytest
from refusals import refusal

from gpt_ablate import prepare


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that is refused, made once."""
    folder = tmp_path_factory.mktemp("furnished")
    bad_data.furnish(folder)
    made = folder / "made"
    with pytest.MonkeyPatch.context() as patch:
        texts = [str(folder / "books/one.txt"), "--to", str(made), "--tokenizer", "bytes", "--workers", "1"]
        patch.setattr("sys.argv", ["prepare", *texts])
        prepare.main()
    for name, damage in bad_data.SHARDS.items():
        shutil.copytree(made, folder / name)
        damage(folder / name)
    return folder


@pytest.mark.parametrize(
    ("arguments", "key", "hint"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i % 6 else []) for i, case in enumerate(bad_data.CASES)],
)
def test_a_refusal_is_one_message_and_leaves_nothing(
    arguments: tuple[str, ...],
    key: str,
    hint: str,
    furnished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("GPT_ABLATE_DATA", str(furnished))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(pooch.get_logger(), "disabled", True)  # it tells of a download that is tried
    before = {path: path.lstat().st_mtime_ns for path in furnished.rglob("*")}
    told = refusal([*bad_data.SMALL, *arguments], monkeypatch, capfd)
    assert key in told
    assert hint in told
    assert {path: path.lstat().st_mtime_ns for path in furnished.rglob("*")} == before
