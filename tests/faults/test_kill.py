"""kill -9 at any moment: launched again, the run's record is that of a run that nothing disturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Start, record

MOMENTS = 30
pytestmark = pytest.mark.slow


def go_on(start: Start, folder: Path) -> dict[str, Any]:
    code, told = start(folder).wait()
    assert code == 0, told
    return record(folder / "outputs/run")


@pytest.mark.parametrize("part", range(3))
def test_killed_at_a_random_moment(
    part: int, start: Start, whole: dict[str, Any], tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    times = MOMENTS // 3
    injected("kill -9 at a random moment", times)
    (tmp_path / "timed").mkdir()
    began = time.monotonic()
    start(tmp_path / "timed").wait()
    lasts = time.monotonic() - began
    draws = random.Random(part)
    killed = 0
    while killed < times:
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        launch = start(folder)
        time.sleep(lasts * draws.random())
        launch.kill()
        killed += launch.wait()[0] == -signal.SIGKILL
        assert go_on(start, folder) == whole


@pytest.mark.parametrize("part", range(2))
def test_killed_before_a_change_to_a_file(
    part: int, start: Start, whole: dict[str, Any], tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    """Every fifth of the moments at which a file is opened to write, renamed or removed, one by one."""
    counting = tmp_path / "counting"
    counting.mkdir()
    assert start(counting).wait()[0] == 0
    changes = (counting / "changes").stat().st_size
    assert changes > 50
    moments = range(1 + 5 * part, changes + 1, 10)
    injected("kill -9 before a change to a file", len(moments))
    for moment in moments:
        folder = tmp_path / str(moment)
        folder.mkdir()
        code, told = start(folder, kill_at=moment).wait()
        assert code == -signal.SIGKILL, told
        assert go_on(start, folder) == whole, moment


def test_killed_again_and_again(
    start: Start, whole: dict[str, Any], tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    """One run that every launch gets a little further with."""
    times = 0
    while (ended := start(tmp_path, kill_at=50 + 10 * times).wait())[0] == -signal.SIGKILL:
        times += 1
    code, told = ended
    assert code == 0, told
    injected("kill -9 of the same run again", times)
    assert times > 1
    assert record(tmp_path / "outputs/run") == whole
