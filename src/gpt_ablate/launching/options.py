"""What the option of each config group is called in folders, records and reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from omegaconf import DictConfig, OmegaConf

from gpt_ablate.config import registry
from gpt_ablate.config.registry import Registry
from gpt_ablate.studies.run_directory import find
from gpt_ablate.utils.errors import Problem, UsageError, closest


def names(composed: DictConfig, hydra: DictConfig, study: Path | None) -> dict[str, str]:
    """Each group of a composed config and what its option is called; `hydra` is Hydra's own section.

    That is the option that was chosen (`norm=mine`), or the variant where that was changed (`norm.name=mine`). An axis
    keeps the variant's name in a study whose records call the same values by it: those of older versions do.
    """
    found = {}
    for group, option in hydra.runtime.choices.items():
        if option is None or not OmegaConf.is_dict(composed.get(group)):
            continue
        node: Any = OmegaConf.to_container(composed[group])
        variant = node.get("name")
        found[group] = _name(group, str(option), variant, hydra)
        if study is None or found[group] == variant or group not in registry.axis_names():
            continue
        if node in (older.get(group) for older in older_configs(study)):
            found[group] = variant
    return found


def unknown(baseline: Mapping[str, Any], options_of: Callable[[str], Iterable[str]]) -> list[Problem]:
    """What a baseline asks for that is no option of its group, nor a variant that could be one by its name."""
    problems = []
    for group, level in baseline.items():
        folder, _, option = str(level).rpartition("/")
        known = set(options_of(f"{group}/{folder}".rstrip("/")))
        named = set(Registry.by_key[group].builders) if group in Registry.by_key else set()
        if not (known or named) or level in named:
            continue
        if not any(option == each or option.startswith(f"{each}.") for each in known):
            every = sorted(known | named)
            told = f"one of {', '.join(every)}"
            problems.append(Problem(f"report.baseline.{group}", level, told, closest(level, every)))
    return problems


def hidden(hydra: DictConfig) -> list[Problem]:
    """The chosen options that stand in two folders of configs with other contents: Hydra takes the first, unsaid."""
    sources = [source for source in _repository(hydra).get_sources() if source.provider not in ("hydra", "schema")]
    problems = []
    for group, option in hydra.runtime.choices.items():
        if option is None or group.startswith("hydra/") or len(sources) < 2:
            continue
        place = f"{group}/{option}"
        having = [source for source in sources if source.is_config(place)]
        for other in having[1:]:
            if other.load_config(place).config != having[0].load_config(place).config:
                told = f"{other.path}/{place}.yaml is hidden by {having[0].path}/{place}.yaml; give it another name"
                problems.append(Problem(group, option, told))
    return problems


def _name(group: str, option: str, variant: str | None, hydra: DictConfig) -> str:
    if variant is None or variant == option:
        return option
    own = _own_variant(group, option, hydra)
    changed = f"{group}.name" in (text.lstrip("+").partition("=")[0] for text in hydra.overrides.task)
    if own == variant or (own is None and not changed):
        return option
    return str(variant) if own == option else f"{option}.{variant}"


def _own_variant(group: str, option: str, hydra: DictConfig) -> str | None:
    """The `name` in an option's file; None where the file takes it from elsewhere."""
    found = _repository(hydra).load_config(f"{group}/{option}")
    plain = OmegaConf.to_container(found.config, resolve=False) if found is not None else {}
    own = plain.get("name") if isinstance(plain, dict) else None
    return None if own is None or "${" in str(own) else str(own)


def _repository(hydra: DictConfig) -> ConfigRepository:
    search_path = ConfigSearchPathImpl()
    for source in hydra.runtime.config_sources:
        search_path.append(source.provider, f"{source.schema}://{source.path}")
    return ConfigRepository(search_path)


@functools.cache
def older_configs(study: Path) -> list[dict[str, Any]]:
    """The configs of a study's runs that were recorded before options had names of their own."""
    configs = []
    for directory in find(study):
        try:
            record = directory.record()
        except UsageError:  # told where the study's runs are compared
            continue
        if "options" not in record:
            configs.append(record["config"])
    return configs
