"""The notebook runs, and what is committed of it tells nothing of the machine that it ran on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PROJECT

nbformat = pytest.importorskip("nbformat")

NOTEBOOK = PROJECT / "docs" / "notebooks" / "first_study.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def kinds(notebook: Any) -> list[list[str]]:
    """The kinds of output of each code cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for it in cell.outputs for kind in it.get("data", [it.output_type])}) for cell in cells]


def test_it_is_committed_with_outputs_that_name_no_machine() -> None:
    notebook = read()
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "restart the kernel and run all cells"
    assert ["image/png", "text/plain"] in kinds(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            told = str(output.get("text", "")) + str(
                {k: v for k, v in output.get("data", {}).items() if "image" not in k}
            )
            assert not re.search(r"/(home|root|tmp|work|usr|Users)/|\b\d+\.\d+\.\d+\.\d+\b|[A-Z]:\\", told), told


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_and_gives_what_is_committed(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook, committed = read(), read()
    NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert kinds(notebook) == kinds(committed)
    assert (tmp_path / "outputs/first/report.html").exists()
