"""Reading a study: what varies, what was planned, what may not be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Shape, make_study

from gpt_ablate.studies import study
from gpt_ablate.utils.errors import UsageError

NORMS = {"norm": ["post", "pre"]}


def change(file: Path, **values: Any) -> None:
    """Change keys (with __ for dots) of a JSON file."""
    content = json.loads(file.read_text())
    for key, value in values.items():
        *sections, last = key.split("__")
        node = content
        for section in sections:
            node = node[section]
        node[last] = value
    file.write_text(json.dumps(content))


def test_curves_are_what_the_run_recorded(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, seeds=[0], loss=2.0, shape=Shape(tokens_per_second=256.0))
    run = study.read(root).runs[0]
    lines = run.directory.metrics()
    assert run.curves["train/loss"].steps.tolist() == list(range(1, 21))
    assert run.curves["train/loss"].values.tolist() == [line["train/loss"] for line in lines[1:]]
    assert run.curves["eval/val_loss"].steps.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(run.curves["seconds"].values, 2.0 * np.arange(1, 21))  # 512 tokens a step


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, statuses={"pre-fresh-parallel/seed_0": "running"})
    unfinished = next(run for run in study.read(root).runs if run.status == "running")
    assert unfinished.curves["train/loss"].steps[-1] == 10
    file = unfinished.directory.metrics_file
    lines = file.read_bytes().split(b"\n")
    for damage, told in (
        (b'{"step": 3, "train/', "unexpected"),
        (b"[1]", "object"),
        (b'{"step": null, "train/loss": 1}', "step"),
    ):
        file.write_bytes(b"\n".join([*lines[:3], damage, *lines[4:]]))
        with pytest.raises(UsageError, match=rf"seed_0/metrics.jsonl:4.*{told}"):
            study.read(root)


def test_a_line_of_a_loss_without_a_time_has_no_place_among_the_times(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS)
    run = study.read(root).runs[0]
    with run.directory.metrics_file.open("a") as file:
        file.write('{"step": 1000000, "tokens": 1, "train/loss": 1e30}\n')
    curves = study.read(root).runs[0].curves
    assert len(curves["train/loss"].steps) == len(run.curves["train/loss"].steps) + 1
    assert len(curves["seconds"].steps) == len(curves["seconds"].values) == len(run.curves["seconds"].steps)


def test_factors_have_the_baseline_first(tmp_path: Path) -> None:
    cells = {"norm": ["post", "pre"], "optimizer.lr": [0.01, 0.001, 0.0001], "layers": ["clone"]}
    default = study.read(make_study(tmp_path / "a", cells, seeds=[0]))
    # norm: the variant of the default config; lr: the first of the launch, then by size
    assert default.factors == {"norm": ["pre", "post"], "optimizer.lr": ["0.01", "0.0001", "0.001"]}
    assert default.baseline == "pre-clone-optimizer.lr_0.01"
    asked = {"baseline": {"norm": "post", "optimizer.lr": 1e-3}}
    named = study.read(make_study(tmp_path / "b", cells, seeds=[0], report=asked))
    assert named.label(named.baseline) == "norm=post optimizer.lr=0.001"
    assert next(iter(named.cells())) == named.baseline
    with pytest.raises(UsageError, match=r"report.baseline.norm = 'sandwich'.*post, pre"):
        study.read(make_study(tmp_path / "c", cells, seeds=[0], report={"baseline": {"norm": "sandwich"}}))


def test_a_run_that_was_moved_stays_in_its_cell(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"norm": ["post", "pre"], "model.dropout": [0.0, 0.1]}, seeds=[0, 1])
    shutil.move(root / "pre-fresh-parallel-model.dropout_0.0" / "seed_1", root / "elsewhere")
    read = study.read(root)
    assert read.missing == []
    moved = next(run for run in read.runs if run.name == "elsewhere")
    assert (moved.cell, moved.seed) == ("pre-model.dropout_0", 1)
    assert moved.levels == {"norm": "pre", "model.dropout": "0"}


def test_one_cell_is_called_by_what_is_not_the_default(tmp_path: Path) -> None:
    read = study.read(make_study(tmp_path / "s", {"norm": ["pre"]}))
    assert read.factors == {}
    assert read.label(read.baseline) == "default"
    read = study.read(make_study(tmp_path / "t", {"norm": ["post"], "layers": ["clone"]}))
    assert read.label(read.baseline) == "post-clone"


def test_what_was_planned_and_is_not_there_is_missing(tmp_path: Path) -> None:
    statuses = {f"post-fresh-parallel/seed_{seed}": "missing" for seed in range(3)}
    read = study.read(make_study(tmp_path / "s", NORMS, report={"baseline": {"norm": "post"}}, statuses=statuses))
    assert read.missing == list(statuses)
    assert (read.factors, read.cells()["post"]) == ({"norm": ["post", "pre"]}, [])
    assert read.baseline == "post"
    (tmp_path / "s" / "study.json").unlink()
    assert study.read(tmp_path / "s").missing == []


def test_the_report_section_comes_from_the_plan_or_else_from_the_latest_run(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, seeds=[0], report={"question": "old?"})
    change(root / "pre-fresh-parallel" / "seed_0" / "run.json", start="2026-02-01", config__report={"question": "new?"})
    assert study.read(root).report["question"] == "old?"
    (root / "study.json").unlink()
    read = study.read(root)
    assert read.report["question"] == "new?"
    assert read.report["metrics"] == {"eval/train_loss": 0.05}


def test_runs_of_other_recipes_or_data_are_refused_by_key(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, seeds=[0, 1])
    other = root / "pre-fresh-parallel" / "seed_1" / "run.json"
    untouched = other.read_text()
    for key, value, told in (
        ("config__model__dropout", 0.0, r"model.dropout = '0.1 in .*, 0.0 in pre-fresh-parallel/seed_1'"),
        ("config__norm__eps", 1e-6, "norm.eps"),  # within one cell, though norm varies in the study
        ("config__schedule__warmup_steps", 5, "schedule.warmup_steps"),
        ("data__sha256", "e" * 64, "data.sha256"),
    ):
        change(other, **{key: value})
        with pytest.raises(UsageError, match=told):
            study.read(root)
        other.write_text(untouched)
    for file in (root / "pre-fresh-parallel").rglob("run.json"):  # alike in its own cell, but not in both
        change(file, config__model__dropout=0.0)
    with pytest.raises(UsageError, match=r"model.dropout"):
        study.read(root)
    for file in (root / "pre-fresh-parallel").rglob("run.json"):
        change(file, config__model__dropout=0.1)
    change(other, config__trainer__max_tokens=None, config__trainer__device="cuda", config__study="elsewhere")
    assert len(study.read(root).runs) == 2 * 2


def test_what_a_study_varies_may_differ_with_all_below_it(tmp_path: Path) -> None:
    read = study.read(make_study(tmp_path / "s", {"model": ["micro", "mini"], "norm": ["pre"]}, seeds=[0]))
    change(read.runs[1].directory.run_file, config__model__n_layer=4, config__model__d_model=128)
    again = study.read(tmp_path / "s")
    assert again.factors == {"model": ["micro", "mini"]}
    change(read.runs[1].directory.run_file, config__optimizer__lr=1.0)
    with pytest.raises(UsageError, match=r"optimizer.lr"):
        study.read(tmp_path / "s")


def test_two_data_sets_compare_only_where_the_study_varies_the_data(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"data": ["sample", "verdict"]}, seeds=[0])
    change(next(root.glob("*verdict/seed_0/run.json")), data__sha256="e" * 64)
    assert study.read(root).factors == {"data": ["verdict", "sample"]}


def test_two_runs_of_one_cell_and_seed_are_refused(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", NORMS, seeds=[0])
    shutil.copytree(root / "pre-fresh-parallel" / "seed_0", root / "copy")
    with pytest.raises(UsageError, match=r"copy.*pre-fresh-parallel/seed_0|pre-fresh-parallel/seed_0.*copy"):
        study.read(root)


def test_unknown_schemas_and_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds runs"):
        study.read(tmp_path)
    root = make_study(tmp_path / "s", NORMS, seeds=[0])
    change(root / "pre-fresh-parallel" / "seed_0" / "run.json", schema_version=99)
    with pytest.raises(UsageError, match="99"):
        study.read(root)
    change(root / "pre-fresh-parallel" / "seed_0" / "run.json", schema_version=1)
    change(root / "study.json", schema_version=99)
    with pytest.raises(UsageError, match=r"99.*study.json"):
        study.read(root)


def test_rows_are_tidy_and_hold_every_run(tmp_path: Path) -> None:
    cells = {"norm": ["post", "pre"], "optimizer.lr": [0.001, 0.01]}
    name = "pre-fresh-parallel-optimizer.lr_0.01/seed_{}".format
    statuses = {name(0): "failed", name(1): "diverged", name(2): "missing"}
    rows = study.rows(study.read(make_study(tmp_path / "s", cells, loss=2.0, statuses=statuses)))
    assert len(rows) == 12
    assert len({tuple(row) for row in rows}) == 1
    by_name = {row["run"]: row for row in rows}
    assert [by_name[name(seed)]["status"] for seed in range(3)] == ["failed", "diverged", "missing"]
    assert all(by_name[name(seed)]["eval_train_loss"] is None for seed in range(3))
    done = by_name["post-fresh-parallel-optimizer.lr_0.001/seed_2"]
    expected = {"norm": "post", "optimizer.lr": "0.001", "seed": 2, "repeat": 0, "eval_train_loss": 2.0}
    assert expected.items() <= done.items()
    assert done["val_bits_per_byte"] == pytest.approx(3.0 / np.log(2) / 4.0)  # 4 bytes a token
    assert done["flops"] == 2e7 * 20 * 512
