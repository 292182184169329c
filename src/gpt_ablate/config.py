"""The typed schema of a config, and resolve(): every check on it, once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from . import registry
from .registry import Problem, Registry, UsageError, closest
from .texts import universal

_MOST = 2**53  # far above any count that can be trained with, and exact as a float
Count = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=0, le=_MOST)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


LONGEST_PROMPT = 1 << 17
"""In characters; far above any context."""


class Section(BaseModel):
    """Immutable, exact in types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Variant(Section):
    """An option that a registry builds: its name and its own parameters."""

    model_config = ConfigDict(extra="allow")
    name: str

    def node(self) -> dict[str, Any]:
        """As the registry takes it."""
        return self.model_dump()


class ModelConfig(Section):
    """Shape of the GPT, shared by all variants."""

    name: str
    n_layer: Count
    n_head: Count
    d_model: Count
    mlp_hidden: Count | None
    context_length: Count
    dropout: Probability
    qkv_bias: bool
    tie_weights: bool

    @property
    def hidden(self) -> int:
        """Width of the MLP: `mlp_hidden`, or 4 D where that is null."""
        return self.mlp_hidden or 4 * self.d_model


class DataConfig(Section):
    """Where tokens come from and how they are cut."""

    name: Literal["verdict", "text", "sample", "tokens"]
    path: str | list[str] | None = None
    dir: str | None = None
    dtype: Literal["uint16", "uint32"] | None = None
    batch_size: Count
    stride: Count | None
    train_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.9

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else self.path or []


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019); the decay applies to every parameter."""

    name: Literal["adamw"]
    lr: Positive
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)]


class TrainerConfig(Section):
    """How long to train, what to record when, and on what."""

    max_epochs: Count | None
    max_steps: Count | None
    max_tokens: Count | None = None
    max_flops: Positive | None = None
    max_seconds: Positive | None = None
    eval_every: Steps | None
    eval_batches: Count | None
    sample_every: Steps | None
    checkpoint_every: Steps | None
    grad_clip: Positive | None
    accumulate: Count
    device: str
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    dtype: Literal["float32", "tf32", "bfloat16"]
    compile: bool
    resume: Literal["auto", "never", "restart"]
    fail_fast: bool = False


def _short(prompt: str) -> str:
    """pydantic's own max_length does not take what no UTF-8 can hold, such as a terminal's stray bytes."""
    if len(prompt) > LONGEST_PROMPT:
        raise PydanticCustomError("string_too_long", f"String should have at most {LONGEST_PROMPT} characters")
    return prompt


class SamplingConfig(Section):
    """How text is drawn from the model."""

    prompt: Annotated[str, AfterValidator(_short), AfterValidator(universal)]
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    top_k: Count | None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None
    max_new_tokens: Count


class ReportConfig(Section):
    """What a study asks of its runs, declared before they are made; changes no run."""

    question: str | None = None
    baseline: dict[str, str | int | float | bool] = {}
    metrics: Annotated[dict[str, Positive | None], Field(min_length=1)] = {"eval/train_loss": 0.05}
    within: list[str] = []
    tune: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class Config(Section):
    """A run's config, checked and complete."""

    seed: Seed
    arm: str | None = None
    repeat: Steps = 0
    study: str | None
    plugins: list[str]
    cell_keys: list[str]
    axes: dict[str, Variant]
    init: Variant
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: Variant
    trainer: TrainerConfig
    sampling: SamplingConfig
    report: ReportConfig = ReportConfig()
    _options: dict[str, str] = PrivateAttr(default_factory=dict)
    """As `resolve` was told; no number depends on it."""

    @property
    def root(self) -> str:
        """What every random stream of the run is derived from; arms share none."""
        return str(self.seed) if self.arm is None else f"{self.arm}:{self.seed}"

    @property
    def options(self) -> dict[str, str]:
        """Each group and what its option is called: its `name` where it is not known how it was chosen."""
        nodes = {group: node for group, node in self.record().items() if isinstance(node, dict)}
        return {group: str(node["name"]) for group, node in nodes.items() if "name" in node} | self._options

    def levels(self) -> dict[str, Any]:
        """What names the run's cell: the option of every axis, and the option or value of every cell key."""
        values = flatten(self.record()) | self.options
        return {key: values.get(key) for key in (*self.axes, *self.cell_keys)}

    @model_validator(mode="before")
    @classmethod
    def _gather_axes(cls, values: Any) -> Any:
        axes = registry.axis_names()
        rest = {key: value for key, value in values.items() if key not in axes}
        return rest | {"axes": {key: value for key, value in values.items() if key in axes}}

    def record(self) -> dict[str, Any]:
        """As plain values, in the layout of the YAML files."""
        plain = self.model_dump()
        return plain.pop("axes") | plain

    def fingerprint(self, **content: str) -> str:
        """SHA-256 of what decides a run's result: the config less what does not, and the hashes of `content`."""
        return _digest(comparable(self.record()) | content)


_WITHOUT_EFFECT = (
    *("study.", "cell_keys.", "repeat.", "report.", "data.path.", "data.dir.", "data.dtype."),
    *(f"trainer.{key}." for key in ("device", "threads", "checkpoint_every", "resume", "fail_fast")),
)


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` less paths, logging and device, flat: {"optimizer.lr": 0.0004, ...}.

    A key that is null is left out: null means that the thing is not used, so a key added
    later changes no fingerprint.
    """
    return {
        key: value
        for key, value in flatten(record).items()
        if value is not None and not f"{key}.".startswith(_WITHOUT_EFFECT)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


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
    from . import checks

    wrong = [problem.key for problem in problems]
    for check, keys in checks.CHECKS.items():
        if not any(f"{key}.".startswith(f"{bad}.") or bad.startswith(f"{key}.") for key in keys for bad in wrong):
            problems += check(config)
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
