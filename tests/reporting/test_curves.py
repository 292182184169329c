"""Figures of curves: what is drawn of which quantity."""

from __future__ import annotations

from pathlib import Path

import orjson
from synthetic import Shape, make_study

from gpt_ablate.reporting import study_figures
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.reporting.figure_style import LIGHT
from gpt_ablate.studies.study import read

STEPS = 20
ACCURACY = {
    "key": "eval/accuracy",
    "name": "final validation accuracy",
    "unit": "fraction",
    "lower_is_better": False,
    "scale": "difference",
    "curve": "eval/accuracy",
    "split": None,
}


def test_accuracies_are_drawn_against_steps(tmp_path: Path) -> None:
    """Of a study that declares the accuracy: the validation examples' rises later than that of training."""
    declared = {"metrics": {"eval/accuracy": 0.1}}
    root = make_study(tmp_path / "task", {"norm": ["pre", "post"]}, report=declared, shape=Shape(steps=STEPS))
    for path in root.glob("*/*/metrics.jsonl"):
        record = path.with_name("run.json")
        record.write_bytes(orjson.dumps(orjson.loads(record.read_bytes()) | {"metrics": [ACCURACY]}))
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            if "eval/val_loss" in line:
                line["eval/train_accuracy"] = float(line["step"] > 0)
                line["eval/accuracy"] = line["step"] / STEPS
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        result = path.with_name("result.json")
        told = orjson.loads(result.read_bytes())
        told["final"] |= {"eval/accuracy": 1.0, "eval/train_accuracy": 1.0}
        result.write_bytes(orjson.dumps(told))
    study = read(root)
    drawn = {plate.name: plate for plate in study_figures.plates(analyse(study), study)}
    train, val = drawn["accuracy_curves"].draw(LIGHT).axes
    assert [axis.get_title() for axis in (train, val)] == ["training examples", "validation examples"]
    for axis, expected in ((train, {(0, 0), (STEPS, 1)}), (val, {(0, 0), (STEPS / 2, 0.5), (STEPS, 1)})):
        for line in axis.get_lines():
            assert expected <= set(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert len(axis.get_lines()) == 2
    assert drawn["equal_budgets"].finding.startswith("Final validation accuracy at equal budgets")
    assert drawn["equal_budgets"].draw(LIGHT).axes[0].get_ylabel().startswith("training-batch loss")


def test_a_study_of_texts_has_no_accuracies(tmp_path: Path) -> None:
    study = read(make_study(tmp_path / "texts", {"norm": ["pre", "post"]}, shape=Shape(steps=4, steps_per_epoch=2)))
    assert "accuracy_curves" not in {plate.name for plate in study_figures.plates(analyse(study), study)}
