"""Variants from outside the package: what a module of the user's own needs to say, trained and sampled from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import losses, small_run, train

from gpt_ablate.config.registry import load
from gpt_ablate.config.schema import Config, SamplingConfig
from gpt_ablate.models.generation import generate
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint
from gpt_ablate.utils.errors import UsageError

load()
VOCAB, CONTEXT = 37, 16
RMSNORM = """
import torch
from torch import nn
from gpt_ablate.axes.normalizer import normalizers

@normalizers.register("my_rmsnorm")
class RMSNorm(nn.Module):
    def __init__(self, context, *, eps: float = 1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(context.d_model))

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
"""
ROPE = """
import torch
from gpt_ablate.axes.position import Position, positions

@positions.register("my_rope")
class Rope(Position):
    def __init__(self, context, *, base: float = 10000.0):
        super().__init__()
        self.half = context.d_model // context.n_head // 2
        self.frequencies = [base ** (-i / self.half) for i in range(self.half)]

    def rotate(self, q, k, start):
        at = torch.arange(start, start + q.shape[-2], device=q.device, dtype=torch.float64)
        angles = at[:, None] * at.new_tensor(self.frequencies)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        def turned(x):
            a, b = x.split(self.half, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return turned(q), turned(k)
"""
SWIGLU = """
from torch import nn
from torch.nn import functional as F
from gpt_ablate.axes.mlp import mlps

@mlps.register("my_swiglu")
class SwiGLU(nn.Module):
    def __init__(self, context, *, hidden: int = 43, bias: bool = True):
        super().__init__()
        self.gate = nn.Linear(context.d_model, hidden, bias=bias)
        self.fc = nn.Linear(context.d_model, hidden, bias=bias)
        self.out = nn.Linear(hidden, context.d_model, bias=bias)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.fc(x))
"""
SANDWICH = """
from torch import nn
from gpt_ablate.axes.norm import PreNorm, norms

@norms.register("sandwich")
class Sandwich(PreNorm):
    def __init__(self, context, *, eps: float | None = None):
        super().__init__(context, eps=eps)
        self.after = nn.ModuleList(context.build("normalizer") for _ in range(2))

    def leave(self, sublayer, x):
        return self.after[sublayer](x)
"""
CONVOLUTION = """
import torch
from torch import nn
from gpt_ablate.axes.attention import attentions

class Inputs:
    # What a layer has read, (B, t, D); its only use in a forward pass
    def __init__(self):
        self.seen = None

    @property
    def length(self):
        return 0 if self.seen is None else self.seen.shape[1]

    def rewind(self):
        pass

@attentions.register("convolution")
class Convolution(nn.Module):
    def __init__(self, context, *, width: int = 3):
        super().__init__()
        self.width = width
        self.filter = nn.Conv1d(context.d_model, context.d_model, width, groups=context.d_model)
        self.out = nn.Linear(context.d_model, context.d_model)

    def forward(self, x, position, cache=None):
        tokens = x.shape[1]
        if cache is not None:
            x = cache.seen = x if cache.seen is None else torch.cat([cache.seen, x], dim=1)
        padded = nn.functional.pad(x.mT, (self.width - 1, 0))
        return self.out(self.filter(padded).mT[:, -tokens:])

    def new_cache(self, batch):
        return Inputs()
