"""From a composed config to a checked one: every check, once, and all problems together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from gpt_ablate.config import registry, rules
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ReportConfig,
    SamplingConfig,
    Section,
    TrainerConfig,
    Variant,
)
from gpt_ablate.utils.errors import Problem, UsageError, closest


def resolve(composed: DictConfig, options: Mapping[str, str] | None = None) -> Config:
    """Check a composed config against the schema, the registries and this machine.

    `options` says what the option of each group is called. Raises UsageError holding every problem found, not the first
    alone.
    """
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        told = str(error.msg).partition("\n")[0]
        raise UsageError([Problem(error.full_key or "config", None, told)]) from error
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items() if key != "hydra"}
    plugins = plain.get("plugins")
    importable = isinstance(plugins, list) and all(isinstance(name, str) for name in plugins)
    problems = []
    if "axes" in plain:
        told = f"no such key (each axis is one of its own: {', '.join(registry.axis_names())})"
        problems.append(Problem("axes", plain.pop("axes"), told))
    try:
        registry.load(plugins if isinstance(plugins, list) and importable else [])
    except UsageError as error:
        problems += error.problems
    for key, registered in Registry.by_key.items():
        node = plain.get(key)
        if isinstance(node, dict) and isinstance(node.get("name"), str):
            problems += registered.check(node)
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors()]
        config = _as_given(plain)
    config._options = dict(options or {})
    wrong = [problem.key for problem in problems]
    for rule, keys in rules.RULES.items():
        if not any(f"{key}.".startswith(f"{bad}.") or bad.startswith(f"{key}.") for key in keys for bad in wrong):
            problems += rule(config)
    if problems:
        raise UsageError(problems)
    stride = config.data.stride or config.model.context_length
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"stride": stride}),
            "model": config.model.model_copy(update={"mlp_hidden": config.model.hidden}),
        }
    )


def _as_given(plain: dict[str, Any]) -> Config:
    """A config that failed validation, unchecked, for those checks whose keys are all right."""
    kinds: dict[str, type[Section]] = {
        "model": ModelConfig,
        "data": DataConfig,
        "trainer": TrainerConfig,
        "sampling": SamplingConfig,
        "report": ReportConfig,
        "optimizer": OptimizerConfig,
        "schedule": Variant,
    }
    sections = {
        key: kind.model_construct(**plain[key]) for key, kind in kinds.items() if isinstance(plain.get(key), dict)
    }
    return Config.model_construct(**(plain | sections))


def _problem(detail: Any) -> Problem:
    """One of pydantic's error details in our form."""
    where = ".".join(str(part) for part in detail["loc"] if part not in ("axes", "str") and "[" not in str(part))
    if detail["type"] == "extra_forbidden":
        section: Any = Config
        if len(detail["loc"]) > 1:
            section = Config.model_fields[detail["loc"][0]].annotation
        known = list(getattr(section, "model_fields", {}))
        return Problem(
            where, detail["input"], f"no such key (accepted: {', '.join(known)})", closest(where.split(".")[-1], known)
        )
    if detail["input"] == "???":
        return Problem(where, "???", "must be given a value")
    guess = None
    if detail["type"] == "literal_error":
        guess = closest(detail["input"], re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    value = None if detail["type"] == "missing" else detail["input"]
    return Problem(
        where,
        value,
        detail["msg"].replace("Input should be", "should be").replace("Field required", "must be given"),
        guess,
    )
