"""Each optimiser against torch's own, in a GPT of ours: which weights decay, and what a resumed run goes on with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import timeless, train
from torch import Tensor

from gpt_ablate.config.schema import Config
from gpt_ablate.launching import launch
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.objectives import loss_per_token
from gpt_ablate.training.optimizers import Optimizer, optimizers

VOCAB = 37
SMALL = ("model.n_layer=1", "model.d_model=16", "model.n_head=2", "model.context_length=16")
DECAYING = {"layers.0.attention.qkv", "layers.0.attention.out", "layers.0.mlp.fc", "layers.0.mlp.out"}
ARCHITECTURES = {
    "gpt2": ([], {*DECAYING, "head"}),
    "tied": (["model.tie_weights=true"], DECAYING),
    "llama": (["normalizer=rmsnorm", "mlp=swiglu", "position=rope"], {*DECAYING, "layers.0.mlp.gate", "head"}),
    "biases": (["model.qkv_bias=true", "position=none"], {*DECAYING, "head"}),
}
"""Overrides, and the modules whose `weight` is a matrix that multiplies activations and is no embedding."""
SGDS = [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
]


def steps(model: GPT, move: Callable[[float, Tensor], Any], n: int = 4) -> None:
    """So many steps on batches of their own at a falling learning rate; `move` makes one of a loss."""
    for step in range(1, n + 1):
        tokens = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(step))
        move(0.1 / step, loss_per_token(model, tokens[:, :-1], tokens[:, 1:]))


def by_ours(optimizer: Optimizer) -> Callable[[float, Tensor], None]:
    def move(lr: float, loss: Tensor) -> None:
        optimizer.begin(lr, loss)
        loss.backward()
        optimizer.finish()

    return move


def by_torch(optimizer: torch.optim.Optimizer, grad_clip: float | None) -> Callable[[float, Tensor], None]:
    def move(lr: float, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr
        if grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(
                [it for group in optimizer.param_groups for it in group["params"]], grad_clip
            )
        optimizer.step()

    return move


def decaying(model: GPT, names: set[str]) -> list[dict[str, Any]]:
    """Two parameter groups of torch's: the named modules' weights, and all else without decay."""
    chosen = {f"{name}.weight" for name in names}
    its = dict(model.named_parameters())
    assert chosen <= its.keys()
    rest = [it for name, it in its.items() if name not in chosen]
    return [{"params": [its[name] for name in sorted(chosen)]}, {"params": rest, "weight_decay": 0.0}]


def assert_same(mine: GPT, theirs: GPT, atol: float = 0) -> None:
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("grad_clip", [None, 0.1])
@pytest.mark.parametrize("own", SGDS, ids=str)
def test_sgd_is_that_of_torch(own: dict[str, Any], grad_clip: float | None, configure: Callable[..., Config]) -> None:
    config = configure(*SMALL)
    mine, theirs, before = (GPT(config, VOCAB) for _ in range(3))
    node = {"name": "sgd", "lr": 0.1, "weight_decay": 0.0} | own
    steps(mine, by_ours(optimizers.build(node, mine, grad_clip)))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, fused=True, **own)
    steps(theirs, by_torch(reference, grad_clip))
    assert_same(mine, theirs, 1e-7 if grad_clip else 0)  # the norm that clips is summed in another order
    assert not any(torch.equal(*pair) for pair in zip(mine.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_matrices_alone_decay(name: str, configure: Callable[..., Config]) -> None:
    overrides, names = ARCHITECTURES[name]
    config = configure(*SMALL, *overrides)
    mine, theirs = GPT(config, VOCAB), GPT(config, VOCAB)
    node = {"name": "adamw", "lr": 0.1, "weight_decay": 0.3, "betas": [0.8, 0.95], "decay": "matrices"}
    steps(mine, by_ours(optimizers.build(node, mine, None)))
    groups = decaying(theirs, names)
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, fused=True)
    steps(theirs, by_torch(reference, None))
    assert_same(mine, theirs)


@pytest.mark.parametrize("decay", ["all", "matrices"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_decays_or_none_of_its_kind(
    architecture: str, name: str, decay: str, configure: Callable[..., Config]
) -> None:
    overrides, names = ARCHITECTURES[architecture]
    model = GPT(configure(*SMALL, *overrides), VOCAB)
    own = {"betas": [0.9, 0.999]} if name == "adamw" else {}
    node = {"name": name, "lr": 0.1, "weight_decay": 0.3, "decay": decay} | own
    decays = optimizers.build(node, model, None).decays
    found = {key for key, it in model.named_parameters() if decays[it] == 0.3}
    every = {key for key, _ in model.named_parameters()}
    assert found == ({f"{module}.weight" for module in names} if decay == "matrices" else every)
    assert {decays[it] for key, it in model.named_parameters() if key not in found} <= {0.0}


@pytest.mark.parametrize(
    "chosen",
    [
        ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.weight_decay=0.1", "optimizer.decay=matrices"],
        ["optimizer=sgd", "optimizer.momentum=0.0"],
        ["optimizer.decay=matrices"],
        ["optimizer.name=lion"],
    ],
    ids=" ".join,
)
@pytest.mark.fast_cases(1)
def test_a_resumed_run_is_the_whole_one(
    chosen: list[str], small: Callable[..., Config], plugin: Callable[[str], str], tmp_path: Path
) -> None:
    flag = tmp_path / "stopped"
    plugins = plugin(LION + STOP.format(str(flag)))
    whole = train(small(plugins, *chosen), tmp_path / "whole")
    config = small(plugins, *chosen, "callbacks=[stop]")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    run = train(config, tmp_path / "run")
    assert timeless(run.metrics()) == timeless(whole.metrics())
    one, other = ((it.path / "checkpoint/final/model.safetensors").read_bytes() for it in (run, whole))
    assert one == other


STOP = """
import os, signal
from gpt_ablate.training.callbacks import Callback, callbacks

