"""TensorBoard in a real browser: the runs, their curves and samples are there to see."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_ablate import training
from gpt_ablate.config import Config

pytestmark = pytest.mark.slow

CELLS = [f"{norm}-{layers}" for norm in ("pre", "post") for layers in ("fresh", "clone")]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1500,2000"
)
ALL_TEXT = """
const walk = node => (node.nodeType === 3 ? node.textContent : "")
  + (node.shadowRoot ? walk(node.shadowRoot) : "")
  + (["SCRIPT", "STYLE"].includes(node.nodeName) ? "" : [...node.childNodes].map(walk).join(" "));
return walk(document.body);
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> Iterator[str]:
    """The address of a TensorBoard over four tiny runs."""
    root = tmp_path_factory.mktemp("study")
    for cell in CELLS:
        norm, layers = cell.split("-")
        small = ["model.d_model=16", "model.context_length=16", "data.batch_size=2", "trainer.max_steps=4"]
        config = configure(f"norm={norm}", f"layers={layers}", "trainer.sample_every=2", *small)
        training.run(config, root / cell / "seed_123", [], Console(quiet=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root), "--port", str(port)]
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: urllib.request.urlopen(address, timeout=5).status == 200)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium from the system's packages."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("timeseries", [*CELLS, "eval/train_loss", "eval/val_loss", "optim/lr", "optim/grad_norm"]),
        ("hparams", ["norm", "layers", "attention", "eval/train_loss", "fresh", "clone"]),
        ("text", [*CELLS, "samples", "Every effort moves you"]),
    ],
)
def test_the_page_shows_every_run(board: str, browser: Any, tmp_path: Path, page: str, expected: list[str]) -> None:
    browser.get(f"{board}/#{page}")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    try:
        _until(lambda: all(_packed(word) in _packed(browser.execute_script(ALL_TEXT)) for word in expected))
    finally:
        browser.save_screenshot(str(folder / f"tensorboard_{page}.png"))


def _packed(text: str) -> str:
    """Without white space: the page sets the parts of a path in elements of their own."""
    return "".join(text.split())


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    """Wait for `true`; an answer that cannot be had yet is a no."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if true():
                return
        except OSError as error:
            last = error
        time.sleep(0.5)
    pytest.fail(f"not within {seconds:.0f} s ({last})")
