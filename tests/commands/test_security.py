"""A run directory from a stranger: reading, reporting and going on with it runs none of its code and writes nowhere."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_runs import small_run, train
from synthetic import Shape, make_study

import gpt_ablate
from gpt_ablate import report, sample, status
from gpt_ablate.config.schema import Config
from gpt_ablate.reporting import report_writer
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training.checkpoint import load_trained
from gpt_ablate.utils.errors import UsageError

CELLS = {"norm": ["post", "pre"]}
PARSING = {"AliasEvent", "CollectionEndEvent", "CollectionStartEvent", "NodeEvent", "SafeLoader", "YAMLError", "parse"}
"""Of yaml what constructs no object."""


def test_nothing_in_the_source_runs_what_a_file_says() -> None:
    """No pickle, eval, exec, torch.load or YAML loader that constructs objects."""
    forbidden = {"eval", "exec", "compile", "__import__", "load_pickle"}
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
    sources = list(Path(gpt_ablate.__file__).parent.rglob("*.py"))
    assert len(sources) > 40
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            where = f"{source.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, where
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & modules, where
            if isinstance(node, ast.ImportFrom):
                harmless = {alias.name for alias in node.names} <= PARSING
                assert harmless or (node.module or "").partition(".")[0] not in modules, where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, where


@pytest.fixture
def run(tmp_path: Path, configure: Callable[..., Config]) -> RunDirectory:
    """A finished run."""
    return train(configure(*small_run(tmp_path), "trainer.max_steps=1", "sampling.max_new_tokens=2"), tmp_path / "run")


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_run_directory_imports_no_module_that_is_not_named(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.py").write_text("from pathlib import Path\nPath('owned').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    rewrite(run.run_file, lambda record: record["config"].update(plugins=["foreign"]))
    monkeypatch.setattr("sys.argv", ["sample", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        sample.main()
    assert stop.value.code == 2
    assert "foreign" in capfd.readouterr().err
    assert not (tmp_path / "owned").exists()
    load_trained(run, plugins=["foreign"])
    assert (tmp_path / "owned").exists()


def test_a_checkpoint_names_no_file_elsewhere(run: RunDirectory, tmp_path: Path) -> None:
    """`state.json` lists hashes by file name; a path among them is not followed."""
    state = run.checkpoints / "final/state.json"
    (tmp_path / "secret").write_text("mine")
    rewrite(state, lambda content: content["sha256"].update({"../../../secret": "0", "/etc/hostname": "0"}))
    load_trained(run)
    rewrite(state, lambda content: content.update(sha256={"../../../secret": "0"}))
    with pytest.raises(UsageError, match=r"state\.json.*damaged"):
        load_trained(run)


def deep(levels: int) -> str:
    return '{"sha256":' * levels + "0" + "}" * levels


@pytest.mark.parametrize(
    "content", [deep(100_000), "[" * 100_000, '{"sha256": 3}', '{"sha256": {}}', "\ud800", "9" * 9999]
)
def test_a_state_that_is_nonsense_is_named(content: str, run: RunDirectory) -> None:
    (run.checkpoints / "final/state.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UsageError, match=r"state\.json"):
        load_trained(run)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 99_000_000) + b"{",
        struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,1099511627776]}}',
        b"\x80\x04.",
        b"",
    ],
)
def test_weights_with_a_false_header_are_refused(head: bytes, run: RunDirectory) -> None:
    """Even where the hash agrees: a huge header, offsets beyond the file, a pickle."""
    weights = run.checkpoints / "final/model.safetensors"
    weights.write_bytes(head)
    digest = hashlib.sha256(head).hexdigest()
    rewrite(weights.with_name("state.json"), lambda state: state.update(sha256={weights.name: digest}))
    with pytest.raises(UsageError, match="weights of this run's model"):
        load_trained(run)


def test_weights_of_another_model_are_refused(
    run: RunDirectory, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    other = train(configure(*small_run(tmp_path), "model.n_layer=1", "trainer.max_steps=1"), tmp_path / "other")
    (run.checkpoints / "final").rename(tmp_path / "own")
    (other.checkpoints / "final").rename(run.checkpoints / "final")
    with pytest.raises(UsageError, match="weights of this run's model"):
        load_trained(run)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("n_head", 3, "model.n_head = 3"),
        ("n_layer", 2**50, "weights of this run's model"),
        ("d_model", 2**40, "weights of this run's model"),
        ("mlp_hidden", 2**50, "weights of this run's model"),
        ("context_length", 2**50, "weights of this run's model"),
        (None, None, "norm = None"),
    ],
)
def test_a_config_that_no_model_of_this_size_has_is_refused(
    key: str | None, value: int | None, named: str, run: RunDirectory
) -> None:
    """Before it is built, which would take all memory, or for ever."""

    def change(record: dict[str, Any]) -> None:
        if key is None:
            del record["config"]["norm"]
        else:
            record["config"]["model"][key] = value

    rewrite(run.run_file, change)
    with pytest.raises(UsageError, match=named):
        load_trained(run)


def test_weights_that_are_not_finite_are_told_without_a_traceback(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = run.checkpoints / "final/model.safetensors"
    save_file({name: torch.full_like(value, math.nan) for name, value in load_file(weights).items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    rewrite(weights.with_name("state.json"), lambda state: state.update(sha256={weights.name: digest}))
    monkeypatch.setattr("sys.argv", ["sample", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        sample.main()
    assert stop.value.code == 2
    assert "a run whose weights are finite" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint", ".hydra", ".lock", "checkpoint/step_000000001"])
def test_a_link_is_not_written_through(
    name: str, run: RunDirectory, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_text("kept")
    run.result_file.unlink()
    place = run.path / name
    if place.exists():
        place.rename(tmp_path / "moved")
    place.symlink_to(target / "file" if place.suffix == ".jsonl" or name == ".lock" else target)
    config = configure(*small_run(tmp_path), "trainer.max_steps=1", "sampling.max_new_tokens=2")
    with pytest.raises(UsageError, match="not a symbolic link"):
        train(config, run.path)
    assert (target / "file").read_text() == "kept"
    assert [entry.name for entry in target.iterdir()] == ["file"]


def test_a_report_is_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study, target = tmp_path / "study", tmp_path / "precious"
    make_study(study, CELLS, range(2), lambda levels, seed: 3.0 + seed, shape=Shape(steps=3, steps_per_epoch=1))
    target.mkdir()
    (study / "figures").symlink_to(target)
    monkeypatch.setattr("sys.argv", ["report", str(study)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2
    assert "not a symbolic link" in capfd.readouterr().err
    assert list(target.iterdir()) == []


def test_names_cannot_command_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study, shape = tmp_path / "study", Shape(steps=3, steps_per_epoch=1)
    make_study(study, CELLS, range(2), lambda levels, seed: 3.0 + seed, shape=shape, plan=False)
    cell = study / "pre-fresh-parallel"
    for run in cell.iterdir():
        rewrite(run / "run.json", lambda record: record["config"].update(study="\x1b[2J", arm=None))
        rewrite(run / "run.json", lambda record: record["axes"].update(norm="\x1b]0;owned\x07\x9b\u202e[red]"))
    cell.rename(study / "\x1b[31mred")
    for command in (report, status):
        monkeypatch.setattr("sys.argv", ["command", str(study)])
        command.main()
        told = capfd.readouterr()
        assert "\x1b" not in told.out + told.err
        assert "\\u001b" in told.out
    figures = [*(study / "figures").glob("*.svg")]
    assert figures
    for file in (*figures, *(study / name for name in ("report.html", "report.md", "results.csv", "report.json"))):
        content = file.read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", content), file
        assert "owned" in content or file in figures
    assert json.loads((study / "report.json").read_text())
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "\x1b[1mnowhere")])
    with pytest.raises(SystemExit):
        report.main()
    assert "\x1b" not in capfd.readouterr().err


NONSENSE = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({}) | st.just("<b>")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_record_is_refused_or_read(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Any value of run.json, result.json and study.json in place of the right one: a refusal or an answer, no crash."""
    study = tmp_path / "study"
    if not study.exists():
        make_study(study, CELLS, range(2), lambda levels, seed: 3.0 + seed, shape=Shape(steps=3, steps_per_epoch=1))
    files = sorted(file for file in study.rglob("*.json") if file.name in ("run.json", "result.json", "study.json"))
    file = data.draw(st.sampled_from(files))
    before = file.read_text()
    content = node = json.loads(before)
    for _ in range(data.draw(st.integers(1, 3))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key, parent = data.draw(st.sampled_from(keys)), node
        node = node[key]
        if not isinstance(node, dict | list):
            break
    parent[key] = data.draw(NONSENSE)
    file.write_text(json.dumps(content))
    monkeypatch.setattr(report_writer.study_figures, "plates", lambda found, runs: [])  # figures take most of the time
    codes = []
    try:
        for command in (report, status):
            monkeypatch.setattr("sys.argv", ["command", str(study)])
            try:
                command.main()
            except SystemExit as stop:
                codes.append((stop.code, capfd.readouterr().err[:12]))
    finally:
        file.write_text(before)
    assert set(codes) <= {(2, "gpt_ablate: ")}
