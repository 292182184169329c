"""Open comparisons: how many further seeds they need, and the command that trains them."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra._internal.utils import get_args_parser
from statsmodels.stats.power import TTestPower
from synthetic import Levels, make_study

from gpt_ablate.launching.planning import make_plan
from gpt_ablate.reporting import launch_commands, pages, study_figures
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.studies import study
from gpt_ablate.studies.stats import MOST_PAIRS

NORMS = {"norm": ["post", "pre"]}
POST = {"baseline": {"norm": "post"}}
NEAR = [-0.06, 0.05, 0.02]


def differing(differences: Sequence[float]) -> Callable[[Levels, int], float]:
    """A loss by which norm=pre differs from norm=post by so much for seed 0, 1, ..."""
    return lambda levels, seed: 5.5 + 0.1 * seed + (differences[seed] if levels["norm"] == "pre" else 0.0)


def comparison(root: Path, differences: Sequence[float], **options: Any) -> dict[str, Any]:
    """The one comparison of a study of two cells with these differences."""
    made = make_study(root, NORMS, range(len(differences)), differing(differences), **options)
    (entry,) = analyse(study.read(made))["comparisons"]
    return entry


def test_an_open_comparison_names_its_power_and_the_seeds_it_needs(tmp_path: Path) -> None:
    differences = [-0.04, 0.08, 0.02, 0.05, -0.01]
    entry = comparison(tmp_path / "s t", differences, report=POST)
    assert entry["sentence"] == (
        "norm=pre against norm=post: no difference in final training loss was shown. The mean difference is 0.02 "
        "(95 % CI -0.04 to 0.08, 5 seed pairs). With 5 seed pairs, the test detects a difference of 0.080 with power "
        "0.8."
    )
    sd = float(np.std(differences, ddof=1))
    assert entry["detectable"] == pytest.approx(sd * TTestPower().solve_power(nobs=5, power=0.8, alpha=0.05), rel=1e-3)
    needed = math.ceil(TTestPower().solve_power(effect_size=0.05 / sd, power=0.8, alpha=0.05))
    assert (entry["verdict"], entry["pairs_needed"], entry["more_seeds"]) == ("no difference shown", needed, needed - 5)
    assert shlex.split(entry["command"]) == [
        *("python", "-m", "gpt_ablate.train", "--multirun", "study=s t", "norm=post,pre", f"seed=range(5,{needed})")
    ]


def test_no_command_where_the_launch_or_the_margin_is_not_known(tmp_path: Path) -> None:
    entry = comparison(tmp_path / "a", NEAR, plan=False)
    assert 0 < entry["more_seeds"] <= launch_commands.MOST_SEEDS
    assert entry["command"] is None
    entry = comparison(tmp_path / "b", NEAR, report={"metrics": {"eval/train_loss": None}})
    assert (entry["pairs_needed"], entry["margin"], entry["command"]) == (None, None, None)


@pytest.mark.parametrize(
    "seeds",
    [["seed=0,1,2"], ["seed=range(0,3)"], ["++seed=2"], ["experiment=demo", "study=s t"], ["seed=0,1", "seed=2"]],
)
@pytest.mark.fast_cases(1)
def test_the_command_trains_every_cell_with_new_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: list[str]
) -> None:
    root = make_study(tmp_path / "s t", NORMS, range(3), differing(NEAR))
    file = root / "study.json"
    given = ["--multirun", "model=micro", "data=sample", "trainer.device=cpu", "study=s t", "norm=post,pre", *seeds]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"overrides": given}))
    command = launch_commands.more_seeds(study.read(root), 2)
    assert command is not None
    assert "'seed=range(3,5)'" in command
    printing = command.replace("python -m gpt_ablate.train", "printf '%s\\n'")
    arguments = subprocess.run(["sh", "-c", printing], capture_output=True, text=True, check=True).stdout.splitlines()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    planned = make_plan(get_args_parser().parse_args(arguments)).runs
    cells = sorted((run.config.axes["norm"].name, run.config.seed) for run in planned)
    assert cells == [(norm, seed) for norm in ("post", "pre") for seed in (3, 4)]


def test_more_than_fifty_further_pairs_are_out_of_reach(tmp_path: Path) -> None:
    runs = study.read(make_study(tmp_path / "s", NORMS, range(3), differing(NEAR)))
    command = launch_commands.more_seeds(runs, 50)
    assert command is not None
    assert command.endswith(" 'seed=range(3,53)'")
    assert launch_commands.more_seeds(runs, 51) is None
    assert launch_commands.more_seeds(runs, None) is None


@pytest.mark.parametrize(
    ("spread", "number", "reachable"), [(1.0, "", True), (20.0, "", False), (1e5, "at least 1,000,000", False)]
)
@pytest.mark.fast_cases(1)
def test_the_pages_tell_the_need_and_give_a_command_within_reach(
    tmp_path: Path, spread: float, number: str, reachable: bool
) -> None:
    asked = POST | {"metrics": {"eval/train_loss": 0.05, "tokens_per_second": 0.05}}
    differences = [spread * difference for difference in NEAR]
    runs = study.read(make_study(tmp_path / "s", NORMS, range(3), differing(differences), report=asked))
    found = analyse(runs)
    entry = found["comparisons"][0]
    assert (entry["more_seeds"] <= 50, entry["command"] is not None) == (reachable, reachable)
    needed = number or f"{entry['pairs_needed']:,}"
    assert (entry["pairs_needed"] == MOST_PAIRS) == bool(number)
    told = (
        f"norm=pre against norm=post: {needed} seed pairs, {entry['more_seeds']:,} more than now (margin of 0.05 in "
        "final training loss)."
    )
    figures = study_figures.plates(found, runs)
    for page in (pages.html(found, runs, []), pages.markdown(found, runs, figures).replace("\\", "")):
        assert "Further seeds needed" in page
        assert told in page
        assert ("Not within reach: the difference to detect is small against the noise" in page) is not reachable
        assert ("--multirun" in page) is reachable
