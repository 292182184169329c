"""What tells the cells of a study apart: keys, their levels as text, factors and the baseline."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from gpt_ablate.config.paths import CONF
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.messages import visible


def label(levels: Mapping[str, str]) -> str:
    """Levels as a person writes them: "norm=pre optimizer.lr=0.001"."""
    return " ".join(f"{key}={level}" for key, level in levels.items())


def keys_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What can tell two cells apart: every axis, then every key that a launch swept or named, then the arm."""
    keys = dict.fromkeys(axis for record in records for axis in record["axes"])
    keys |= dict.fromkeys(sorted({key for record in records for key in record["config"].get("cell_keys", [])}))
    if any(record["config"].get("arm") is not None for record in records):
        keys["arm"] = None
    return [key for key in keys if key not in ("seed", "repeat")]


def named_keys(records: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> set[str]:
    """The keys that stand in the names of cells: those that a launch swept or named, and those that vary."""
    named = {key for record in records for key in record["config"].get("cell_keys", [])}
    return named | {key for key in keys if len({level_of(record, key) for record in records}) > 1}


def level_of(record: Mapping[str, Any], key: str) -> str:
    """A run's value of an axis or a key, as its folder has it: for a group what its option is called."""
    options = record.get("options", {}) | record["axes"]
    if key in options:
        return visible(str(options[key]))
    value: Any = record["config"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):  # a record of an older version
        chosen = [text.partition("=")[2] for text in record["overrides"] if text.partition("=")[0] == key]
        return chosen[-1] if chosen else str(value.get("name"))
    return as_text(value)


def as_text(value: Any) -> str:
    """A level as text, a number always in the same way: 0, 0.0 and "0.0" are "0"."""
    text = visible(str(value))
    if not _is_number(text):
        return text
    number = float(text)
    return str(int(number)) if number.is_integer() else str(number)


def groups_in(records: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> set[str]:
    """Those of `keys` whose levels are options of a group: text, even where they look like numbers."""
    return {
        key
        for key in keys
        if any(key in record["axes"] or isinstance(record["config"].get(key), Mapping) for record in records)
    }


def planned_level(groups: Container[str], key: str, level: Any) -> str:
    """The level that a plan notes for a key, as `level_of` would have it; `groups` as of `groups_in`."""
    return visible(str(level)) if key in groups else as_text(level)


def as_folder(name: str) -> str:
    """A name as one folder's, different for different names: what is not plain becomes % and its code."""
    return re.sub(r"[^\w.+=,\[\]-]", lambda match: f"%{ord(match[0]):02x}", name)


ALONE = ("norm", "layers", "attention")
"""The axes whose variant stands alone in a cell's name; all others stand as `<key>_<level>`."""


def cell_name(levels: Mapping[str, str], axes: Iterable[str], named: Iterable[str]) -> str:
    """A cell's name, as its folder has it: "post", "post-fresh-mlp_swiglu", or "default".

    An axis is left out where it has its default variant, unless it is among the keys `named`.
    """
    parts = [
        level if key in ALONE else f"{key}_{level}"
        for key, level in levels.items()
        if key not in axes or key in named or level != default_option(key)
    ]
    return "-".join(parts) or "default"


def factors_of(cells: Iterable[Mapping[str, str]], baseline: Mapping[str, Any]) -> dict[str, list[str]]:
    """What varies -> its levels: the baseline's first, numbers by size, others in the order of `cells`."""
    seen: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, level in cell.items():
            seen.setdefault(key, {})[level] = None
    factors, problems = {}, []
    for key, several in seen.items():
        if len(several) < 2:
            continue
        levels = list(several)
        first = _asked(baseline[key], levels) if key in baseline else _default(key, levels)
        if first not in levels:
            problems.append(Problem(f"report.baseline.{key}", first, f"a level of this study: {', '.join(levels)}"))
        ordered = sorted(levels, key=float) if all(map(_is_number, levels)) else levels
        factors[key] = [first, *(level for level in ordered if level != first)]
    if problems:
        raise UsageError(problems)
    return factors


def _asked(level: Any, levels: Sequence[str]) -> str:
    return str(level) if str(level) in levels else as_text(level)


def _default(key: str, levels: Sequence[str]) -> str:
    """The option of the default config where it is one of `levels`, else the first of them."""
    default = default_option(key)
    return default if default is not None and default in levels else levels[0]


@functools.cache
def _defaults() -> dict[str, str]:
    entries = OmegaConf.load(CONF / "config.yaml").defaults
    return {key: entry[key] for entry in entries if isinstance(entry, Mapping) for key in entry}


def default_option(key: str) -> str | None:
    """The option of a group that the default config chooses; None for what is no group."""
    return _defaults().get(key)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def nearest_cell(cells: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str]) -> str:
    """The cell that has most of the wanted levels, the first of several."""
    return max(cells, key=lambda cell: sum(cells[cell][key] == level for key, level in wanted.items()))


def place_of(factors: Mapping[str, list[str]], levels: Mapping[str, str]) -> list[int]:
    """Where a cell stands in the order of the factors' levels."""
    return [factors[key].index(level) for key, level in levels.items()]
