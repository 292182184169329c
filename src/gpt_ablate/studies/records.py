"""What run.json, result.json and study.json must hold: whoever reads them may rely on this, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt_ablate.config.fingerprint import IMPLIED
from gpt_ablate.config.schema import Config, ReportConfig
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import read_json

SCHEMA_VERSION = 1
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """Exact in types; keys of newer versions pass."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Data(_Part):
    sha256: str
    unigram_entropy: Finite
    ln_vocab: Annotated[Finite, Field(gt=0)]
    train_tokens: int = 0
    val_tokens: int = 0
    val_bytes_per_token: Annotated[Finite, Field(gt=0)] | None = None


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
    step: int


class _Result(_Part):
    status: Literal["done", "diverged"]
    diverged: str | None = None
    step: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    final: dict[str, Finite]
    best: dict[str, _Best | None] = {}
    parameters: int
    flops_per_token: Finite
    flops: Finite
    seconds_per_step: Finite | None = None
    tokens_per_second: Finite | None = None
    wall_time: Finite
    peak_rss_bytes: int | None = None
    peak_cuda_bytes: int | None = None


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
    told = "; ".join(f"{'.'.join(map(str, [*inside, *each['loc']]))}: {each['msg']}" for each in error.errors()[:3])
    return UsageError([Problem("run directory", str(path), f"a whole record ({told})")])
