"""The pages that a user reads, and their code blocks as a user would run them, in this process and in small."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser

import gpt_ablate
from gpt_ablate.config.registry import Registry, load
from gpt_ablate.launching import in_process, launch
from gpt_ablate.launching.planning import make_plan
from gpt_ablate.utils.errors import UsageError

PROJECT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "docs").rglob("*.md"))]
SMALL = [
    *(
        "model.n_layer=2",
        "model.n_head=2",
        "model.d_model=16",
        "model.context_length=16",
        "trainer.device=cpu",
        "trainer.max_steps=2",
    ),
    *("trainer.eval_batches=1", "sampling.max_new_tokens=3"),
]
_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_LIGHT = ("printf",)
"""Programs that a page may call beside the project's own."""


@dataclass(frozen=True)
class Block:
    """A code block; one with a title is a file of that name."""

    language: str
    title: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall((PROJECT / page).read_text(encoding="utf-8"))]


class Reader:
    """Someone who follows a page, block by block, in an empty folder.

    With `trains` false, commands that train are composed, checked and placed, and no more.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, trains: bool) -> None:
        self.folder, self.monkeypatch, self.trains = folder, monkeypatch, trains
        self.names: dict[str, Any] = {"__name__": "page"}
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MPLBACKEND", "Agg")
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setitem(vars(gpt_ablate), "train", self._train)
        load()  # else a registry that is imported later would keep what a page registers
        for registry in Registry.by_key.values():
            monkeypatch.setattr(registry, "builders", dict(registry.builders))

    def follow(self, block: Block) -> None:
        """Do what a block says. Raises what goes wrong."""
        if block.title:
            (self.folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.title).write_text(block.code, encoding="utf-8")
            assert Path(block.title).stem not in sys.modules or block.language != "python", block.title
        elif block.language == "python":
            code = compile(block.code, "page", "exec")
            if self.trains or "gpt_ablate" not in block.code:
                exec(code, self.names)
        elif block.language == "sh":
            for line in block.code.replace("\\\n", " ").splitlines():
                self._command(line)

    def _command(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        match words:
            case ["python", "-m", "gpt_ablate.train", *arguments]:
                self._launch(arguments)
            case ["python", "-m", module, *arguments]:
                main = importlib.import_module(module).main
                if self.trains or module == "gpt_ablate.prepare":  # what trains then needs its shards to be planned
                    self._run(main, [*arguments, *(SMALL if module == "gpt_ablate.profile" else [])])
            case ["make", target]:
                assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), target
            case ["docker", "build", "-f", file, *_]:
                assert (PROJECT / file).exists()
            case ["docker", "run", "gpt_ablate", *inside]:
                self._command(shlex.join(inside))
            case [".venv/bin/pytest", "--slow", folder]:
                assert (PROJECT / folder).is_dir()
            case ["tensorboard", "--logdir", *_]:
                assert shutil.which("tensorboard", path=str(Path(sys.executable).parent)) or not self.trains
            case [".", ".venv/bin/activate"] | ["eval", _] | []:
                pass
            case [program, *_] if program in _LIGHT:
                subprocess.run(["bash", "-ec", line], check=True)
            case _:
                raise AssertionError(f"a command that no test knows: {line}")

    def _launch(self, arguments: list[str]) -> None:
        arguments = self._in_small(arguments)
        if self.trains and not any(argument.startswith("hydra/launcher=") for argument in arguments):
            self._run(launch.main, arguments)
            return
        args = get_args_parser().parse_intermixed_args(arguments)
        self._argv(arguments)
        assert isinstance(args, argparse.Namespace)
        try:
            assert make_plan(args).runs
        except UsageError as error:
            if "not installed: pip install" not in str(error):
                raise
            pytest.skip(f"without an extra: {error}")

    def _in_small(self, arguments: list[str]) -> list[str]:
        added = list(SMALL)
        if not any(argument.startswith("data=") for argument in arguments):
            added.append("data=sample")
        if any(argument.startswith("experiment=") for argument in arguments):
            added.append("seed=0,1")
        return [*arguments, *added]

    def _run(self, main: Callable[[], None], arguments: list[str]) -> None:
        self._argv(arguments)
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"exit code {stop.code}: {shlex.join(arguments)}") from stop

    def _argv(self, arguments: list[str]) -> None:
        self.monkeypatch.setattr("sys.argv", ["command", *arguments])

    def _train(self, overrides: Any, **options: Any) -> Any:
        try:
            return in_process.train([*overrides, *SMALL], **options)
        except UsageError:
            return in_process.train(overrides, **options)  # what a page shows to be refused