@callbacks.register("stop")
class Stop(Callback):
    def on_step_end(self, run):
        if run.step == 2 and not os.path.exists({0!r}):
            open({0!r}, "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
"""
LION = """
from typing import Annotated
import torch
from pydantic import Field
from gpt_ablate.training.optimizers import Optimizer, decays_of, optimizers

class Lion(Optimizer):
    # Chen et al. 2023, algorithm 2
    def __init__(self, *arguments, beta1, beta2, **named):
        self.beta1, self.beta2 = beta1, beta2
        super().__init__(*arguments, **named)

    def new_state(self, parameter):
        return {"momentum": torch.zeros_like(parameter, requires_grad=False)}

    def move(self, parameters, gradients, weight_decay):
        if self.not_finite:
            return
        for parameter, gradient in zip(parameters, gradients):
            momentum = self.state[parameter]["momentum"]
            update = momentum.lerp(gradient, 1 - self.beta1).sign_()
            parameter.mul_(1 - self.current_lr * weight_decay).sub_(update, alpha=self.current_lr)
            momentum.lerp_(gradient, 1 - self.beta2)

@optimizers.register("lion")
def lion(
    model, grad_clip, *, lr: float, weight_decay: float,
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.9, 0.99],
    decay: str = "all",
):
    decays = decays_of(model, weight_decay, decay)
    return Lion(decays, lr, grad_clip, model.spare, beta1=betas[0], beta2=betas[1])
"""
SQUARED = """
from gpt_ablate.models.objectives import loss_per_token, objectives

@objectives.register("with_norm")
def with_norm(model, inputs, targets, *, weight: float = 0.5):
    norm = model.head.weight.square().sum()
    return {"cross_entropy": loss_per_token(model, inputs, targets), "norm": weight * norm}
"""


def test_an_optimizer_of_a_plugin_moves_weights_as_it_says(
    small: Callable[..., Config], plugin: Callable[[str], str]
) -> None:
    config = small(plugin(LION), "optimizer.name=lion", "optimizer.weight_decay=0.0", "model.dropout=0")
    model, before = GPT(config, VOCAB), GPT(config, VOCAB)
    optimizer = optimizers.build(config.optimizer.node(), model, None)
    steps(model, by_ours(optimizer), n=1)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)])
    assert ((moved.abs() - 0.1).abs() < 1e-6).sum() > 0.8 * moved.numel()  # lr 0.1 times a sign, but for zero gradients


def test_an_objective_of_a_plugin_is_minimised_and_recorded(
    small: Callable[..., Config], plugin: Callable[[str], str], tmp_path: Path
) -> None:
    objective = ["objective.name=with_norm", "+objective.weight=1.0", "~objective.z_loss", "~objective.label_smoothing"]
    objective += ["optimizer=sgd", "model.dropout=0"]
    run = train(small(plugin(SQUARED), *objective, "optimizer.lr=0.1"), tmp_path / "run")
    norms = [line["train/norm"] for line in run.metrics() if line["step"]]
    assert norms[0] > 1
    assert norms[-1] < 0.5 * norms[0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer.momentum = 0"),
        (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0", "seed=-1"], "optimizer.momentum = 0"),
        (["optimizer=sgd", "optimizer.momentum=1.0"], "optimizer.momentum = 1.0: should be less than 1"),
        (["optimizer=sgd", "optimizer.betas=[0.9,0.9]"], "optimizer.betas"),
        (["optimizer=sgd", "optimizer.nesterov=1"], "optimizer.nesterov = 1"),
        (["optimizer.decay=matrixes"], "optimizer.decay = 'matrixes'"),
        (["optimizer.momentum=0.9"], "optimizer.momentum"),
        (["optimizer.name=sdg"], "Did you mean 'sgd'?"),
    ],
)
def test_what_no_optimizer_takes_is_refused_before_a_run_starts(
    overrides: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "model=micro", "data=sample", *overrides])
    with pytest.raises(SystemExit) as exited:
        launch.main()
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == []
