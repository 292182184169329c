"""Where a file or a folder is expected, something else may stand: pipes, devices, links. None is waited for or lost."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from small_runs import small_run, train
from synthetic import Shape, make_study

from gpt_ablate import report, status
from gpt_ablate.config.schema import Config
from gpt_ablate.reporting import study_figures
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils.errors import UsageError

CELLS = {"norm": ["post", "pre"]}


def put(kind: str, place: Path) -> tuple[int, ...]:
    """Something else in the place of a file or a folder; what it is."""
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "kept").mkdir(parents=True)
    elif kind == "file":
        place.write_text("kept")
    elif kind == "link":
        place.symlink_to("nowhere")
    else:
        place.symlink_to("/dev/zero")
    return identity(place)


def identity(place: Path) -> tuple[int, ...]:
    """What changes if the thing is replaced or written to."""
    found = place.lstat()
    return found.st_ino, found.st_mode, found.st_mtime_ns


def kinds(names: str, *others: str) -> list[tuple[str, str]]:
    return [(name, kind) for name in names.split() for kind in ("pipe", "link", "device", *others)]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study with its report, figures apart."""
    study = tmp_path_factory.mktemp("outputs") / "study"
    make_study(study, CELLS, range(2), lambda levels, seed: 3.0 + seed, shape=Shape(steps=3, steps_per_epoch=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_figures, "plates", lambda found, runs: [])
        report.write(study, study, Console(quiet=True))
    return study


RUN = "pre-fresh-parallel/seed_0"
RECORD = f"study.json {RUN}/run.json {RUN}/result.json {RUN}/metrics.jsonl"


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [
        *((report, *case) for case in kinds(f"{RECORD} {RUN}/samples.jsonl", "folder")),
        *((status, *case) for case in kinds(RECORD, "folder")),
        *((report, *case) for case in kinds("results.csv report.html figures/effects.svg", "folder")),
        *(
            (report, *case)
            for case in kinds("report/events.out.tfevents.1 report/norm=pre/events.out.tfevents.1", "folder")
        ),
        *((report, *case) for case in kinds("figures report report/norm=pre", "file")),
    ],
)
def test_what_is_no_file_or_folder_is_refused_and_left(
    command: ModuleType,
    name: str,
    kind: str,
    reported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    study = shutil.copytree(reported, tmp_path / "study")
    placed = put(kind, study / name)
    monkeypatch.setattr(study_figures, "plates", lambda found, runs: [])
    monkeypatch.setattr("sys.argv", ["command", str(study)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    told = capfd.readouterr().err
    assert stop.value.code == 2
    assert len(told.splitlines()) == 1
    assert str(study / name) in told
    assert identity(study / name) == placed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *kinds(
            "run.json result.json metrics.jsonl samples.jsonl .lock events.out.tfevents.1 .hydra/hydra.yaml", "folder"
        ),
        *kinds(".hydra checkpoint checkpoint/final", "file"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "restart"])
@pytest.mark.fast_cases(20)
def test_a_run_is_not_trained_where_something_else_stands(
    name: str, kind: str, resume: str, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    placed = put(kind, tmp_path / "run" / name)
    config = configure(*small_run(tmp_path), f"trainer.resume={resume}")
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'run' / name}': a ")):
        train(config, tmp_path / "run")
    assert identity(tmp_path / "run" / name) == placed


def test_a_lock_that_is_a_link_empties_no_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    assert not RunDirectory(tmp_path).busy()
    assert (tmp_path / "precious").read_text() == "kept"
