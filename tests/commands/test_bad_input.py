"""Whatever is asked wrongly: one clear refusal, exit code 2, no traceback, and nothing written or changed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import COMMANDS, TINY, VALUES
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from refusals import refusal
from synthetic import CONFIG, Shape, record_of

from gpt_ablate.axes.norm import norms
from gpt_ablate.config.fingerprint import flatten
from gpt_ablate.config.paths import CONF
from gpt_ablate.config.resolve import resolve
from gpt_ablate.config.schema import Config
from gpt_ablate.launching import launch
from gpt_ablate.utils.errors import UsageError

Refused = Callable[..., str]
PLUGINS = {
    "raises": "raise RuntimeError('not today')",
    "leaves": "import sys\nsys.exit('bye')",
    "number": "from gpt_ablate.axes.norm import norms\nnorms.register('number')(5)",
    "unread": "from gpt_ablate.axes.norm import norms\n@norms.register('unread')\ndef f(context, *, eps: 'Nope'): ...",
    "torn": "def broken(:",
    "twice": "from gpt_ablate.axes.norm import norms, PreNorm\nnorms.register('pre')(PreNorm)",
}
ALIASES = [b",".join([b"*a%d" % (i - 1)] * 10) for i in range(12)]
"""Ten times the line above: 11 lines of them stand for 10**11 values."""


@pytest.fixture(scope="module")
def tiny() -> DictConfig:
    """The tiny config, composed once since that takes most of the time."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(TINY))


@pytest.fixture
def changed(tiny: DictConfig) -> Callable[..., DictConfig]:
    """The tiny config with values changed as Hydra reads them."""

    def change(*overrides: str) -> DictConfig:
        config = tiny.copy()
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add())
        return config

    return change


