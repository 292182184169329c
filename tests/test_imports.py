"""Which way imports point: the contracts of pyproject.toml, and that they notice a breach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("importlinter")
CONTRACTS = ("Imports point one way", "The report starts without torch", "No circle of imports")
BREACHES = [
    # a circle of two modules of one folder
    ("studies/results.py", "from gpt_ablate.studies import study", ["No circle of imports"]),
    # against the direction: a variant that knows the training loop
    ("axes/mlp.py", "from gpt_ablate.training import trainer", ["Imports point one way"]),
    ("studies/stats.py", "import torch", ["The report starts without torch"]),
    # torch by way of another module
    ("reporting/tables.py", "from gpt_ablate.data import loading", ["The report starts without torch"]),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's source and its contracts."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def broken(copy: Path) -> list[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "NO_COLOR": "1"}
    done = subprocess.run([*command, "--no-cache"], cwd=copy, env=environment, capture_output=True, text=True)
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.endswith((" KEPT", " BROKEN")))
    assert set(told) == set(CONTRACTS), done.stdout + done.stderr
    assert (done.returncode == 0) == (set(told.values()) == {"KEPT"})
    return [name for name in CONTRACTS if told[name] == "BROKEN"]


def test_imports_point_one_way(copy: Path) -> None:
    assert broken(copy) == []


@pytest.mark.parametrize(("module", "added", "told"), BREACHES)
def test_a_breach_is_noticed(module: str, added: str, told: list[str], copy: Path) -> None:
    file = copy / "src/gpt_ablate" / module
    before = file.read_text()
    file.write_text(
        before.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{added}\n")
    )
    try:
        assert set(told) <= set(broken(copy))
    finally:
        file.write_text(before)
