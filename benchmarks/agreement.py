"""How far apart the losses of two cells are at every step: `python -m benchmarks.agreement outputs/<study> KEY`.

KEY is an axis, such as attention. Runs that agree in all else, seed included, are pairs; for each the largest
difference of train/loss over all steps is printed, with the step it is at.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from gpt_ablate.studies import study
from gpt_ablate.utils.messages import refusals


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("key", help="the axis whose variants are compared")
    args = parser.parse_args()
    with refusals():
        runs = [run for run in study.read(args.study).runs if run.result and not run.repeat]
    groups: dict[tuple[object, ...], list[study.StudyRun]] = {}
    for run in runs:
        rest = {key: level for key, level in run.levels.items() if key != args.key}
        groups.setdefault((run.seed, *sorted(rest.items())), []).append(run)
    for group in groups.values():
        for one, other in itertools.combinations(group, 2):
            first, second = one.curves["train/loss"], other.curves["train/loss"]
            apart = np.abs(first.values - second.values)
            worst = int(apart.argmax())
            print(f"{one.name}  {other.name}  {apart[worst]:.2e} at step {first.steps[worst]} of {len(apart)}")


if __name__ == "__main__":
    main()
