"""Options are told apart by what was chosen, in folders, records and studies, also beside records of older versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from test_commands import Command, train  # noqa: F401
from test_registry import PLUGIN

from gpt_ablate.axes.norm import norms
from gpt_ablate.launching.planning import Plan, make_plan
from gpt_ablate.studies import study
from gpt_ablate.studies.factors import groups_in, level_of, planned_level
from gpt_ablate.studies.run_directory import described
from gpt_ablate.utils.errors import UsageError

TINY = ("model=micro", "data=sample", "trainer.device=cpu")
FILES = {
    "norm/myeps.yaml": "name: pre\neps: 1e-3\n",
    "norm/same.yaml": "name: pre\neps: null\n",
    "norm/my eps.yaml": "defaults: [pre]\neps: 1e-2\n",
    "norm/exp/a.yaml": "name: post\neps: 1e-4\n",
    "init/wide.yaml": "name: gpt2\nstd: 0.2\n",
    "schedule/late.yaml": "name: warmup\nwarmup_steps: 30\n",
    "optimizer/still.yaml": "name: adamw\nlr: 1e-9\nweight_decay: 0.0\nbetas: [0.9, 0.999]\n",
    "data/thin.yaml": "name: sample\nbatch_size: 1\nstride: null\ntrain_fraction: 0.5\n",
    "model/small.yaml": "defaults: [micro]\nd_model: 32\n",
    "trainer/brief.yaml": "defaults: [default]\nmax_steps: 1\n",
    "experiment/chosen.yaml": "# @package _global_\ndefaults:\n  - override /norm: myeps\n",
    "experiment/changed.yaml": "# @package _global_\nnorm: {name: post}\n",
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plan]]:
    """The plan that a command line makes in a folder whose `mine` holds options of the user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_norms.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(norms, "builders", dict(norms.builders))
    for name, content in FILES.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)

    def make(*arguments: str) -> Plan:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        return make_plan(get_args_parser().parse_args(["--config-dir", "mine", *arguments]))

    yield make
    sys.modules.pop("my_norms", None)


def cells(plan: Plan) -> list[str]:
    return [run.directory.path.parent.name for run in plan.runs]


CASES = [
    ("norm=pre,exp/a", ["pre", "exp%2fa"], "norm", ["pre", "exp/a"]),
    ("plugins=[my_norms] norm.name=mine,pre", ["mine", "pre"], "norm", ["mine", "pre"]),
    ("norm=pre,myeps norm.name=post", ["post", "myeps.post"], "norm", ["post", "myeps.post"]),
    ("experiment=chosen layers=fresh,clone", ["myeps-fresh", "myeps-clone"], "norm", ["myeps", "myeps"]),
    ("experiment=changed layers=fresh", ["post"], "norm", ["post"]),
    ("norm=pre,'my~eps'", ["pre", "my%20eps"], "norm", ["pre", "my eps"]),
    *(
        (f"{group}={one},{other}", [f"{group}_{each}" for each in (one, other)], group, [one, other])
        for group, one, other in (
            ("trainer", "default", "brief"),
            ("data", "sample", "thin"),
            ("init", "gpt2", "wide"),
            ("schedule", "warmup", "late"),
            ("optimizer", "adamw", "still"),
            ("model", "micro", "small"),
        )
    ),
]


@pytest.mark.parametrize(
    ("sweep", "folders", "key", "levels"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i > 2 else []) for i, case in enumerate(CASES)],
)
def test_an_option_is_called_by_what_was_chosen(
    sweep: str, folders: list[str], key: str, levels: list[str], plan: Callable[..., Plan]
) -> None:
    made = plan("--multirun", *TINY, *(part.replace("~", " ") for part in sweep.split(" ")))
    assert [cell.startswith(folder) for cell, folder in zip(cells(made), folders, strict=True)] == [True] * len(folders)
    assert len(set(cells(made))) == len(made.runs)
    assert [run.config.levels()[key] for run in made.runs] == levels
    records = [described(run.config, run.overrides) for run in made.runs]
    assert [level_of(record, key) for record in records] == levels
    assert [planned_level(groups_in(records, [key]), key, level) for level in levels] == levels


def test_an_option_that_a_built_in_one_hides_is_refused(plan: Callable[..., Plan], tmp_path: Path) -> None:
    own = tmp_path / "mine/norm/pre.yaml"
    own.write_text("name: pre\neps: 1e-3\n")
    for arguments in (["--multirun", "norm=pre,post"], []):
        with pytest.raises(UsageError, match=r"norm = 'pre': .*mine/norm/pre.yaml is hidden by .*conf/norm/pre.yaml"):
            plan(*arguments, *TINY)
    own.write_text("name: pre\neps: null\n")  # nothing to tell: they are one
    assert cells(plan("--multirun", *TINY, "norm=pre,post")) == ["pre", "post"]


def test_two_options_that_hold_the_same_are_refused(plan: Callable[..., Plan]) -> None:
    with pytest.raises(UsageError, match=r"norm = 'pre,same': options that differ; both are .*pre"):
        plan("--multirun", *TINY, "norm=pre,same")
    assert cells(plan("--multirun", *TINY, "norm=same")) == ["same"]


def test_a_single_run_says_what_was_chosen(plan: Callable[..., Plan]) -> None:
    (run,) = plan(*TINY, "norm=myeps", "init=wide", "model=small").runs
    record = described(run.config, run.overrides)
    assert record["axes"] == {
        "norm": "myeps",
        "layers": "fresh",
        "attention": "parallel",
        "normalizer": "layernorm",
        "position": "learned",
        "mlp": "gelu",
        "residual": "sequential",
    }
    assert {"init": "wide", "model": "small", "data": "sample", "trainer": "default"}.items() <= record[
        "options"
    ].items()
    assert record["config"]["norm"] == {"name": "pre", "eps": 1e-3}


def test_a_baseline_may_be_any_option(plan: Callable[..., Plan]) -> None:
    assert len(plan("--multirun", *TINY, "norm=pre,exp/a", "report.baseline={norm: exp/a}").runs) == 2
    with pytest.raises(UsageError, match=r"report.baseline.norm = 'exp/b': one of a"):
        plan("--multirun", *TINY, "report.baseline={norm: exp/b}")


SMALL = ("--multirun", "--config-dir=mine", "norm=post,myeps", "study=s")


def as_older(root: Path) -> None:
    """Change a study to what an older version wrote: three axes, by their variants, and no options in its records."""
    newer = ("normalizer", "position", "mlp", "residual")
    for file in root.glob("*/seed_*/run.json"):
        record = json.loads(file.read_text())
        del record["options"]
        for axis in newer:
            del record["axes"][axis], record["config"][axis]
        record["axes"] = {axis: record["config"][axis]["name"] for axis in record["axes"]}
        file.write_text(json.dumps(record))
    for now, then in (("myeps", "pre"), ("post", "post")):
        (root / now).rename(root / f"{then}-fresh-parallel")
    noted = json.loads((root / "study.json").read_text())
    for run in noted["runs"]:
        cell, _, seed = run["path"].partition("/")
        run["path"] = f"{cell.replace('myeps', 'pre')}-fresh-parallel/{seed}"
        run["levels"] = {axis: level for axis, level in run["levels"].items() if axis not in newer}
        run["levels"]["norm"] = run["levels"]["norm"].replace("myeps", "pre")
    (root / "study.json").write_text(json.dumps(noted))


@pytest.mark.slow
def test_a_study_shows_options_and_goes_on_where_an_older_version_left_it(
    train: Command,  # noqa: F811
    plan: Callable[..., Plan],
    tmp_path: Path,
) -> None:
    root = tmp_path / "outputs/s"
    code, told, _ = train(*SMALL, "seed=0", "report.baseline={norm: post}")
    assert code == 0
    assert "norm=myeps" in told
    rows = (root / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["myeps/seed_0", "post/seed_0"]
    assert study.read(root).factors == {"norm": ["post", "myeps"]}
    as_older(root)
    assert study.read(root).factors == {"norm": ["post", "pre"]}
    code, told, error = train(*SMALL, "seed=0,1")
    assert code == 0, error
    assert (told.count("finished already"), told.count(": starts")) == (2, 2)
    assert sorted(place.name for place in root.glob("*-*")) == ["post-fresh-parallel", "pre-fresh-parallel"]
    again = study.read(root)
    assert again.factors == {"norm": ["post", "pre"]}
    assert [len(runs) for runs in again.cells().values()] == [2, 2]
    assert again.missing == []
