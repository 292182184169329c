"""Output that nobody reads any more, that its disk does not take, or that was never open: trainings do not need it."""

from __future__ import annotations

import io
import itertools
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from small_runs import small_run
from synthetic import make_study

from gpt_ablate import profile, report, sample, status
from gpt_ablate.launching import launch, launchers
from gpt_ablate.reporting import study_figures
from gpt_ablate.reporting.figure_style import Drawing
from gpt_ablate.studies.run_directory import RunDirectory, find
from gpt_ablate.tracking import tracker
from gpt_ablate.utils import streams

SMALL = [
    *("model=micro", "model.n_layer=1", "model.n_head=2", "trainer.device=cpu", "trainer.threads=1"),
    *("trainer.checkpoint_every=0", "sampling.max_new_tokens=3"),
]
LOST = {"pipe": streams.READER_GONE, "terminal": streams.READER_GONE, "disk": 1}
"""What becomes of an output, and the exit code of a command that is there to print."""
Output = Callable[[str], tuple[TextIO, Callable[[], None]]]


@pytest.fixture
def output() -> Iterator[Output]:
    """A stream of a kind of `LOST`, and a function after which nothing can be written to it."""
    opened: list[TextIO] = []

    def make(kind: str) -> tuple[TextIO, Callable[[], None]]:
        if kind == "disk":
            reader, writer = -1, os.open("/dev/full", os.O_WRONLY)
        else:
            reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
        opened.append(os.fdopen(writer, "w", encoding="utf-8"))
        return opened[-1], lambda: None if kind == "disk" else os.close(reader)

    yield make
    for stream in opened:  # as Python does at its end, where this would change the exit code
        stream.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", *small_run(folder), *SMALL, f"hydra.run.dir={folder}/run"])
        with pytest.raises(SystemExit):
            launch.main()
    return folder / "run"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("outputs") / "s", {"norm": ["post", "pre"]}, range(2), lambda *_: 1.0)


Run = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process with these standard streams (None: as they are); its exit code."""
    monkeypatch.setattr(study_figures, "plates", lambda *_: [])  # to draw takes seconds
    monkeypatch.setattr(profile, "render", lambda _: Drawing(b"", b"", b""))
    monkeypatch.chdir(tmp_path)

    def start(main: Callable[[], None], *arguments: str, out: TextIO | None, err: TextIO | None = None) -> int:
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["command", *arguments])
            patch.setattr("sys.stdout", out)
            if err is not None:
                patch.setattr("sys.stderr", err)
            try:
                main()
            except SystemExit as stop:
                return int(stop.code or 0)
            return 0

    return start


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.fast_cases(1)
def test_a_multirun_goes_on(kind: str, output: Output, command: Run, tmp_path: Path) -> None:
    """With standard output and error lost before its first line."""
    stream, lose = output(kind)
    lose()
    arguments = ["--multirun", *small_run(tmp_path), *SMALL, "trainer.max_steps=2", "norm=pre,post"]
    assert command(launch.main, *arguments, out=stream, err=stream) == 0
    runs = list(find(tmp_path / "outputs/sweep"))
    assert [run.record()["status"] for run in runs] == ["done", "done"]
    assert all(run.finished() for run in runs)
    assert (tmp_path / "outputs/sweep/report.json").exists()


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_training_goes_on_when_its_output_is_lost_midway(
    kind: str,
    output: Output,
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of a terminal, in the middle of its progress bar."""
    stream, lose = output(kind)
    shown: list[bool] = []

    def show(self: tracker.ProgressBar, *line: object) -> None:
        if not shown:
            lose()
        shown.append(self.console.is_terminal)
        original(self, *line)  # type: ignore[arg-type]

    original = tracker.ProgressBar.show
    monkeypatch.setattr(tracker.ProgressBar, "show", show)
    assert command(launch.main, *small_run(tmp_path), *SMALL, "hydra.run.dir=here", out=stream) == 0
    assert shown == [kind == "terminal"] * 6
    assert RunDirectory(tmp_path / "here").record()["status"] == "done"
    assert capfd.readouterr().err == ""


def prints(name: str, run: Path, study: Path) -> tuple[Callable[[], None], list[str]]:
    """A command that is there to print, by name: what starts it, and its arguments."""
    return {
        "sample": (sample.main, [str(run), "--max-new-tokens", "3"]),
        "report": (report.main, [str(study), "--to", "written"]),
        "status": (status.main, [str(study)]),
        "profile": (profile.main, ["data=sample", *SMALL[:-1], "model.context_length=8", "--to", "written"]),
        **{flag: (launch.main, [flag]) for flag in ("--help", "--version")},
        "--cfg": (launch.main, ["--cfg", "job"]),
        "report --help": (report.main, ["--help"]),
        "profile --help": (profile.main, ["--help"]),
    }[name]


