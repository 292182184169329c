"""Rules between the keys of a config that a type cannot state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import registry
from .config import Config, ReportConfig, flatten
from .registry import Problem, Registry, UsageError, closest


def _study(config: Config) -> list[Problem]:
    return _folder_name("study", config.study)


def _arm(config: Config) -> list[Problem]:
    return _folder_name("arm", config.arm)


def _folder_name(key: str, name: str | None) -> list[Problem]:
    if name is None or (name.isprintable() and name.strip(". ") and not re.search(r'[/\\:*?"<>|]', name)):
        return []
    return [Problem(key, name, "the name of one folder: printable, no path in it")]


def shape(config: Config) -> list[Problem]:
    """A width that its heads cannot divide among them."""
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
    problems = [Problem("data.path", repr(path), "a path without NUL") for path in data.paths if "\0" in path]
    if data.path is not None and data.name != "text":
        problems.append(
            Problem("data.path", data.path, f"null with data={data.name}, which reads no such file", "data=text")
        )
    if data.dir is not None and data.name not in ("tokens", "verdict"):
        problems.append(Problem("data.dir", data.dir, f"null with data={data.name}, which reads no folder"))
    if data.dtype is not None and data.name != "tokens":
        problems.append(Problem("data.dtype", data.dtype, f"null with data={data.name}, which reads no token files"))
    return problems


def _memory(config: Config) -> list[Problem]:
    """A model that cannot fit: weights and AdamW's two moments, in 4 bytes each, and gradients where all are kept."""
    from . import devices

    if devices.check(config.trainer.device):
        return []
    model, memory = config.model, devices.memory_bytes(config.trainer.device)
    gradients_kept = config.trainer.grad_clip is not None or config.trainer.accumulate > 1
    needed = (16 if gradients_kept else 12) * least_parameters(config)
    told = f"a model that fits in {memory / 1e9:.3g} GB; this one needs {needed / 1e9:.3g} GB to train"
    if needed > memory:
        return [Problem("model", f"{model.n_layer} layers of {model.d_model}", told)]
    return []


def least_parameters(config: Config) -> int:
    """How many parameters the model has at least.

    Layers of a plugin may share their weights and need few of them, so with one of those no layer counts.
    """
    from . import tokenizer

    model = config.model
    tables = tokenizer.VOCAB_SIZE * (1 if model.tie_weights else 2) + model.context_length
    layer = 4 * model.d_model**2 + 2 * model.d_model * model.hidden
    return tables * model.d_model + (0 if config.plugins else model.n_layer) * layer


def batch_memory(config: Config) -> list[Problem]:
    """A batch that cannot fit, by what it needs at least: what goes into each layer's GELU, kept for the backward pass.

    Where the loss does not go in parts: all logits and their gradient. In 4 bytes each. A plugin's layers may differ.
    """
    from . import devices, tokenizer

    memory, model, trainer = devices.memory_bytes(config.trainer.device), config.model, config.trainer
    tokens = config.data.batch_size // trainer.accumulate * model.context_length
    if trainer.compile or trainer.dtype == "bfloat16":
        needed = 8 * tokens * tokenizer.VOCAB_SIZE
    else:
        needed = 4 * tokens * model.hidden * (0 if config.plugins else model.n_layer)
    if needed <= memory:
        return []
    told = f"a batch that fits in {memory / 1e9:.3g} GB; this one needs {needed / 1e9:.3g} GB or more"
    return [Problem("data.batch_size", config.data.batch_size, f"{told} (trainer.accumulate divides it)")]


def _record(config: Config) -> dict[str, Any]:
    """The config, flat; empty for one whose axes could not be read."""
    return flatten(config.record()) if "axes" in config.__dict__ else {}


def _encodable(config: Config) -> list[Problem]:
    """Text that no file could hold: half of a surrogate pair, such as bytes of a terminal that are no UTF-8."""
    return [
        Problem(key, ascii(value), "text that can be written in UTF-8")
        for key, value in _record(config).items()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text)
    ]


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
    for key, level in (config.report.baseline or {}).items():
        if key in ("seed", "repeat"):
            problems.append(Problem(f"report.baseline.{key}", level, "what cells differ in; these share their seeds"))
    return problems


def _keys() -> list[str]:
    """Every key but the variants' own parameters."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    inner = [f"{name}.{key}" for name, kind in sections.items() for key in getattr(kind, "model_fields", ())]
    return [*registry.axis_names(), *sections, *inner]


def _device(config: Config) -> list[Problem]:
    from . import devices

    return devices.check(config.trainer.device, config.trainer.dtype)


CHECKS: dict[Callable[[Config], list[Problem]], tuple[str, ...]] = {
    _study: ("study",),
    _arm: ("arm",),
    shape: ("model.d_model", "model.n_head"),
    _data: ("data.name", "data.path", "data.dir", "data.dtype"),
    _memory: ("model", "trainer.device", "trainer.accumulate", "trainer.grad_clip", "plugins"),
    _encodable: tuple(Config.model_fields),
    _cell_keys: tuple(Config.model_fields),
    _accumulate: ("data.batch_size", "trainer.accumulate"),
    _length: ("trainer.max_epochs", "trainer.max_steps", "trainer.max_tokens", "trainer.max_flops"),
    _tokens: ("trainer.max_tokens", "data.batch_size", "model.context_length"),
    _prompt: ("sampling.prompt",),
    _report: tuple(f"report.{key}" for key in ReportConfig.model_fields),
    _device: ("trainer.device", "trainer.dtype"),
}
"""Each check and the keys it reads."""
