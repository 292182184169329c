"""What a command line asks for is checked whole before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra._internal.utils import get_args_parser

from gpt_ablate.config.schema import Config
from gpt_ablate.launching.planning import Plan, make_plan
from gpt_ablate.utils.errors import UsageError

TINY = ("model=micro", "data=sample", "trainer.device=cpu")


def test_all_problems_are_told_together(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure("optimizer.lr=0", "norm.name=prr", "model.n_layer=0", "+trainer.max_epoch=1", "trainer.dtype=bfloat")
    said = {problem.key: problem for problem in error.value.problems}
    assert set(said) == {"optimizer.lr", "norm.name", "model.n_layer", "trainer.max_epoch", "trainer.dtype"}
    assert said["trainer.max_epoch"].closest == "max_epochs"
    assert said["trainer.dtype"].closest == "bfloat16"


def test_relations_between_keys_are_told_together(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure("study=../x", "model.n_head=5", "trainer.accumulate=3", "sampling.prompt=''", "trainer.device=tpu")
    keys = {problem.key for problem in error.value.problems}
    assert keys == {"study", "model.n_head", "trainer.accumulate", "sampling.prompt", "trainer.device"}


def test_a_bad_value_does_not_hide_a_bad_relation(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure("optimizer.lr=0", "model.n_head=5", "study=../x")
    assert {problem.key for problem in error.value.problems} == {"optimizer.lr", "model.n_head", "study"}


def test_what_is_null_for_a_rule_is_filled_in(configure: Callable[..., Config]) -> None:
    config = configure("model.d_model=48", "model.context_length=24")
    assert config.model.mlp_hidden == 192
    assert config.data.stride == 24
    assert configure("seed=0").seed == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_device_that_is_not_here_is_refused(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError, match=r"trainer.device = 'cuda': here there is .*cpu"):
        configure("trainer.device=cuda")


def test_the_fingerprint_ignores_paths_and_device_alone(configure: Callable[..., Config]) -> None:
    first = configure().fingerprint(data="x")
    for same in (
        "study=other",
        "trainer.device=auto",
        "trainer.resume=never",
        "cell_keys=[seed]",
        "repeat=1",
        "report.tune=[seed]",
    ):
        assert configure(same).fingerprint(data="x") == first, same
    for other in ("seed=5", "optimizer.lr=1e-3", "norm=post", "norm.eps=1e-6", "model.dropout=0.1", "arm=a"):
        assert configure(other).fingerprint(data="x") != first, other
    assert configure().fingerprint(data="y") != first
    verdict = [configure("data=verdict", *where).fingerprint(data="x") for where in ((), ("data.dir=x",))]
    assert verdict[0] == verdict[1]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The plan that a command line makes in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(*arguments: str) -> Plan:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        return make_plan(get_args_parser().parse_args(arguments))

    return make


def folders(plan: Plan) -> list[str]:
    """Where the runs of a plan go, below the working directory."""
    return [run.directory.path.relative_to(Path.cwd()).as_posix() for run in plan.runs]


def test_a_multirun_has_a_folder_for_every_run(plan: Callable[..., Plan], tmp_path: Path) -> None:
    made = plan("--multirun", *TINY, "norm=pre,post", "layers=fresh,clone", "seed=0,1")
    expected = [
        f"outputs/sweep/{norm}-{layers}/seed_{seed}"
        for norm in ("pre", "post")
        for layers in ("fresh", "clone")
        for seed in (0, 1)
    ]
    assert sorted(folders(made)) == sorted(expected)
    for run in made.runs:
        norm, layers = run.directory.path.parent.name.split("-")
        assert (run.config.axes["norm"].name, run.config.axes["layers"].name) == (norm, layers)
        assert run.directory.path.name == f"seed_{run.config.seed}"
    assert list(tmp_path.iterdir()) == []


def test_swept_keys_that_are_no_axis_stand_in_the_folder_name(plan: Callable[..., Plan]) -> None:
    made = plan("--multirun", *TINY[1:], "model=micro,mini", "norm=pre", "seed=3", "optimizer.lr=1e-3,1e-4", "study=s")
    assert set(folders(made)) == {
        f"outputs/s/model_{model}-optimizer.lr_{lr}/seed_3" for model in ("micro", "mini") for lr in ("0.001", "0.0001")
    }
    made = plan("--multirun", *TINY, "norm=pre,post", "cell_keys=[model.dropout]", "sampling.prompt='a/b','..'")
    assert set(folders(made)) == {
        f"outputs/sweep/{norm}-model.dropout_0.1-sampling.prompt_{prompt}/seed_123"
        for norm in ("pre", "post")
        for prompt in ("a%2fb", "..")
    }


def test_a_single_run_has_a_dated_folder_that_stays(plan: Callable[..., Plan], tmp_path: Path) -> None:
    made = plan(*TINY)
    (folder,) = folders(made)
    assert folder.startswith("outputs/runs/2")
    assert made.arguments[-1] == f"hydra.run.dir='{tmp_path / folder}'"
    assert folders(plan(*TINY, "hydra.run.dir='a b/c'")) == ["a b/c"]
    assert folders(plan("--multirun", *TINY, "hydra.sweep.dir=d")) == ["d/default/seed_123"]


def test_an_experiment_names_its_study_and_sweep(plan: Callable[..., Plan]) -> None:
    made = plan("--multirun", "experiment=demo", "model=mini", "trainer.device=cpu")
    cells = {f"outputs/demo-mini/{norm}/seed_{seed}" for norm in ("pre", "post") for seed in range(4)}
    assert set(folders(made)) == cells
    made = plan("--multirun", "experiment=demo", "model=micro", "norm=post", "seed=7", "trainer.device=cpu")
    assert folders(made) == ["outputs/demo-micro/post/seed_7"]


def test_one_bad_cell_refuses_all_and_names_every_problem(plan: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        plan("--multirun", *TINY, "optimizer.lr=1e-3,0", "model.dropout=0,1", "seed=0,1")
    assert {problem.key for problem in error.value.problems} == {"optimizer.lr", "model.dropout"}
    assert list(tmp_path.iterdir()) == []


def test_a_text_too_short_is_refused_before_anything_is_written(plan: Callable[..., Plan], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        plan("--multirun", *TINY, "model.context_length=16,100000")
    assert {problem.key for problem in error.value.problems} == {"model.context_length", "data.batch_size"}
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_folder_are_refused(plan: Callable[..., Plan]) -> None:
    with pytest.raises(UsageError, match="two runs would share this folder"):
        plan("--multirun", *TINY, "seed=0,1", "hydra.sweep.subdir=same")
