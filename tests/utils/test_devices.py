"""What is said of a device, on a machine that may have none but the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_run, train

from gpt_ablate.config.schema import Config
from gpt_ablate.training import hardware_rules, torch_settings
from gpt_ablate.utils import devices


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100 80GB PCIe", "tf32", 156e12),
        ("NVIDIA H100 PCIe", "float32", 51.2e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA L4", "float32", 30.3e12),
        ("NVIDIA L40", "float32", None),
        ("NVIDIA GeForce RTX 4090", "float32", None),
    ],
)
def test_the_rate_is_that_of_the_card(
    name: str, dtype: str, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert devices.flop_rate(torch.device("cuda"), dtype) == rate
    assert devices.flop_rate(torch.device("cpu"), dtype) is None


def test_utilisation_is_recorded_where_the_rate_is_known(
    tmp_path: Path, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*small_run(tmp_path), "trainer.max_steps=2")
    assert all("flop_utilisation" not in line for line in train(config, tmp_path / "unknown").metrics())
    monkeypatch.setattr(devices, "flop_rate", lambda *_: 1e12)
    run = train(config, tmp_path / "known")
    flops = run.result()["flops_per_token"]
    for line in run.metrics()[1:]:
        assert line["flop_utilisation"] == pytest.approx(flops * line["tokens_per_second"] / 1e12)


def test_tf32_is_for_cuda(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = devices.check("cpu", "tf32")
    assert (problem.key, problem.closest) == ("trainer.dtype", "float32")
    monkeypatch.setattr(devices, "available", lambda: ["cuda", "cpu"])
    assert devices.check("auto", "tf32") == []
    seen: list[Any] = []
    before = torch.get_float32_matmul_precision()
    for wanted in (True, False):
        with torch_settings.tf32(wanted):
            seen.append(torch.get_float32_matmul_precision())
    assert seen == ["high", "highest"]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ("", 4 * 64 * 16 * 4 * 32 * 2),
        ("trainer.accumulate=4", 4 * 16 * 16 * 4 * 32 * 2),
        ("trainer.dtype=bfloat16", 8 * 64 * 16 * 50257),
        ("trainer.compile=true", 8 * 64 * 16 * 50257),
    ],
)
def test_a_batch_that_cannot_fit_is_refused(
    overrides: str, needed: int, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ["model.d_model=32", "model.n_head=4", "model.n_layer=2", "model.context_length=16", "data.batch_size=64"]
    config = configure("data=sample", *shape, *overrides.split())
    monkeypatch.setattr(devices, "memory_bytes", lambda _: needed)
    assert hardware_rules.batch_memory(config, 50257) == []
    monkeypatch.setattr(devices, "memory_bytes", lambda _: needed - 1)
    (problem,) = hardware_rules.batch_memory(config, 50257)
    assert (problem.key, problem.value) == ("data.batch_size", 64)
