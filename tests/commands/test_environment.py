"""Environments that lack what most have: a home, a working directory, a width; a command works or says so."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import make_study

from gpt_ablate import profile, report, sample, status
from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution, launch
from gpt_ablate.reporting import study_figures
from gpt_ablate.reporting.figure_style import Drawing
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils.files import without_home

TINY = ("model.n_layer=1", "model.d_model=8", "model.n_head=2", "model.context_length=16", "trainer.max_steps=1")


@pytest.fixture
def unknown_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of a user whom the system does not know, as containers have: `docker run --user 1234`."""

    def getpwuid(number: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)


def test_a_run_needs_no_home(unknown_user: None, configure: Callable[..., Config], tmp_path: Path) -> None:
    execution.run(configure(*TINY, "trainer.eval_batches=1"), tmp_path / "run", [], Console(quiet=True))
    assert RunDirectory(tmp_path / "run").record()["status"] == "done"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (("hydra.run.dir='~/run'",), "hydra.run.dir"),
        (("--multirun", "hydra.sweep.dir='~/runs'"), "hydra.sweep.dir"),
        (("data=text", "data.path='~/text.txt'"), "data.path"),
        (("data=tokens", "data.dir='~/tokens'"), "data.dir"),
    ],
)
def test_a_path_from_a_home_that_is_not_known(
    asked: tuple[str, ...],
    key: str,
    unknown_user: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = () if any(each.startswith("data") for each in asked) else ("data=sample",)
    monkeypatch.setattr("sys.argv", ["train", "model=micro", *data, *asked])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"gpt_ablate: {key} = '~/")
    assert "home folder" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("home", "text", "told"),
    [
        ("/home/eve", "at /home/eve/x, '/home/eve'", "at ~/x, '~'"),
        ("/home/eve/", "file:///home/eve/x", "file://~/x"),
        ("/home/eve", "two\\n/home/eve/x", "two\\n~/x"),
        ("/home/eve", "/home/evelyn/x", "/home/evelyn/x"),
        ("/tmp", "/var/tmp/x", "/var/tmp/x"),
        ("/", "/x", "/x"),
        ("", "/x", "/x"),
        ("data", "data=sample", "data=sample"),
        (".", "../x.", "../x."),
    ],
)
def test_the_home_folder_alone_stands_as_a_tilde(
    home: str, text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert without_home(text) == told


@pytest.mark.parametrize("main", [launch.main, sample.main, report.main, status.main])
def test_a_working_directory_that_was_removed(
    main: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["command"] if main is launch.main else ["command", str(tmp_path)])
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("gpt_ablate: working directory = ")
    assert told.count("\n") == 1


def test_a_working_directory_that_was_removed_before_torch_is_imported(tmp_path: Path) -> None:
    """MKL ends a process that imports torch there."""
    line = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -m gpt_ablate.profile model=micro"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("gpt_ablate: working directory = ")


@pytest.mark.parametrize("columns", ["0", "3"])
def test_a_table_is_whole_where_no_width_is_given(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """COLUMNS may be what a shell left there."""
    monkeypatch.setattr(profile, "render", lambda _: Drawing(b"", b"", b""))
    monkeypatch.setenv("COLUMNS", columns)
    arguments = ["profile", "model=micro", "data=sample", *TINY, "--to", str(tmp_path / "to")]
    monkeypatch.setattr("sys.argv", arguments)
    profile.main()
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("attention ") and line.endswith(" s") for line in told)


def test_a_system_without_a_place_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As matplotlib tells it, where it is first imported: it raises an OSError without a number."""

    def imported(*_: object) -> None:
        try:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
        except OSError as error:
            raise OSError("Matplotlib requires access to a writable cache directory") from error

    study = make_study(tmp_path / "s", {"norm": ["post", "pre"]}, range(2), lambda *_: 1.0)
    monkeypatch.setattr(study_figures, "plates", imported)
    monkeypatch.setattr("sys.argv", ["report", str(study)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "gpt_ablate: Matplotlib requires access to a writable cache directory\n"
