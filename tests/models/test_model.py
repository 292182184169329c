"""The model against torch's own encoder layer, its variants against each other, and its counts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from small_runs import scramble
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes.position import Position
from gpt_ablate.config.registry import Registry, axis_names, load
from gpt_ablate.config.schema import Config
from gpt_ablate.kernels import cross_entropy, linear
from gpt_ablate.models import gpt as model_module
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.models.objectives import loss_per_token

load()
SMALL = ("model.d_model=24", "model.n_head=3", "model.context_length=12")
VOCAB = 37
CELLS = [  # every variant by itself, all combinations of the oldest axes, and some where several act in one place
    *((f"{axis}={variant}",) for axis in axis_names() for variant in sorted(Registry.by_key[axis].builders)),
    *itertools.product(
        ("norm=pre", "norm=post"),
        ("layers=fresh", "layers=clone"),
        ("attention=looped", "attention=parallel", "attention=sdpa"),
    ),
    *(("position=rope", f"attention={attention}") for attention in ("looped", "sdpa")),
    ("norm=post", "residual=parallel", "normalizer=rmsnorm"),
    ("residual=parallel", "position=rope", "layers=clone"),
    ("normalizer=rmsnorm", "position=rope", "mlp=swiglu"),
    ("norm=post", "position=none", "mlp=swiglu", "layers=clone"),
]
DTYPES = [torch.float32, torch.float64]
ENCODER_NAMES = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.qkv.bias": "self_attn.in_proj_bias",
    "attention.out.weight": "self_attn.out_proj.weight",
    "attention.out.bias": "self_attn.out_proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc.weight": "linear1.weight",
    "mlp.fc.bias": "linear1.bias",
    "mlp.out.weight": "linear2.weight",
    "mlp.out.bias": "linear2.bias",
}


def scrambled(config: Config, dtype: torch.dtype = torch.float64) -> GPT:
    model = GPT(config, VOCAB)
    scramble(model)
    return model.to(dtype).eval()


def assert_same(ours: Tensor, theirs: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """Equal to 1e-10 in fp64, to float error in fp32."""
    tolerance = 1e-10 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def encoder_layer(block: nn.Module, norm: str, eps: float) -> nn.TransformerEncoderLayer:
    """Torch's layer with the weights of `block`."""
    hidden, d_model = block.mlp.fc.weight.shape
    layer = nn.TransformerEncoderLayer(
        d_model,
        block.attention.n_head,
        dim_feedforward=hidden,
        dropout=0.0,
        activation=functools.partial(F.gelu, approximate="tanh"),
        layer_norm_eps=eps,
        batch_first=True,
        norm_first=norm == "pre",
        dtype=block.mlp.fc.weight.dtype,
    )
    values = block.state_dict()
    assert set(values) == set(ENCODER_NAMES)
    layer.load_state_dict({theirs: values[ours] for ours, theirs in ENCODER_NAMES.items()})
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["looped", "parallel", "sdpa"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_torchs_encoder_layer(
    norm: str, attention: str, dtype: torch.dtype, configure: Callable[..., Config]
) -> None:
    shape = [*SMALL, "model.qkv_bias=true", "model.mlp_hidden=40", "normalizer.eps=1e-3"]
    ours = scrambled(configure(f"norm={norm}", f"attention={attention}", *shape), dtype).layers[0].train()
    theirs = encoder_layer(ours, norm, eps=1e-3)
    generator = torch.Generator().manual_seed(1)
    x, weighting = torch.randn(2, 3, 9, 24, generator=generator).to(dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=dtype)

    y_ours, y_theirs = ours(x_ours, Position()), theirs(x_theirs, src_mask=mask, is_causal=True)
    assert_same(y_ours, y_theirs, dtype)
    (y_ours * weighting).sum().backward()
    (y_theirs * weighting).sum().backward()
    assert_same(x_ours.grad, x_theirs.grad, dtype, "input")
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_same(parameter.grad, gradients[ENCODER_NAMES[name]], dtype, name)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_model_is_embeddings_torchs_layers_and_a_head(norm: str, configure: Callable[..., Config]) -> None:
    model = scrambled(configure(*SMALL, f"norm={norm}", "model.qkv_bias=true"))
    tokens = tokens_of(2, 12)
    with torch.no_grad():
        x = F.embedding(tokens, model.token_embedding.weight) + model.position_embedding.weight
        for layer in model.layers:
            mask = nn.Transformer.generate_square_subsequent_mask(12, dtype=x.dtype)
            x = encoder_layer(layer, norm, eps=1e-5)(x, src_mask=mask)
        if norm == "pre":
            x = F.layer_norm(x, (24,), model.final_norm.weight, model.final_norm.bias, 1e-5)
        assert_same(model(tokens), x @ model.head.weight.T, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("attention", ["parallel", "sdpa"])
@pytest.mark.fast_cases(6)
def test_all_attentions_agree(
    attention: str, norm: str, bias: str, dtype: torch.dtype, configure: Callable[..., Config]
) -> None:
    shape = [*SMALL, f"norm={norm}", f"model.qkv_bias={bias}"]
    looped = scrambled(configure("attention=looped", *shape), dtype)
    model = GPT(configure(f"attention={attention}", *shape), VOCAB).to(dtype)
    theirs = model.state_dict()
    assert [(name, value.shape) for name, value in looped.state_dict().items()] == [
        (name, value.shape) for name, value in theirs.items()
    ]
    model.load_state_dict(looped.state_dict())
    assert flops_per_token(model) == flops_per_token(looped)
    tokens, targets = tokens_of(2, 12), tokens_of(2, 12, seed=1)
    logits = [each(tokens) for each in (looped, model)]
    assert_same(*logits, dtype)
    for one in logits:
        F.cross_entropy(one.flatten(0, 1), targets.flatten()).backward()
    for (name, one), other in zip(looped.named_parameters(), model.parameters(), strict=True):
        assert_same(one.grad, other.grad, dtype, name)


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
@pytest.mark.fast_cases(12)
def test_a_token_changes_no_logit_before_it(cell: tuple[str, ...], configure: Callable[..., Config]) -> None:
    model = scrambled(configure(*cell, *SMALL))
    length = 12
    original = tokens_of(1, length)
    changed = original.repeat(length, 1)  # row t has another token at t
    changed.diagonal().add_(1).remainder_(VOCAB)
    with torch.no_grad():
        difference = (model(changed) - model(original)).abs().amax(dim=-1)
    for t in range(length):
        assert (difference[t, :t] < 1e-12).all()
        assert (difference[t, t:] > 1e-6).all(), "every later token attends to the changed one"


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_the_cache_gives_the_logits_of_the_full_pass(cell: tuple[str, ...], configure: Callable[..., Config]) -> None:
    model = scrambled(configure(*cell, *SMALL))
    tokens = tokens_of(3, 12)
    with torch.no_grad():
        full = model(tokens)
        for pieces in ([1, 4, 1, 1, 3, 2], [12], [1] * 12, [11, 1]):
            cache = model.new_cache(batch=3)
            parts = [model(piece, cache) for piece in tokens.split(pieces, dim=1)]
            assert_same(torch.cat(parts, dim=1), full, torch.float64, str(pieces))


def test_dropout_acts_in_training_alone(configure: Callable[..., Config]) -> None:
    model = GPT(configure(*SMALL, "model.dropout=0.5"), VOCAB)
    tokens = tokens_of(1, 12)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on the meta device: shapes without values."""
    monkeypatch.setattr(model_module, "initialise", lambda *arguments: None)


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("model=gpt2", 162_419_712),
        ("model=gpt2 attention=looped layers=clone init=gpt2", 162_419_712),
        ("model=gpt2 norm=post", 162_419_712 - 1536),
        ("model=gpt2 position=rope", 162_419_712 - 256 * 768),
        ("model=gpt2 normalizer=rmsnorm residual=parallel", 162_419_712 - 25 * 768 - 12 * 768),
        ("model=gpt2 mlp=swiglu", 162_419_712 + 12 * (2 * 2048 - 3072)),  # a bias more; the weights are as many
        # As published, with the context of 1024, biases everywhere and the tied head.
        ("model=gpt2 model.context_length=1024 model.qkv_bias=true model.tie_weights=true", 124_439_808),
        ("model=gpt2_medium model.context_length=1024 model.qkv_bias=true model.tie_weights=true", 354_823_168),
    ],
)
def test_parameter_counts(overrides: str, expected: int, configure: Callable[..., Config]) -> None:
    with torch.device("meta"):
        assert GPT(configure(*overrides.split())).n_parameters() == expected


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("init", "variance"),
    [
        # A normed x has length sqrt(D), so a logit has variance D times that of a head's weight.
        ("gpt2", 64 * 0.02**2),
        ("torch", 64 * (1 / 64) / 3),
    ],
)
def test_the_first_loss_is_what_the_initial_values_imply(
    init: str, variance: float, norm: str, configure: Callable[..., Config]
) -> None:
    vocab, batch, length = 5000, 32, 64
    model = GPT(configure(f"init={init}", f"norm={norm}"), vocab)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(vocab, (2, batch, length), generator=generator)
    with torch.no_grad():
        loss = loss_per_token(model, inputs, targets).item()
    # Normal logits z: E[log sum exp z - z_target] = ln V + Var / 2; the mean over tokens errs by sd / sqrt(B T).
    error = math.sqrt(variance / (batch * length))
    assert loss == pytest.approx(math.log(vocab) + variance / 2, abs=5 * error + 0.005)


def test_loss_per_token_is_the_negative_log_probability(configure: Callable[..., Config]) -> None:
    model = scrambled(configure(*SMALL), torch.float32)
    inputs, targets = tokens_of(2, 5), tokens_of(2, 5, seed=1)
    with torch.no_grad():
        picked = model(inputs).softmax(dim=-1).gather(-1, targets[..., None]).log()
        assert loss_per_token(model, inputs, targets).item() == pytest.approx(-picked.mean().item(), rel=1e-5)
        total = loss_per_token(model, inputs, targets, reduction="sum").item()
    assert total == pytest.approx(-picked.sum().item(), rel=1e-5)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("at_once", [1, 4, 10, 512])
def test_a_loss_in_parts_has_the_gradient_of_the_plain_one(
    tied: bool, at_once: int, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "LOSS_TOKENS", at_once)
    monkeypatch.setattr(linear, "COLUMNS_AT_ONCE", 7)
    model = scrambled(configure(*SMALL, f"model.tie_weights={str(tied).lower()}"), torch.float32)
    inputs, targets = tokens_of(2, 5), tokens_of(2, 5, seed=1)
    plain = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    parts = loss_per_token(model, inputs, targets)
    weights = list(model.parameters())
    torch.testing.assert_close(parts, plain)
    for ours, theirs in zip(
        torch.autograd.grad(parts / 3, weights), torch.autograd.grad(plain / 3, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.inference_mode():
        torch.testing.assert_close(loss_per_token(model, inputs, targets), plain)


def test_a_loss_in_parts_is_passed_back_through_once(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "LOSS_TOKENS", 4)
    loss = loss_per_token(scrambled(configure(*SMALL), torch.float32), tokens_of(2, 5), tokens_of(2, 5, seed=1))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("variants", "of_mlp"),
    [
        ("attention=looped norm=post", 2 * 40),
        ("attention=parallel layers=clone", 2 * 40),
        ("residual=parallel normalizer=rmsnorm position=rope", 2 * 40),
        ("mlp=swiglu position=none", 3 * 27),
        ("mlp=swiglu mlp.hidden=31 model.bias=false attention=looped position=rope", 3 * 31),
    ],
)
def test_flops_are_six_per_weight_and_twelve_per_layer_token_and_width(
    variants: str, of_mlp: int, configure: Callable[..., Config]
) -> None:
    model = GPT(configure(*variants.split(), *SMALL, "model.n_layer=3", "model.mlp_hidden=40"), VOCAB).train()
    layers, context, width = 3, 12, 24
    weights = layers * (4 * width**2 + of_mlp * width) + VOCAB * width
    assert flops_per_token(model) == 6 * weights + 12 * layers * context * width
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
