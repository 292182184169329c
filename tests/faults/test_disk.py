"""A disk that is full, read-only or gone: one clear message, what was written stays whole, the next launch goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Start, record

from gpt_ablate.utils.files import read_lines

pytestmark = pytest.mark.slow
FULL = "No space left on device"
Injected = Callable[[str, int], None]


def told_once(code: int, told: str, what: str) -> None:
    assert code == 1, told
    assert len({line for line in told.splitlines() if what in line and line.startswith("gpt_ablate: ")}) == 1, told
    assert "Traceback" not in told
    assert "Exception in thread" not in told


def whole_files(run: Path) -> None:
    """Every file that has its name is whole."""
    for file in run.rglob("*"):
        if file.suffix == ".json" and not file.name.startswith("."):
            json.loads(file.read_text())
        if file.suffix == ".jsonl":
            read_lines(file)


@pytest.mark.parametrize("part", range(2))
def test_full_from_some_change_on(
    part: int, start: Start, whole: dict[str, Any], tmp_path: Path, injected: Injected
) -> None:
    """Every change to a file from the n-th on fails."""
    counting = tmp_path / "counting"
    counting.mkdir()
    assert start(counting).wait()[0] == 0
    changes = (counting / "changes").read_text()
    moments = [i for i, change in enumerate(changes, 1) if change == "+"][2 * part :: 4]
    assert len(moments) > 5
    injected("disk full from some change to a file on", len(moments))
    for moment in moments:
        folder = tmp_path / str(moment)
        folder.mkdir()
        code, told = start(folder, full_from=moment).wait()
        told_once(code, told, FULL)
        whole_files(folder)
        code, told = start(folder).wait()
        assert code == 0, told
        assert record(folder / "outputs/run") == whole, moment


SIZES = ("16k", "64k", "3m", "5m", "8m", "14m", "22m")


def test_a_small_disk(
    start: Start, whole: dict[str, Any], small_disk: Callable[..., Path], tmp_path: Path, injected: Injected
) -> None:
    """From one that has no room for run.json to one that lacks it for the last checkpoints."""
    injected("disk really full", len(SIZES))
    for size in SIZES:
        disk = small_disk(f"size={size}")
        code, told = start(tmp_path, f"hydra.run.dir={disk}/run").wait()
        told_once(code, told, FULL)
        whole_files(disk / "run")
        small_disk("size=100m")
        code, told = start(tmp_path, f"hydra.run.dir={disk}/run").wait()
        assert code == 0, told
        found = record(disk / "run")
        for name in ("metrics.jsonl", "samples.jsonl", "checkpoint/final/model.safetensors"):
            assert found[name] == whole[name]
        shutil.rmtree(disk / "run")


def test_no_inodes(start: Start, small_disk: Callable[..., Path], tmp_path: Path, injected: Injected) -> None:
    counts = (3, 8, 12)
    injected("no inode left", len(counts))
    for inodes in counts:
        disk = small_disk(f"size=100m,nr_inodes={inodes}")
        code, told = start(tmp_path, f"hydra.run.dir={disk}/run").wait()
        told_once(code, told, FULL)
        whole_files(disk / "run")
        small_disk("size=100m,nr_inodes=1000")
        assert start(tmp_path, f"hydra.run.dir={disk}/run").wait()[0] == 0
        shutil.rmtree(disk / "run")


def test_a_read_only_disk(start: Start, small_disk: Callable[..., Path], tmp_path: Path, injected: Injected) -> None:
    injected("disk read-only", 2)
    disk = small_disk("size=100m")
    assert start(tmp_path, f"hydra.run.dir={disk}/run").wait()[0] == 0
    small_disk("ro")
    before = record(disk / "run")
    for place in ("new", "run"):
        code, told = start(tmp_path, f"hydra.run.dir={disk}/{place}", "optimizer.lr=1").wait()
        assert code == 2, told
        assert "a folder that can be written to" in told
        assert "Traceback" not in told
        assert record(disk / "run") == before


@pytest.mark.parametrize("part", ["outputs", "outputs/run/metrics.jsonl"])
def test_a_record_removed_under_a_run(part: str, start: Start, tmp_path: Path, injected: Injected) -> None:
    """Removing a folder that is written to may leave some of it, or folders that are written to again."""
    injected("output directory deleted under the run, or its record alone", 1)
    launch = start(tmp_path, "trainer.max_steps=5000", "trainer.max_epochs=5000", "trainer.eval_every=0")
    metrics = tmp_path / "outputs/run/metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 500:
        time.sleep(0.01)
    if part == "outputs":
        shutil.rmtree(tmp_path / part, ignore_errors=True)
    else:
        (tmp_path / part).unlink()
    code, told = launch.wait()
    assert code == 1, told
    assert "No such file or directory" in told
    assert "Traceback" not in told
    assert "step 5000" not in told
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    assert start(tmp_path).wait()[0] == 0