def furnish(folder: Path) -> None:
    """What commands may stumble over."""
    text = " ".join(f"The {i}th of {i * i} sheep said {'baa' if i % 3 else 'no'}." for i in range(23))
    contents = {
        "text.txt": text.encode(),
        "short.txt": b"A short one.",
        "empty.txt": b"",
        "blank.txt": b" \n\t\n",
        "binary.bin": bytes(range(256)),
        "utf16.txt": text.encode("utf-16"),
        "joined.txt": b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo",
        "surrogate.txt": b"half of a pair: \xed\xa0\xbd",
        "nul.txt": b"before\0after",
        "folder/kept": b"",
        "odd/train.bin": b"\0\1\2",
        "odd/val.bin": b"\0\1",
        "high/train.bin": np.array([65535], np.uint16).tobytes(),
        "high/val.bin": np.array([1], np.uint16).tobytes(),
        "wide/train.bin": np.arange(40, dtype=np.uint32).tobytes(),
        "wide/val.bin": np.arange(40, dtype=np.uint32).tobytes(),
        "other/run.json": json.dumps(record_of(CONFIG, Shape())).encode(),
        "damaged/run.json": b"{",
        "listed/run.json": b"[]",
        "headless/metrics.jsonl": b"",
        "linked/run.json": b"{}",
        "runs/one/run.json": b"{}",
        "torn/torn/syntax.yaml": b"a: {b: 1",
        "torn/torn/object.yaml": b"a: !!python/object/apply:os.system [touch owned]",
        "torn/torn/deep.yaml": b"a: " + 3000 * b"[" + 3000 * b"]",
        "torn/torn/utf16.yaml": "a: 1\n".encode("utf-16"),
        "torn/torn/cp1252.yaml": b"a: 1\r\n\xf6: 2\r\n",
        "torn/torn/joined.yaml": b"\xef\xbb\xbfa: 1\n\xef\xbb\xbfb: 2\n",
        "torn/torn/tab.yaml": b"a:\n\tb: 1\n",
        "torn/torn/header.yaml": b"# @package _global_ too\n",
        "utf16.py": "x = 1\n".encode("utf-16"),
        "torn/torn/bomb.yaml": b"a0: &a0 [a]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, ALIASES[i]) for i in range(1, 12)),
        "torn/torn/merged.yaml": b"a0: &a0 {a: 1}\n"
        + b"".join(b"a%d: &a%d\n  <<: [%s]\n" % (i, i, ALIASES[i]) for i in range(1, 12)),
        "torn/torn/itself.yaml": b"a: &a [1, *a]",
        "torn/torn/large.yaml": b"a: [" + b"1," * (1 << 20) + b"1]",
        "torn/torn/digits.yaml": b"a: " + b"9" * 5000,
        "torn/torn/latin.yaml": "a: é".encode("latin-1"),
        "torn/torn/circle.yaml": b"defaults: [other]",
        "torn/torn/other.yaml": b"defaults: [circle]",
        "hostile/hostile/logging.yaml": b"# @package hydra.job_logging\nfilters: {x: {(): os.system}}\n",
    }
    contents |= {f"{name}.py": source.encode() for name, source in PLUGINS.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)
    (folder / "linked/metrics.jsonl").symlink_to(folder / "text.txt")
    (folder / "link").symlink_to(folder / "folder")
    (folder / "outputs/links").mkdir(parents=True)
    (folder / "outputs/links/default").symlink_to(folder / "folder")
    with (folder / "sparse.txt").open("wb") as file:
        file.truncate(3 << 29)
    os.mkfifo(folder / "pipe")


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): (path.open("rb").read(1 << 20), path.stat().st_mtime_ns) for path in files} | {
        str(path): (b"", 0) for path in folder.rglob("*") if path.is_dir() and path.name != "__pycache__"
    }


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """Run `train` in a furnished folder: what it says as it refuses, once all else is checked."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(norms, "builders", dict(norms.builders))
    before = tree(tmp_path)

    def command(*arguments: str) -> str:
        told = refusal([*arguments], monkeypatch, capfd)
        assert tree(tmp_path) == before
        return told

    yield command
    for name in PLUGINS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("overrides", "key"), VALUES)
def test_a_bad_value_is_refused_by_key(overrides: str, key: str, changed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UsageError) as error:
        resolve(changed(*overrides.split(" ")))
    assert {problem.key for problem in error.value.problems} == {key}
    assert key in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_bad_value_refuses_the_command(part: int, refused: Refused) -> None:
    """Every fourth of the values above, as a command."""
    for overrides, key in VALUES[4 * part :: 8]:
        told = refused(*TINY, *overrides.split(" "))
        assert told.startswith(f"gpt_ablate: {key} = "), overrides


@pytest.mark.parametrize(
    ("arguments", "key", "hint"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i % 4 else []) for i, case in enumerate(COMMANDS)],
)
def test_a_refusal_is_one_message_and_leaves_nothing(
    arguments: list[str], key: str, hint: str, refused: Refused
) -> None:
    told = refused(*arguments)
    assert key in told
    assert hint in told


def test_every_problem_of_a_command_is_told(refused: Refused) -> None:
    told = refused("data=sample", "norm.eps=0", "model.n_head=5", "optimizer.lr=nan", "seed=-1", "study=a/b")
    assert {line.split()[1] for line in told.splitlines()} == {
        *("norm.eps", "model.n_head", "optimizer.lr", "seed", "study"),
    }


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_is_taken_or_refused(data: st.DataObject, tiny: DictConfig) -> None:
    plain: Any = OmegaConf.to_container(tiny, resolve=False)
    plain.pop("hydra", None)
    keys = data.draw(st.lists(st.sampled_from(sorted(flatten(plain))), min_size=1, max_size=4, unique=True))
    for key in keys:
        *path, last = key.split(".")
        node = plain
        for part in path:
            node = node[part]
        node[last] = data.draw(ANYTHING, label=key)
    told = ["taken"]
    try:
        assert isinstance(resolve(OmegaConf.create(plain, flags={"allow_objects": False})), Config)
    except UsageError as error:
        told = [str(problem) for problem in error.problems]
    assert told
    assert not any("\n" in line for line in told)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["study", "seed", "norm", "model.n_layer", "sampling.prompt", "data.path"]), text=...)
def test_any_text_on_the_command_line_is_refused_in_order(key: str, text: str, refused: Refused) -> None:
    refused(*TINY, "trainer.max_epochs=0", f"{key}={text}")


SLOW_NAMES = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("it's", "größe", "実験", 'x="1"', "$HOME", "%20", "a,b")
]


@pytest.mark.parametrize("name", ["emoji 🐑 b", *SLOW_NAMES])
def test_names_of_all_kinds_are_good_input(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    place.mkdir()
    furnish(place)
    monkeypatch.chdir(place)
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    small = ("model.d_model=8", "model.n_head=1", "model.n_layer=1", "model.context_length=16", "trainer.max_steps=1")
    study = [] if '"' in name else [f"study='{quoted}'"]
    arguments = [*TINY, *small, "sampling.max_new_tokens=2", f"sampling.prompt='{quoted}'", *study]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert not stop.value.code, capfd.readouterr()
    (record,) = place.glob(f"outputs/{name if study else 'runs'}/*/run.json")
    assert json.loads(record.read_text())["config"]["sampling"]["prompt"] == name