WRITTEN = {
    "report": {"report.json", "report.md", "report.html", "results.csv"},
    "profile": {"profile.json", "profile.svg", "profile.png"},
}


PRINTING = ("sample", "report", "status", "profile", "--help", "--version", "--cfg", "report --help", "profile --help")


@pytest.mark.parametrize(
    ("name", "kind"), [*itertools.product(PRINTING, ("pipe", "disk")), ("status", "terminal"), ("--help", "terminal")]
)
@pytest.mark.fast_cases(8)
def test_a_command_that_prints_ends_without_a_traceback(
    name: str,
    kind: str,
    output: Output,
    command: Run,
    run: Path,
    study: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What it has to write, it writes."""
    stream, lose = output(kind)
    lose()
    main, arguments = prints(name, run, study)
    assert command(main, *arguments, out=stream) == LOST[kind]
    told = "gpt_ablate: standard output: No space left on device\n" if kind == "disk" else ""
    assert capfd.readouterr() == ("", told)
    assert WRITTEN.get(name, set()) <= {file.name for file in tmp_path.glob("written/*")}


def test_sampling_ends_when_nobody_reads_on(output: Output, command: Run, run: Path) -> None:
    """Not after the last of the samples."""
    stream, lose = output("pipe")
    lose()
    assert command(sample.main, str(run), "--num-samples", "1000000000", out=stream) == streams.READER_GONE


def test_a_status_that_follows_ends_with_its_terminal(
    output: Output, command: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, lose = output("terminal")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        if not waits:
            lose()
        waits.append(seconds)
        assert len(waits) < 3, "it follows the runs for nobody"

    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr(status, "look", lambda _: [status.Standing("a", "running", 1, 2, {}, None, None)])
    assert command(status.main, str(run), out=stream) == streams.READER_GONE


def test_a_refusal_that_nobody_reads_is_one_all_the_same(output: Output, command: Run) -> None:
    stream, lose = output("pipe")
    lose()
    assert command(launch.main, "norm=nope", out=stream, err=stream) == 2


@pytest.mark.parametrize("flags", ["--cfg job", "--info"])
def test_a_pipe_in_a_shell(flags: str, tmp_path: Path) -> None:
    """Python itself has nothing to say at its end, nor has logging."""
    line = f"{sys.executable} -m gpt_ablate.train {flags} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{streams.READER_GONE}\n", "")


def test_a_reader_that_is_slow_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a pipe that does not block, as others that share it may have set it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, found = "x" * 300_000, io.BytesIO()

    def read() -> None:
        time.sleep(0.05)
        while part := os.read(reader, 1 << 16):
            found.write(part)

    reading = threading.Thread(target=read)
    reading.start()
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with streams.outlive(needed=True):
            print(text)
    reading.join()
    assert found.getvalue().decode() == text + "\n"


@pytest.mark.parametrize("name", ["sample", "report", "status", "--help", "--cfg"])
def test_without_a_standard_output(name: str, command: Run, run: Path, study: Path) -> None:
    """None stands for it where Python found it closed."""
    main, arguments = prints(name, run, study)
    assert command(main, *arguments, out=None) == 0


FILES_OPENED_BY_OTHERS = """
import os, sys
from gpt_ablate.utils import streams
with streams.outlive(needed=False):
    record = open("record", "w")
    for number in (1, 2):
        os.write(number, b"from a library")
    print("from us")
    assert os.read(0, 1) == b""
    os.system("echo from a child; echo from a child >&2")
    record.write("whole")
"""


def test_what_is_printed_to_a_closed_stream_gets_into_no_file(tmp_path: Path) -> None:
    line = f"'{sys.executable}' -c '{FILES_OPENED_BY_OTHERS}' <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path).returncode == 0
    assert (tmp_path / "record").read_text() == "whole"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "replace"])
def test_characters_that_the_terminal_lacks(errors: str, command: Run, run: Path) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii", errors)
    assert command(sample.main, str(run), "--prompt", "café\udcff", "--temperature", "0", out=stream) == 0
    assert written.getvalue().startswith(b"caf??" if errors == "replace" else rb"caf\xe9\udcff")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_in_other_processes_go_on(launcher: str, output: Output, tmp_path: Path) -> None:
    """They write to the same standard output, or to files of their own."""
    if not launchers.installed(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher"):
        pytest.skip(f"without the extra for {launcher}")
    stream, lose = output("pipe")
    lose()
    arguments = [*small_run(tmp_path), *SMALL, "trainer.max_steps=2", "norm=pre,post", f"hydra/launcher={launcher}"]
    arguments.remove("trainer.threads=1")
    command = [sys.executable, "-m", "gpt_ablate.train", "--multirun", *arguments]
    assert subprocess.run(command, cwd=tmp_path, stdout=stream, stderr=stream).returncode == 0
    assert [run.record()["status"] for run in find(tmp_path / "outputs/sweep")] == ["done", "done"]
