"""The wheel: carries conf/ and the assets, and works outside the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(PROJECT)], check=True)
    small = ["model=micro", "model.d_model=16", "data=sample", "trainer.max_steps=1", "study=wheel"]
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from gpt_ablate.train import main; main()"
    command = [sys.executable, "-c", program, *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "gpt_ablate" / "conf" / "norm" / "pre.yaml").is_file()
    assert len(list((tmp_path / "outputs" / "wheel").glob("*/result.json"))) == 1
