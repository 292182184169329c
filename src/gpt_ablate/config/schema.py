"""The typed schema of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from gpt_ablate.config import registry
from gpt_ablate.config.fingerprint import IMPLIED, comparable, digest, flatten
from gpt_ablate.utils.texts import universal

LONGEST_PROMPT = 1 << 17
"""In characters; far above any context."""
_MOST = 2**53  # far above any count that can be trained with, and exact as a float
Count = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=0, le=_MOST)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    bias: bool = True
    tie_weights: bool

    @property
    def hidden(self) -> int:
        """Width of the MLP: `mlp_hidden`, or 4 D where that is null."""
        return self.mlp_hidden or 4 * self.d_model


class DataConfig(Variant):
    """A data set: what all have in common; its own parameters are checked by its registry."""

    batch_size: Count
    stride: Count | None = None
    replacement: bool = False

    @classmethod
    def common(cls) -> tuple[str, ...]:
        """The keys that the framework reads itself."""
        return tuple(cls.model_fields)


class OptimizerConfig(Variant):
    """An optimiser: what all have in common; its own parameters are checked by its registry."""

    lr: Positive
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    decay: Literal["all", "weights", "matrices"] = "all"


class TrainerConfig(Section):
    """How long to train, what to record when, and on what."""

    max_epochs: Count | None
    max_steps: Count | None
    max_tokens: Count | None = None
    max_flops: Positive | None = None
    max_seconds: Positive | None = None
    eval_every: Steps | None
    eval_batches: Count | None
    final_eval_batches: Count | None = None
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
    callbacks: list[str | dict[str, Any]] = []
    axes: dict[str, Variant]
    init: Variant
    model: ModelConfig
    tokenizer: Variant = Variant(name="gpt2")
    data: DataConfig
    objective: Variant = Variant(name="cross_entropy")
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
        given = {key: value for key, value in values.items() if key in axes}
        return rest | {"axes": given | {axis: node for axis, node in IMPLIED.items() if axis not in given}}

    def node_of(self, key: str) -> dict[str, Any] | None:
        """The variant of an axis or the option of a setting that a registry builds; None where it has no such key."""
        chosen = self.axes.get(key, getattr(self, key, None))
        return chosen.node() if isinstance(chosen, Variant) else None

    def record(self) -> dict[str, Any]:
        """As plain values, in the layout of the YAML files."""
        plain = self.model_dump()
        return plain.pop("axes") | plain

    def fingerprint(self, **content: str) -> str:
        """SHA-256 of what decides a run's result: the config less what does not, and the hashes of `content`."""
        return digest(comparable(self.record()) | content)
