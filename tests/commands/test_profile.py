"""What a profile says against sums by hand, and the command around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_ablate import profile as command
from gpt_ablate.config.schema import Config
from gpt_ablate.kernels import cross_entropy
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.reporting.figure_style import LIGHT
from gpt_ablate.training import profiling

B, T, D, V, LAYERS, HEADS = 2, 16, 32, 50257, 3, 4
SHAPE = [
    *("data=sample", f"data.batch_size={B}", f"model.context_length={T}", f"model.d_model={D}"),
    *(f"model.n_layer={LAYERS}", f"model.n_head={HEADS}", "model.dropout=0"),
]
FLOAT = 4


@pytest.fixture
def profiled(configure: Callable[..., Config]) -> Callable[..., dict[str, Any]]:
    return lambda *overrides: profiling.profile(configure(*SHAPE, *overrides), 50257, repeats=1)


def test_saved_bytes_are_those_of_the_formulas(profiled: Callable[..., dict[str, Any]]) -> None:
    """An MLP keeps its input and GELU's."""
    parts = profiled("attention=parallel")["parts"]
    activations = B * T * D * FLOAT
    assert parts["mlp"]["saved_bytes"] == LAYERS * (1 + 4) * activations
    weights = B * HEADS * T * T * FLOAT
    assert parts["attention"]["saved_bytes"] > LAYERS * weights


@pytest.mark.parametrize("at_once", [B * T // 2, B * T])
def test_the_loss_keeps_the_gradients_that_it_computes_ahead(
    at_once: int, profiled: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "LOSS_TOKENS", at_once)
    ahead = (V * D + B * T * D) * FLOAT
    assert ahead <= profiled()["parts"][profiling.REST]["saved_bytes"] < 1.01 * ahead


def test_a_fused_kernel_keeps_no_attention_weights(profiled: Callable[..., dict[str, Any]]) -> None:
    saved = {name: profiled(f"attention={name}")["parts"]["attention"]["saved_bytes"] for name in ("parallel", "sdpa")}
    assert saved["parallel"] - saved["sdpa"] > LAYERS * B * HEADS * T * T * FLOAT / 2


def test_arithmetic_is_all_of_it(profiled: Callable[..., dict[str, Any]], configure: Callable[..., Config]) -> None:
    found = profiled("attention=sdpa")
    assert found["flops"] == B * T * flops_per_token(GPT(configure(*SHAPE)))
    assert found["parts"]["mlp"]["forward_flops"] == LAYERS * B * T * 2 * 8 * D * D
    assert found["parts"][profiling.REST]["forward_flops"] == B * T * 2 * D * V
    assert found["forward_flops"] == sum(part["forward_flops"] for part in found["parts"].values())


def test_peaks_hold_what_must_live_at_once(profiled: Callable[..., dict[str, Any]]) -> None:
    found = profiled()
    logits = B * T * V * FLOAT
    assert 2 * logits <= found["forward_peak_bytes"] < 4 * logits
    assert found["saved_bytes"] <= found["forward_peak_bytes"] <= found["step_peak_bytes"]
    assert found["step_peak_bytes"] > found["weight_bytes"]  # gradients
    seconds = found["seconds"]
    assert sum(part["forward_seconds"] for part in found["parts"].values()) == pytest.approx(seconds["forward"])
    assert all(value > 0 for value in seconds.values())


def test_live_bytes_rise_and_fall() -> None:
    with profiling._Live() as live:
        first = torch.ones(1000)
        second = first + 1
        shared = second[:10]
        assert live.now == live.peak == 8000
        del first, second
        assert live.now == 4000
        del shared
    assert (live.now, live.peak) == (0, 8000)


def test_the_command_compares_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["profile", *SHAPE, "attention=looped,sdpa", "trainer.device=cpu"])
    command.main()
    told = capsys.readouterr().out
    assert "attention=looped" in told
    assert "attention=sdpa" in told
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["profile.json", "profile.png", "profile.svg"]
    content = json.loads((tmp_path / "outputs/profile/profile.json").read_text())
    assert [each["name"] for each in content["profiles"]] == ["attention=looped", "attention=sdpa"]
    assert content["profiles"][0]["parameters"] == content["profiles"][1]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["attention=loped"], "Did you mean 'looped'?"),
        (["model.n_head=5"], "a divisor of"),
        (["trainer.compile=true"], "trainer.compile = True: false"),
        (["--to", "file"], "a folder, not a file"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["profile", "data=sample", "model=micro", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_chart_has_the_parts_of_every_config() -> None:
    part = {"saved_bytes": 2_000_000, "forward_flops": 3_000_000_000, "forward_seconds": 1.0, "backward_seconds": 3.0}
    profiles = [
        {"name": name, "saved_bytes": 2_000_000, "parts": dict.fromkeys(parts, part)}
        for name, parts in (("pre", ["mlp"]), ("sandwich", ["mlp", "after1"]))
    ]
    kept, counted, timed = command._chart(profiles, LIGHT).axes
    assert [label.get_text() for label in kept.get_yticklabels()] == ["mlp", "after1"]
    for axis, value in ((kept, 2.0), (counted, 3.0), (timed, 4.0)):
        assert [bar.get_width() for bar in axis.patches] == [value, 0, value, value]
