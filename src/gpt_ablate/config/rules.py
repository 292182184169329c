"""Rules between the keys of a config that a type cannot state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gpt_ablate.config import metrics, registry
from gpt_ablate.config.fingerprint import flatten
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Config, ReportConfig
from gpt_ablate.utils.errors import Problem, UsageError, closest

Rule = Callable[[Config], list[Problem]]
RULES: dict[Rule, tuple[str, ...]] = {}
"""Each rule and the keys that it reads."""


def rule(*keys: str) -> Callable[[Rule], Rule]:
    """Have `resolve` apply the decorated rule where none of `keys` has a problem already."""

    def add(applied: Rule) -> Rule:
        RULES[applied] = keys
        return applied

    return add


@rule("study")
def _study(config: Config) -> list[Problem]:
    return _folder_name("study", config.study)


@rule("arm")
def _arm(config: Config) -> list[Problem]:
    return _folder_name("arm", config.arm)


def _folder_name(key: str, name: str | None) -> list[Problem]:
    if name is None or (name.isprintable() and name.strip(". ") and not re.search(r'[/\\:*?"<>|]', name)):
        return []
    return [Problem(key, name, "the name of one folder: printable, no path in it")]


@rule("model.d_model", "model.n_head")
def shape(config: Config) -> list[Problem]:
    """A width that its heads cannot divide among them."""
    model = config.model
    if model.d_model % model.n_head:
        near = [n for n in range(1, model.d_model + 1) if model.d_model % n == 0]
        guess = min(near, key=lambda n: abs(n - model.n_head))
        return [Problem("model.n_head", model.n_head, f"a divisor of model.d_model = {model.d_model}", str(guess))]
    return []


def _record(config: Config) -> dict[str, Any]:
    """The config, flat; empty for one whose axes could not be read."""
    return flatten(config.record()) if "axes" in config.__dict__ else {}


@rule(*Config.model_fields)
def _encodable(config: Config) -> list[Problem]:
    """Text that no file could hold: half of a surrogate pair, such as bytes of a terminal that are no UTF-8."""
    return [
        Problem(key, ascii(value), "text that can be written in UTF-8")
        for key, value in _record(config).items()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text)
    ]


@rule(*Config.model_fields)
def _cell_keys(config: Config) -> list[Problem]:
    known = _record(config)
    known |= dict.fromkeys(config.options if known else ())
    return [
        Problem("cell_keys", key, "keys of the config", closest(key, known))
        for key in config.cell_keys
        if known and key not in known and not _of_a_variant(key)
    ]


def _of_a_variant(key: str) -> bool:
    """Whether `key` is a parameter of any variant: in a sweep some jobs have it."""
    group, _, parameter = key.partition(".")
    return group in Registry.by_key and bool(Registry.by_key[group].takers(parameter))


@rule("data.batch_size", "trainer.accumulate")
def _accumulate(config: Config) -> list[Problem]:
    size, parts = config.data.batch_size, config.trainer.accumulate
    if size % parts:
        return [Problem("trainer.accumulate", parts, f"a divisor of data.batch_size = {size}")]
    return []


@rule("trainer.max_epochs", "trainer.max_steps", "trainer.max_tokens", "trainer.max_flops")
def _length(config: Config) -> list[Problem]:
    trainer = config.trainer
    if all(limit is None for limit in (trainer.max_epochs, trainer.max_steps, trainer.max_tokens, trainer.max_flops)):
        return [Problem("trainer.max_epochs", None, "a number, here or for max_steps, max_tokens or max_flops")]
    return []


@rule("trainer.max_tokens", "data.batch_size", "model.context_length")
def _tokens(config: Config) -> list[Problem]:
    limit, step = config.trainer.max_tokens, config.data.batch_size * config.model.context_length
    if limit is not None and limit < step:
        allowed = f"at least one step: data.batch_size x model.context_length = {step} tokens"
        return [Problem("trainer.max_tokens", limit, allowed)]
    return []


@rule("sampling.prompt")
def _prompt(config: Config) -> list[Problem]:
    if config.sampling.prompt:
        return []
    return [Problem("sampling.prompt", "", "at least one character: the model continues a text")]


@rule("callbacks", *(f"report.{key}" for key in ReportConfig.model_fields))
def _report(config: Config) -> list[Problem]:
    problems = []
    if "axes" in config.__dict__:  # else some other key is wrong, and the config is not complete
        problems += metrics.misdeclared(config)
        try:
            metrics.declared({"metrics": config.report.metrics}, metrics.of_config(config))
        except UsageError as error:
            problems += error.problems
    known = _keys()
    for where in ("baseline", "within", "tune"):
        for key in getattr(config.report, where) or ():
            if key not in known and key.partition(".")[0] not in (*registry.axis_names(), "init", "schedule"):
                problems.append(Problem(f"report.{where}", key, "a key of the config", closest(key, known)))
    for key, level in (config.report.baseline or {}).items():
        if key in ("seed", "repeat"):
            problems.append(Problem(f"report.baseline.{key}", level, "what cells differ in; these share their seeds"))
    return problems


def _keys() -> list[str]:
    """Every key but the variants' own parameters."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    inner = [f"{name}.{key}" for name, kind in sections.items() for key in getattr(kind, "model_fields", ())]
    return [*registry.axis_names(), *sections, *inner]
