"""What run.json, result.json and study.json must hold: whoever reads them may rely on this, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import NotRequired, TypedDict

from gpt_ablate.config.fingerprint import IMPLIED
from gpt_ablate.config.schema import Config, ReportConfig
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import read_json, read_lines

SCHEMA_VERSION = 1
LARGEST = 3.4e38
"""What float32 can hold, as all that is recorded: of larger numbers squares and sums would overflow."""
_MOST = 2**53
Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Rate = Annotated[float, Field(gt=1e-30, le=LARGEST)]
Step = Annotated[int, Field(ge=0, le=_MOST)]


class _Part(BaseModel):
    """Exact in types; keys of newer versions pass."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Data(_Part):
    sha256: str
    unigram_entropy: Annotated[float, Field(ge=0, le=100)]
    ln_vocab: Annotated[float, Field(ge=0.1, le=100)]
    train_tokens: int = 0
    val_tokens: int = 0
    train_bytes_per_token: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    val_bytes_per_token: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    tokenizer_sha256: str | None = None
    vocab_size: Annotated[int, Field(ge=1)] = 50257


class _Hardware(_Part):
    processor: str = ""
    cores: int = 0
    threads: int = 0
    memory_bytes: int = 0
    gpus: list[str] = []


class _Metric(BaseModel):
    """As `Metric` takes it."""

    model_config = ConfigDict(strict=True, extra="forbid")
    key: str
    name: str
    unit: str
    lower_is_better: bool = True
    scale: Literal["difference", "ratio"] = "difference"
    curve: str | None = None
    split: Literal["training", "validation"] | None = None


class _Run(_Part):
    status: Literal["running", "done", "failed", "diverged"]
    start: str
    end: str | None
    fingerprint: str
    config: dict[str, Any]
    axes: dict[str, str]
    options: dict[str, str] = {}
    overrides: list[str] = []
    metrics: list[_Metric] = []
    data: _Data
    versions: dict[str, str] = {}
    hardware: _Hardware = _Hardware()
    git_commit: str | None
    total_steps: int | None = None
    error: str | None


class _Best(_Part):
    value: Finite
    step: Step


class _Result(_Part):
    status: Literal["done", "diverged"]
    diverged: str | None = None
    step: Step
    tokens: Annotated[int, Field(ge=0)]
    final: dict[str, Finite]
    best: dict[str, _Best | None] = {}
    parameters: Annotated[int, Field(ge=0)]
    flops_per_token: Amount
    flops: Amount
    seconds_per_step: Rate | None = None
    tokens_per_second: Rate | None = None
    wall_time: Amount
    peak_rss_bytes: Annotated[int, Field(gt=0)] | None = None
    peak_cuda_bytes: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_trained(self) -> _Result:
        if self.status == "done" and not self.step:
            raise ValueError("a run that is done has taken at least one step")
        return self


_Metrics = TypedDict(  # which pydantic checks in a tenth of the time that a model takes
    "_Metrics",
    {
        "step": Step,
        "tokens": NotRequired[Annotated[int, Field(ge=0)]],
        "wall_time": NotRequired[Amount],
        "tokens_per_second": NotRequired[Rate],
        "train/loss": NotRequired[Finite],
        "train/epoch_loss": NotRequired[Finite],
        "eval/train_loss": NotRequired[Finite],
        "eval/val_loss": NotRequired[Finite],
    },
)
_Metrics.__pydantic_config__ = ConfigDict(strict=True)  # type: ignore[attr-defined]


class _Sample(_Part):
    """A line of samples.jsonl."""

    step: Step
    wall_time: Amount = 0.0
    prompt: str
    text: str
    temperature: Amount
    top_k: int | None
    top_p: Amount | None


class _Planned(_Part):
    path: str
    seed: int
    levels: dict[str, Any]
    fingerprint: str


class _Plan(_Part):
    study: str
    report: ReportConfig
    overrides: list[str]
    runs: list[_Planned]


def read_run(path: Path) -> dict[str, Any]:
    """run.json, with the axes that are newer than it.

    Raises UsageError if it is missing, damaged, or of a schema that is not known here.
    """
    content = _read(path, _Run, "run")
    content["config"] = IMPLIED | content["config"]
    implied = {axis: variant["name"] for axis, variant in IMPLIED.items() if axis not in content["axes"]}
    content["axes"] = content["axes"] | implied
    try:
        Config.model_validate(content["config"])
    except ValidationError as error:
        raise _refusal(path, error, "config") from error
    return content


def read_result(path: Path) -> dict[str, Any]:
    """result.json as it is. Raises UsageError as `read_run` does."""
    return _read(path, _Result, "run")


def read_plan(path: Path) -> dict[str, Any]:
    """study.json as it is. Raises UsageError as `read_run` does."""
    return _read(path, _Plan, "plan")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, by step. Raises UsageError, naming file and line, for one that is damaged."""
    lines = read_lines(path)
    _check_lines(path, lines, _METRICS)
    before = -1
    for number, line in enumerate(lines, 1):
        step = line["step"]
        if step <= before:
            raise _damaged(f"{path}:{number}", f"step: {step} comes after {before}")
        if "tokens_per_second" in line and not (step and line.get("tokens")):
            raise _damaged(f"{path}:{number}", "tokens_per_second: of no step and no tokens")
        before = step
    return lines


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl. Raises UsageError, naming file and line, for one that is damaged."""
    lines = read_lines(path)
    _check_lines(path, lines, _SAMPLES)
    return lines


def check_metrics(line: dict[str, Any], where: str) -> None:
    """Raise UsageError, naming `where`, for a line of metrics.jsonl that is damaged."""
    try:
        _METRICS.validate_python([line])
    except ValidationError as error:
        raise _damaged(where, _told(error, 1)) from error


_METRICS, _SAMPLES = TypeAdapter(list[_Metrics]), TypeAdapter(list[_Sample])


def _check_lines(path: Path, lines: list[dict[str, Any]], kind: TypeAdapter[Any]) -> None:
    try:
        kind.validate_python(lines)
    except ValidationError as error:
        number = error.errors()[0]["loc"][0]
        assert isinstance(number, int)
        raise _damaged(f"{path}:{number + 1}", _told(error, 1)) from error


def _read(path: Path, part: type[_Part], what: str) -> dict[str, Any]:
    content = read_json(path)
    if content.get("schema_version") != SCHEMA_VERSION:
        known = f"a {what} of schema {SCHEMA_VERSION}; a newer gpt_ablate may have written this one ({path})"
        raise UsageError([Problem("schema_version", content.get("schema_version"), known)])
    try:
        part.model_validate(content)
    except ValidationError as error:
        raise _refusal(path, error) from error
    return content


def _refusal(path: Path, error: ValidationError, *inside: str) -> UsageError:
    return _damaged(str(path), _told(error, 0, *inside))


def _damaged(where: str, told: str) -> UsageError:
    return UsageError([Problem("run directory", where, f"a whole record ({told})")])


def _told(error: ValidationError, skipped: int = 0, *inside: str) -> str:
    """The first three errors: where in the record, less the first `skipped` parts, and what is wrong."""
    return "; ".join(
        f"{'.'.join(map(str, [*inside, *each['loc'][skipped:]]))}: {each['msg']}" for each in error.errors()[:3]
    )
