"""Fixtures: configs composed from conf/, tiny by default, and the data that some tests need."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from gpt_ablate.config.paths import CONF
from gpt_ablate.config.registry import Registry, load
from gpt_ablate.config.resolve import resolve
from gpt_ablate.config.schema import Config
from gpt_ablate.kernels import linear

TINY = ["model=micro", "data=sample", "model.dropout=0", "trainer.device=cpu"]


for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # as nohup and a shell's background jobs start their commands
        signal.signal(_number, _default)
torch.set_num_threads(1)  # tiny products: threads would only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow, cases = pytest.mark.skip(reason="slow: make test-all"), defaultdict[str, int](int)
    for item in items:
        few = item.get_closest_marker("fast_cases")
        name = item.nodeid.partition("[")[0]
        if "slow" in item.keywords or (few and cases[name] >= few.args[0]):
            item.add_marker(slow)
        else:
            cases[name] += 1


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """The checked config that the given overrides make of the tiny one."""

    @functools.cache
    def make(*overrides: str) -> Config:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(compose("config", overrides=[*TINY, *overrides]))

    return make


@pytest.fixture(scope="session")
def with_data(configure: Callable[..., Config]) -> Callable[..., Config]:
    """A config of 8-token windows for `data=name`, with other values under `data`."""
    unset = {"text": "data.path=unset", "tokens": "data.dir=unset", "verdict": "data.dir=null"}
    small = ("model.context_length=8", "data.batch_size=2")
    composed = {name: configure(f"data={name}", override, *small) for name, override in unset.items()}

    def make(name: str, **values: object) -> Config:
        config = composed[name]
        return config.model_copy(update={"data": config.data.model_copy(update=values)})

    return make


@pytest.fixture(params=["MKL", "oneDNN forward", "oneDNN"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to share the products of float32 on the CPU between the two libraries, whatever is quicker here."""
    if request.param != "MKL" and not linear.has_onednn():
        pytest.skip("a torch without oneDNN")
    quicker = linear.Quicker(forward=request.param != "MKL", backward=request.param == "oneDNN")
    monkeypatch.setattr(linear, "onednn_is_quicker", lambda: quicker)


def _needed(name: str) -> Path:
    folder = os.environ.get("GPT_ABLATE_DATA")
    if folder and (path := Path(folder) / name).exists():
        return path
    message = f"$GPT_ABLATE_DATA has no {name}"
    if os.environ.get("GPT_ABLATE_REQUIRE_DATA"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def verdict() -> Path:
    """The Verdict's text file; skips where there is none."""
    return _needed("the-verdict.txt")


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare; skips where there is none."""
    return _needed("tinyshakespeare.txt")


@pytest.fixture(scope="session")
def books() -> Path:
    """The folder of the files of data=wharton and data=classics; skips where there is none."""
    return _needed("books")


@pytest.fixture(scope="session")
def gpt2_files() -> Path:
    """Folder with GPT-2's vocab.bpe and encoder.json; skips where there is none."""
    return _needed("gpt2")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module that a config's `plugins` can name; what it registers lasts for one test."""
    load()
    for registered in Registry.by_key.values():
        monkeypatch.setattr(registered, "builders", dict(registered.builders))
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> str:
        (tmp_path / "mine.py").write_text(code)
        return "plugins=[mine]"

    yield write
    sys.modules.pop("mine", None)
