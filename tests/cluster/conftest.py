"""A Slurm of one node for the tests of this folder, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import slurm as one_node


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[one_node.Slurm]:
    """The cluster; skips where Slurm is not installed, unless GPT_ABLATE_REQUIRE_SLURM is set."""
    if missing := one_node.missing():
        message = f"Slurm is not installed (Debian: apt-get install slurm-wlm munge): no {missing}"
        if os.environ.get("GPT_ABLATE_REQUIRE_SLURM"):
            pytest.fail(message)
        pytest.skip(message)
    with one_node.running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
