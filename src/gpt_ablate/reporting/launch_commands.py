"""The commands that finish a study or add seeds to it, made from the command line that launched the study."""

from __future__ import annotations

import re
import shlex

from gpt_ablate.studies.study import Study

MOST_SEEDS = 50
"""If more seeds than this must be added, the report calls the goal out of reach and gives no command."""


def again(study: Study) -> str | None:
    """The command that launched the study; it skips finished runs. None where the command is not known."""
    return _command(study.plan["overrides"]) if study.plan else None


def more_seeds(study: Study, n: int | None) -> str | None:
    """The command that trains every cell with `n` seeds that the study has not used, as a range in Hydra's syntax.

    None for more than MOST_SEEDS, and where the command that launched the study is not known.
    """
    if study.plan is None or n is None or n > MOST_SEEDS:
        return None
    first = study.next_seed
    seeds = f"seed=range({first},{first + n})"
    given = study.plan["overrides"]
    changed = [seeds if re.match(r"\+*seed=", override) else override for override in given]
    return _command(changed if seeds in changed else [*changed, seeds])


def _command(overrides: list[str]) -> str:
    rest = [override for override in overrides if override not in ("--multirun", "-m")]
    return shlex.join(["python", "-m", "gpt_ablate.train", "--multirun", *rest])
