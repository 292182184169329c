"""The table of a study's runs tells where each one is, from files that may be written meanwhile."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic import CONFIG, Shape, record_of

from gpt_ablate import status
from gpt_ablate.reporting import run_status
from gpt_ablate.studies.run_directory import RunDirectory


def write(root: Path, name: str, record: dict[str, Any], lines: list[dict[str, Any]], torn: str = "") -> None:
    folder = root / name
    folder.mkdir(parents=True)
    whole = record_of(CONFIG, Shape(steps=10)) | record
    (folder / "run.json").write_text(json.dumps(whole))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    if record["status"] == "done":
        counts = {"step": 10, "tokens": 10, "parameters": 1, "flops": 1, "flops_per_token": 1, "wall_time": 30}
        result = {"schema_version": 1, "status": "done", "final": {}} | counts
        (folder / "result.json").write_text(json.dumps(result))


def line(step: int) -> dict[str, Any]:
    return {"step": step, "wall_time": 3.0 * step, "train/loss": 9.5 - step, "tokens_per_second": 100.0}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    root = tmp_path / "study"
    write(root, "a/seed_0", {"status": "done"}, [line(step) for step in range(1, 11)])
    write(root, "a/seed_1", {"status": "running"}, [line(step) for step in range(1, 5)], torn='{"step": 5, "wall')
    write(root, "b/seed_0", {"status": "running"}, [line(1), line(2)])
    write(root, "b/seed_1", {"status": "failed", "error": "Traceback\n  ...\nRuntimeError: no [luck]\n"}, [])
    places = [(f"{cell}/seed_{seed}", seed) for cell in "ab" for seed in range(3)]
    planned = [{"path": path, "seed": seed, "levels": {}, "fingerprint": path} for path, seed in places]
    plan = {"schema_version": 1, "study": "study", "report": {}, "overrides": [], "runs": planned}
    (root / "study.json").write_text(json.dumps(plan))
    return root


def test_every_run_planned_or_begun_is_told(study: Path) -> None:
    with RunDirectory(study / "a/seed_1").lock():
        standings = {standing.name: standing for standing in run_status.look(study)}
    assert {name: standing.status for name, standing in standings.items()} == {
        "a/seed_0": "done",
        "a/seed_1": "running",
        "a/seed_2": "waiting",
        "b/seed_0": "interrupted",
        "b/seed_1": "failed",
        "b/seed_2": "waiting",
    }
    assert (standings["a/seed_1"].step, standings["a/seed_1"].steps) == (4, 10)
    assert standings["a/seed_1"].remaining == pytest.approx(6 * 3.0)
    assert standings["a/seed_1"].line["train/loss"] == pytest.approx(5.5)
    assert standings["a/seed_0"].remaining is None


def test_the_command_prints_the_table_once_where_there_is_no_terminal(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["status", str(study)])
    with RunDirectory(study / "a/seed_1").lock():
        status.main()
    told = capsys.readouterr().out
    for words in ("a/seed_1", "4/10", "5.5000", "18 s", "RuntimeError: no [luck]", "interrupted"):
        assert words in told
    # 18 s for the run that goes on, 24 for the interrupted one, 30 (the mean of all known) for each that waits
    assert "2 of 6 runs have ended; about 1 min 42 s for the others, 1 at a time" in told


def test_a_pipe_gets_a_line_for_each_run_however_long(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((study / "b/seed_1/run.json").read_text())
    (study / "b/seed_1/run.json").write_text(json.dumps(record | {"error": "RuntimeError: " + "so long " * 100}))
    monkeypatch.setattr("sys.argv", ["status", str(study)])
    status.main()
    title, *lines, _ = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{cell}/seed_{seed}" for cell in "ab" for seed in range(3)]
    assert lines[0].index("10/10") == title.index("step") - 1


def test_a_screen_without_room_for_all_shows_the_runs_that_go_on_and_counts_the_others(study: Path) -> None:
    with RunDirectory(study / "a/seed_1").lock():
        told = io.StringIO()
        Console(file=told, width=100).print(status.table(run_status.look(study), most=3))
    shown = [line.split()[0] for line in told.getvalue().splitlines() if "seed_" in line]
    assert shown == ["a/seed_1", "b/seed_0", "b/seed_1"]
    assert "not shown: 2 waiting, 1 done" in told.getvalue()


def test_a_folder_without_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["status", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        status.main()
    assert stop.value.code == 2
    assert "nowhere" in capsys.readouterr().err
