"""The A/A control's noise floor, and repeats compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic import Levels, make_study

from gpt_ablate.reporting.aa_control import find_noise_floor
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.studies import study
from gpt_ablate.utils.errors import UsageError

A = [2.00, 2.03, 1.98, 2.01, 2.05]
B = [2.02, 1.99, 2.00, 2.04, 1.97]


def arms(levels: Levels, seed: int) -> float:
    return (A if levels["arm"] == "a" else B)[seed]


def control(root: Path, **config: Any) -> Path:
    return make_study(root, {"arm": ["a", "b"]}, range(5), arms, config=config)


def test_a_control_measures_its_own_noise(tmp_path: Path) -> None:
    found = analyse(study.read(control(tmp_path / "aa_control-micro")))
    floor = found["noise_floor"]
    differences = np.subtract(B, A)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    variance = np.var([*A, *B], ddof=1)
    chi_square = [np.sqrt(9 * variance / stats.chi2.ppf(q, 9)) for q in (0.975, 0.025)]
    assert floor["difference"] == pytest.approx(differences.mean())
    assert floor["interval"] == pytest.approx(list(interval))
    assert (floor["pairs"], floor["runs"], floor["sd"]) == (5, 10, pytest.approx(np.sqrt(variance)))
    assert floor["sd_interval"] == pytest.approx(chi_square)
    assert found["factors"] == {"arm": ["a", "b"]}
    assert found["answer"][0] == floor["sentence"]
    assert floor["sentence"] == (
        "Noise floor (aa_control-micro), measured on two arms of one cell that differ only in their random numbers: "
        "the mean difference in final training loss is -0.01 (95 % CI -0.07 to 0.05, 5 seed pairs). The standard "
        "deviation between runs is 0.026 (95 % CI 0.018 to 0.047, 10 runs)."
    )


def test_the_control_beside_a_study_is_found_and_used(tmp_path: Path) -> None:
    of = study.read(make_study(tmp_path / "norm_placement-micro", {"norm": ["post", "pre"]}))
    assert find_noise_floor(of) is None
    control(tmp_path / "aa_control-mini")
    assert find_noise_floor(of) is None
    control(tmp_path / "aa_control-micro")
    noise = find_noise_floor(of)
    assert noise is not None
    assert analyse(of, noise=noise)["noise_floor"]["study"] == "aa_control-micro"
    assert find_noise_floor(noise) is None  # it is its own


def test_a_control_of_another_recipe_is_no_noise_floor(tmp_path: Path) -> None:
    of = study.read(make_study(tmp_path / "norm_placement-micro", {"norm": ["post", "pre"]}))
    other = study.read(control(tmp_path / "aa_control-micro", **{"model.n_layer": 4, "optimizer.lr": 1.0}))
    said: list[str] = []
    assert find_noise_floor(of, said.append) is None
    assert "aa_control-micro is not used as the noise floor" in said[0]
    with pytest.raises(UsageError) as refused:
        analyse(of, noise=other)
    for told in ("model.n_layer = '4 in aa_control-micro': 2", "optimizer.lr"):
        assert told in str(refused.value)
    with pytest.raises(UsageError, match="one cell in two arms"):
        analyse(of, noise=of)


def test_a_control_may_have_other_variants_and_lack_what_the_study_sweeps(tmp_path: Path) -> None:
    cells = {"norm": ["post", "pre"], "optimizer.lr": [0.1, 0.2]}
    of = study.read(make_study(tmp_path / "lr_sensitivity-micro", cells))
    control(tmp_path / "aa_control-micro", layers="clone")
    assert find_noise_floor(of) is not None


def edit(file: Path, line: int, **values: Any) -> None:
    lines = file.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | values)
    file.write_text("\n".join(lines) + "\n")


def test_repeats_are_equal_but_for_the_clock_and_enter_no_comparison(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"norm": ["post", "pre"]}, [0, 1], repeats=[0, 1])
    second = root / "pre-fresh-parallel-repeat_1" / "seed_1"
    edit(second / "metrics.jsonl", 4, wall_time=99.0, tokens_per_second=1.0)
    edit(second / "samples.jsonl", 1, wall_time=99.0)
    found = analyse(study.read(root))
    assert [each["equal"] for each in found["repeats"]] == [True] * 4
    assert {"run": "pre-fresh-parallel-repeat_1/seed_1", "of": "pre-fresh-parallel-repeat_0/seed_1"}.items() <= (
        found["repeats"][-1].items()
    )
    assert found["factors"] == {"norm": ["pre", "post"]}
    assert found["comparisons"][0]["seeds"] == [0, 1]
    assert found["cells"][0]["status"] == {"done": 2}


def test_a_missing_repeat_is_named_and_leaves_the_pairs_complete(tmp_path: Path) -> None:
    gone = "pre-fresh-parallel-repeat_1/seed_1"
    root = make_study(tmp_path / "s", {"norm": ["post", "pre"]}, [0, 1], repeats=[0, 1], statuses={gone: "missing"})
    found = analyse(study.read(root))
    assert found["rests_on"]["missing"] == [gone]
    assert len(found["repeats"]) == 3
    assert [cell["status"] for cell in found["cells"]] == [{"done": 2}, {"done": 2}]
    assert len(found["answer"]) == 1


def test_the_first_difference_of_a_repeat_is_named(tmp_path: Path) -> None:
    root = make_study(tmp_path / "s", {"norm": ["pre"]}, [0], repeats=[0, 1])
    first, second = (root / f"pre-fresh-parallel-repeat_{repeat}" / "seed_0" for repeat in (0, 1))

    def told() -> str:
        (repeat,) = analyse(study.read(root))["repeats"]
        assert not repeat["equal"]
        return repeat["first_difference"]

    weights = second / "checkpoint" / "final" / "state.json"
    state = json.loads(weights.read_text())
    weights.write_text(json.dumps(state | {"sha256": {"model.safetensors": "0" * 64}}))
    assert told() == "the final weights"
    weights.unlink()
    assert "not compared" in told()
    edit(second / "samples.jsonl", 2, text="other")
    assert told() == "samples.jsonl line 2: text is ' was 0' against 'other'"
    loss = json.loads((first / "metrics.jsonl").read_text().splitlines()[3])["train/loss"]
    edit(second / "metrics.jsonl", 4, **{"train/loss": np.nextafter(loss, 9)})
    assert told().startswith(f"metrics.jsonl line 4: train/loss is {loss!r} against")
    lines = (second / "metrics.jsonl").read_text().splitlines()
    (second / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert told() == "metrics.jsonl: 21 lines against 3"
