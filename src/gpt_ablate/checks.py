"""Rules between the keys of a config that a type cannot state."""

from __future__ import annotations

import re
from collections.abc import Callable

from . import registry
from .config import Config, ReportConfig
from .registry import Problem, UsageError, closest


def _study(config: Config) -> list[Problem]:
    return _folder_name("study", config.study)


def _arm(config: Config) -> list[Problem]:
    return _folder_name("arm", config.arm)


def _folder_name(key: str, name: str | None) -> list[Problem]:
    if name is None or (name.isprintable() and name.strip(". ") and not re.search(r'[/\\:*?"<>|]', name)):
        return []
    return [Problem(key, name, "the name of one folder: printable, no path in it")]


def _shape(config: Config) -> list[Problem]:
    model = config.model
    if model.d_model % model.n_head:
        near = [n for n in range(1, model.d_model + 1) if model.d_model % n == 0]
        guess = min(near, key=lambda n: abs(n - model.n_head))
        return [Problem("model.n_head", model.n_head, f"a divisor of model.d_model = {model.d_model}", str(guess))]
    return []


def _data(config: Config) -> list[Problem]:
    data = config.data
    if data.name == "text" and not data.paths:
        return [Problem("data.path", data.path, "the path of a UTF-8 text file, or a list of them")]
    if data.name == "tokens" and not data.dir:
        return [Problem("data.dir", data.dir, "the folder that holds train.bin and val.bin")]
    return []


def _accumulate(config: Config) -> list[Problem]:
    size, parts = config.data.batch_size, config.trainer.accumulate
    if size % parts:
        return [Problem("trainer.accumulate", parts, f"a divisor of data.batch_size = {size}")]
    return []


def _length(config: Config) -> list[Problem]:
    trainer = config.trainer
    if all(limit is None for limit in (trainer.max_epochs, trainer.max_steps, trainer.max_tokens, trainer.max_flops)):
        return [Problem("trainer.max_epochs", None, "a number, here or for max_steps, max_tokens or max_flops")]
    return []


def _tokens(config: Config) -> list[Problem]:
    limit, step = config.trainer.max_tokens, config.data.batch_size * config.model.context_length
    if limit is not None and limit < step:
        allowed = f"at least one step: data.batch_size x model.context_length = {step} tokens"
        return [Problem("trainer.max_tokens", limit, allowed)]
    return []


def _warmup(config: Config) -> list[Problem]:
    warmup = getattr(config.schedule, "warmup_steps", 0)
    return [Problem("schedule.warmup_steps", warmup, "should be greater than or equal to 0")] if warmup < 0 else []


def _prompt(config: Config) -> list[Problem]:
    if config.sampling.prompt:
        return []
    return [Problem("sampling.prompt", "", "at least one character: the model continues a text")]


def _report(config: Config) -> list[Problem]:
    from . import metrics

    problems = []
    if config.report.metrics:  # null, where another key kept defaults from being filled in
        try:
            metrics.declared({"metrics": config.report.metrics})
        except UsageError as error:
            problems += error.problems
    known = _keys()
    for where in ("baseline", "within", "tune"):
        for key in getattr(config.report, where) or ():
            if key not in known and key.partition(".")[0] not in (*registry.axis_names(), "init", "schedule"):
                problems.append(Problem(f"report.{where}", key, "a key of the config", closest(key, known)))
    return problems


def _keys() -> list[str]:
    """Every key but the variants' own parameters."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    inner = [f"{name}.{key}" for name, kind in sections.items() for key in getattr(kind, "model_fields", ())]
    return [*registry.axis_names(), *sections, *inner]


def _device(config: Config) -> list[Problem]:
    from . import devices

    return devices.check(config.trainer.device)


CHECKS: dict[Callable[[Config], list[Problem]], tuple[str, ...]] = {
    _study: ("study",),
    _arm: ("arm",),
    _shape: ("model.d_model", "model.n_head"),
    _data: ("data.name", "data.path", "data.dir"),
    _accumulate: ("data.batch_size", "trainer.accumulate"),
    _length: ("trainer.max_epochs", "trainer.max_steps", "trainer.max_tokens", "trainer.max_flops"),
    _tokens: ("trainer.max_tokens", "data.batch_size", "model.context_length"),
    _warmup: ("schedule.name", "schedule.warmup_steps"),
    _prompt: ("sampling.prompt",),
    _report: tuple(f"report.{key}" for key in ReportConfig.model_fields),
    _device: ("trainer.device",),
}
"""Each check and the keys it reads."""
