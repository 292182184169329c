"""The container image, built and run by .ci/image."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "image"
HAS_TOOLS = bool(shutil.which("buildah") and shutil.which("debootstrap"))


@pytest.mark.slow
@pytest.mark.timeout(2400)  # the fast tests run in it once more
@pytest.mark.skipif(os.geteuid() != 0 or not HAS_TOOLS, reason="needs root, buildah and debootstrap")
def test_image_tests_and_trains_as_a_user() -> None:
    process = subprocess.run([SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout
    assert process.returncode == 0, output[-20_000:]
    assert "as gpt in /home/gpt/gpt_ablate: pytest" in output
    assert "$GPT_ABLATE_DATA has no the-verdict.txt" in output
    assert '"step": 3' in output.partition("== image: training")[2]
