"""Every code block of README.md and docs/ works, and every link of the site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_pages import PAGES, PROJECT, Block, Reader, blocks

from gpt_ablate.config.paths import CONF
from gpt_ablate.reporting import study_figures

FIRST = ["README.md", "docs/tutorial/first_study.md", "docs/howto/add_a_variant.md"]
"""Pages whose commands the fast tests check too."""
IN_A_CHECKOUT = "docs/howto/add_an_axis.md"
WITH_CODE = [page for page in PAGES if any(block.language != "text" for block in blocks(page))]
OTHERS = [page for page in WITH_CODE if page not in (*FIRST, IN_A_CHECKOUT)]


@pytest.mark.parametrize("page", WITH_CODE)
def test_every_block_is_of_a_language_that_is_checked(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page)), "a block that is indented or not closed"
    for block in blocks(page):
        assert block.language in ("sh", "python", "yaml", "text")
        assert block.title or block.language != "yaml", "YAML is a file, which a command on the page uses"
        if block.language == "yaml":
            yaml.safe_load(block.code)


@pytest.mark.parametrize("page", [*FIRST, *OTHERS])
@pytest.mark.fast_cases(len(FIRST))
def test_every_command_is_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(page, Reader(tmp_path, monkeypatch, trains=False))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_CODE if page != IN_A_CHECKOUT])
def test_a_page_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_figures, "plates", lambda *_: [])  # seconds a launch, and tested with the report
    follow(page, Reader(tmp_path, monkeypatch, trains=True))


def follow(page: str, reader: Reader) -> None:
    before = set(sys.modules)
    try:
        for block in blocks(page):
            reader.follow(block)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(reader.folder)):
                del sys.modules[name]


@pytest.mark.slow
def test_the_axis_of_the_page_can_be_added_to_a_checkout(tmp_path: Path) -> None:
    for folder in ("src", "conf"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    for block in blocks(IN_A_CHECKOUT):
        if block.title:
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        else:
            run_in(tmp_path, block)
    studied = yaml.safe_load((tmp_path / "outputs/sweep/study.json").read_text())
    assert {run["levels"]["embedding_scale"] for run in studied["runs"]} == {"none", "sqrt"}
    losses = {(run / "result.json").read_text() for run in tmp_path.glob("outputs/sweep/*/seed_*")}
    assert len(losses) == 2


def run_in(folder: Path, block: Block) -> None:
    small = "trainer.max_steps=1 model.d_model=16 model.context_length=16"
    code = re.sub(r"(gpt_ablate\.train .*)", rf"\1 {small}", block.code.replace("\\\n", " "))
    environment = os.environ | {
        "PYTHONPATH": str(folder / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-ec", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_another_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]* href=[\"']?([^\"' >]+)", text)
        assert not [url for url in loaded if url.startswith(("http", "//"))], page
        assert "edit this page" not in text.lower()
    listed = (tmp_path / "site/reference/config.html").read_text(encoding="utf-8")
    for option in CONF.rglob("*.yaml"):
        group = option.parent.relative_to(CONF).as_posix()
        if group != ".":
            assert f"{group}={option.stem}" in listed, option
    for key in ("optimizer.lr", "trainer.max_flops", "report.metrics", "model.tie_weights", "mlp.hidden"):
        assert f"<code>{key}</code>" in listed
