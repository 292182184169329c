"""The commands that finish a study or add seeds to it, from the command line of its first launch."""

from __future__ import annotations

import re
import shlex

from .study import Study

MOST_SEEDS = 100
"""A command for more than this would not help anybody."""


def again(study: Study) -> str | None:
    """The study's own launch, which skips what is finished; None where the launch is not known."""
    return _command(study.plan["overrides"]) if study.plan else None


def more_seeds(study: Study, n: int | None) -> str | None:
    """The launch that trains every cell with `n` seeds that the study has not used; None for too many or no plan."""
    if study.plan is None or n is None or n > MOST_SEEDS:
        return None
    first = study.next_seed
    seeds = "seed=" + ",".join(str(seed) for seed in range(first, first + n))
    given = study.plan["overrides"]
    changed = [seeds if re.match(r"\+*seed=", override) else override for override in given]
    return _command(changed if seeds in changed else [*changed, seeds])


def _command(overrides: list[str]) -> str:
    rest = [override for override in overrides if override not in ("--multirun", "-m")]
    return shlex.join(["python", "-m", "gpt_ablate.train", "--multirun", *rest])