"""
LIKE_OURS = {  # a plugin, its variant, and the package's own that must give the same
    "rmsnorm": (RMSNORM, "normalizer.name=my_rmsnorm", "normalizer=rmsnorm"),
    "rope": (ROPE, "position.name=my_rope", "position=rope"),
    "swiglu": (SWIGLU, "mlp.name=my_swiglu", "mlp=swiglu"),
}
OTHERS = {
    "sandwich": (SANDWICH, "norm.name=sandwich"),
    "sandwich_around_both": (SANDWICH, "norm.name=sandwich residual=parallel"),
    "convolution": (CONVOLUTION, "attention.name=convolution"),
    "convolution_of_four": (CONVOLUTION, "attention.name=convolution +attention.width=4 norm=post layers=clone"),
}
PLUGINS = {name: (code, variant) for name, (code, variant, _) in LIKE_OURS.items()} | OTHERS


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """A config of three steps on a little text, not cached since a plugin of one name may change."""
    overrides = [*small_run(tmp_path), "trainer.max_steps=3", "sampling.max_new_tokens=3"]
    return lambda *more: configure.__wrapped__(*overrides, *(part for each in more for part in each.split()))


def model_of(config: Config) -> GPT:
    """Off its initial values, in double precision."""
    model = GPT(config, VOCAB).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.fast_cases(4)
def test_a_plugin_trains_is_saved_and_loaded(
    name: str, plugin: Callable[[str], str], small: Callable[..., Config], tmp_path: Path
) -> None:
    code, variant = PLUGINS[name]
    config = small(plugin(code), variant)
    run = train(config, tmp_path / "run")
    assert run.record()["status"] == "done"
    trained, _ = checkpoint.load_trained(RunDirectory(tmp_path / "run"), plugins=["mine"])
    assert run.result()["parameters"] == trained.n_parameters()
    assert run.result()["flops_per_token"] > 0
    initial = dict(GPT(config).named_parameters())
    assert [name for name, value in trained.named_parameters() if torch.equal(value, initial[name])] == []


@pytest.mark.parametrize("name", LIKE_OURS)
def test_a_variant_written_anew_trains_as_the_packages_own(
    name: str, plugin: Callable[[str], str], small: Callable[..., Config], tmp_path: Path
) -> None:
    code, variant, own = LIKE_OURS[name]
    mine = losses(train(small(plugin(code), variant), tmp_path / "mine"))
    assert mine == pytest.approx(losses(train(small(own), tmp_path / "own")), rel=1e-5)


@pytest.mark.parametrize("name", PLUGINS)
def test_text_with_the_cache_is_that_of_full_passes(
    name: str, plugin: Callable[[str], str], small: Callable[..., Config]
) -> None:
    code, variant = PLUGINS[name]
    model = model_of(small(plugin(code), variant))
    tokens = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, cache = model(tokens), model.new_cache(3)
        parts = [model(piece, cache) for piece in tokens.split([3, 1, 2, 9, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-10)
    settings = SamplingConfig(prompt="x", temperature=0, top_k=None, top_p=None, max_new_tokens=CONTEXT + 4)
    text = tokens[0, :5].tolist()
    for token in generate(model, list(text), settings, torch.Generator()):  # past the context too
        with torch.no_grad():
            assert token == model(torch.tensor([text[-CONTEXT:]]))[0, -1].argmax()
        text.append(token)


@pytest.mark.parametrize("name", ["convolution", "sandwich", "rope"])
def test_a_token_changes_no_logit_before_it(
    name: str, plugin: Callable[[str], str], small: Callable[..., Config]
) -> None:
    code, variant = PLUGINS[name]
    model = model_of(small(plugin(code), variant))
    tokens = torch.zeros(1, CONTEXT, dtype=torch.long)
    changed = tokens.clone()
    changed[0, 7] = 1
    with torch.no_grad():
        difference = (model(changed) - model(tokens)).abs().amax(dim=(0, 2))
    assert (difference[:7] == 0).all()
    assert (difference[7:9] > 1e-6).all()


def test_a_sandwich_shares_its_initial_values_with_pre_norm(
    plugin: Callable[[str], str], small: Callable[..., Config]
) -> None:
    mine, plain = GPT(small(plugin(SANDWICH), "norm.name=sandwich"), VOCAB), GPT(small(), VOCAB)
    added = mine.state_dict().keys() - plain.state_dict().keys()
    assert added == {f"layers.{i}.after.{j}.{kind}" for i in (0, 1) for j in (0, 1) for kind in ("weight", "bias")}
    assert all(torch.equal(mine.state_dict()[name], value) for name, value in plain.state_dict().items())


HEAD = "from gpt_ablate.axes.{0} import {1}\n@{1}.register('wrong')\n"


@pytest.mark.parametrize(
    ("axis", "registry", "builder", "told"),
    [
        ("norm", "norms", "def f(attention, mlp, d_model, dropout): ...", r"missing a required argument: 'mlp'"),
        ("mlp", "mlps", "def f(): ...", r"too many positional arguments"),
        ("position", "positions", "class f:\n    def __init__(self, context, base): ...", r"argument: 'base'"),
    ],
)
def test_a_builder_of_another_signature_is_refused_when_it_is_imported(
    axis: str, registry: str, builder: str, told: str, plugin: Callable[[str], str], small: Callable[..., Config]
) -> None:
    own = plugin(HEAD.format(axis, registry) + builder)
    with pytest.raises(
        UsageError, match=rf"plugins = 'mine': .*{axis}=wrong: a builder is called with \(context\): .*{told}"
    ):
        small(own, f"{axis}.name=wrong")


IMPOSSIBLE = HEAD.format("mlp", "mlps") + "def f(context):\n    raise ValueError('only on Sundays')\n"


def test_what_a_builder_refuses_is_told_with_its_axis(
    plugin: Callable[[str], str], small: Callable[..., Config]
) -> None:
    config = small(plugin(IMPOSSIBLE), "mlp.name=wrong")
    with pytest.raises(UsageError, match=r"^mlp\.name = 'wrong': a variant that can be built here \(only on Sundays\)"):
        GPT(config, VOCAB)


def test_heads_that_rope_cannot_rotate_are_refused_with_the_rest(
    configure: Callable[..., Config],
) -> None:
    with pytest.raises(UsageError) as error:
        configure("position=rope", "model.d_model=15", "model.n_head=3", "study=../x")
    assert {problem.key for problem in error.value.problems} == {"model.n_head", "study"}
    with pytest.raises(UsageError, match=r"model\.n_head = 4: a divisor of") as error:
        configure("position=rope", "model.d_model=15", "model.n_head=4")
    assert len(error.value.problems) == 1
    configure("model.d_model=15", "model.n_head=3")
