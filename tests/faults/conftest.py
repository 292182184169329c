"""Commands as processes, small disks, and the table of what was injected and survived."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import RUN, TEXT, Launch, Start, record


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Start `python -m gpt_ablate.train` in a folder, one at a time, with a fault that it is to meet.

    kill_at: the number of a change to a file; full_from: the change from which on the disk is full; memory: bytes that
    it may have beyond what Python and torch take.
    """
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        running: list[Launch] = []

        def end() -> None:
            """Whatever became of the test that started it, no launch outlives it."""
            for launch in running:
                if launch.code is None:
                    launch.kill()
                    launch.wait()
            running.clear()

        def begin(
            folder: Path,
            *arguments: str,
            kill_at: int | None = None,
            full_from: int | None = None,
            memory: int = 0,
        ) -> Launch:
            assert process.stdin is not None
            assert process.stdout is not None
            end()
            (folder / "text.txt").write_text(TEXT)
            output = folder / "told"
            output.unlink(missing_ok=True)
            flags = [argument for argument in arguments if argument.startswith("--")]
            keys = [argument for argument in arguments if argument not in flags]
            asked = {"arguments": [*flags, *RUN, *keys], "folder": str(folder), "output": str(output)}
            asked |= {"kill_at": kill_at, "full_from": full_from, "memory": memory}
            print(json.dumps(asked), file=process.stdin, flush=True)
            running.append(Launch(int(process.stdout.readline()), output, process.stdout))
            return running[-1]

        yield begin
        end()
        process.stdin.close()


@pytest.fixture(scope="session")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of the run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    code, told = start(folder).wait()
    assert code == 0, told
    return record(folder / "outputs/run")


@pytest.fixture
def injected(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Say what fault a test injects and how often, for the table at the end."""
    return lambda fault, times: record_property("fault", [fault, times])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table: fault, times injected, times survived."""
    times: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in getattr(report, "user_properties", []):
                if key == "fault" and report.when == "call":
                    times[value[0]] += value[1]
                    survived[value[0]] += value[1] * (outcome == "passed")
    if times:
        terminalreporter.section("faults")
        width = max(map(len, times))
        terminalreporter.line(f"{'fault':{width}}  injected  survived")
        for fault in times:
            terminalreporter.line(f"{fault:{width}}  {times[fault]:8}  {survived[fault]:8}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount (or change) a file system of so many bytes and inodes below the test's folder; skips where none may."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if place.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and not again:
            pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)
