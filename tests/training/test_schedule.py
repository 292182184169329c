"""Learning-rate factors, against values worked out by hand and against torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from gpt_ablate.config.schema import Config
from gpt_ablate.training.schedules import constant, cosine, schedules, warmup


def torch_factors(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """The factors that a torch scheduler gives to steps 1, 2, ..."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_constant_is_one() -> None:
    assert [constant(step, 9) for step in (1, 5, 9)] == [1.0, 1.0, 1.0]


def test_warmup_at_given_steps() -> None:
    assert [warmup(step, 100, warmup_steps=4) for step in (1, 2, 3, 4, 5, 100)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(1, 100, warmup_steps=0) == 1
    assert warmup(1, 100, warmup_steps=1) == 1


def test_warmup_is_torchs_lambda_lr() -> None:
    expected = torch_factors(lambda optimizer: LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 7)), 20)
    assert [warmup(step, 20, warmup_steps=7) for step in range(1, 21)] == pytest.approx(expected, rel=1e-12)


def test_cosine_at_given_steps() -> None:
    # Warm-up over 10 of 110 steps, then a half period of 100.
    factors = {step: cosine(step, 110, warmup_steps=10, final_fraction=0.2) for step in (1, 10, 35, 60, 110)}
    assert factors == pytest.approx({1: 0.1, 10: 1.0, 35: 0.6 + 0.4 * 2**-0.5, 60: 0.6, 110: 0.2})


@pytest.mark.parametrize(("total", "final"), [(30, 0.1), (13, 0.0), (200, 0.5)])
def test_cosine_is_torchs_cosine_annealing(total: int, final: float) -> None:
    expected = torch_factors(lambda optimizer: CosineAnnealingLR(optimizer, T_max=total, eta_min=final), total + 1)
    # torch starts a cosine at its first step; ours spends `warmup_steps=0` and ends on the last.
    ours = [cosine(step, total, warmup_steps=0, final_fraction=final) for step in range(1, total + 1)]
    assert ours == pytest.approx(expected[1:], abs=1e-9)


def test_cosine_after_warmup_is_torchs_sequence() -> None:
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        rise = LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
        fall = CosineAnnealingLR(optimizer, T_max=32, eta_min=0.1)
        return SequentialLR(optimizer, [rise, fall], milestones=[7])

    ours = [cosine(step, 40, warmup_steps=8, final_fraction=0.1) for step in range(1, 41)]
    assert ours == pytest.approx(torch_factors(make, 40), abs=1e-9)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    assert [cosine(step, 3, warmup_steps=10) for step in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])
    assert [warmup(step, 3, warmup_steps=10) for step in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("schedule=constant", [1.0, 1.0, 1.0]),
        ("schedule=warmup schedule.warmup_steps=20", [0.05, 0.5, 1.0]),
        ("schedule=cosine schedule.warmup_steps=0", [0.1 + 0.9 * 0.9938441703, 0.55, 0.1]),
    ],
)
def test_the_config_reaches_the_schedule(
    overrides: str, expected: list[float], configure: Callable[..., Config]
) -> None:
    schedule = schedules.bind(configure(*overrides.split()).schedule.node())
    assert [schedule(step, 20) for step in (1, 10, 20)] == pytest.approx(expected)
