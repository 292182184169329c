"""Variants against implementations that are not ours: Hugging Face's, torch's, and equations written out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from contexts import context_of
from small_runs import scramble
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes.mlp import Gelu, SwiGLU
from gpt_ablate.axes.normalizer import rmsnorm
from gpt_ablate.axes.position import Position, RotaryPosition
from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT

transformers = pytest.importorskip("transformers")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")

VOCAB, LAYERS, HEADS, WIDTH, HIDDEN, CONTEXT = 37, 2, 3, 24, 40, 12
SHAPE = [
    f"model.n_layer={LAYERS}",
    f"model.n_head={HEADS}",
    f"model.d_model={WIDTH}",
    f"model.context_length={CONTEXT}",
]
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCAB}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": False}


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang & Sennrich 2019, equation 4, with the constant under the root that all implementations add."""
    return weight * x / ((x**2).sum(dim=-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def same(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def in_double(source: nn.Module) -> None:
    """Have a Llama's norms compute in its own dtype; they go to single precision."""
    for module in source.modules():
        if isinstance(module, llama.LlamaRMSNorm):
            module.forward = functools.partial(normed, weight=module.weight, eps=module.variance_epsilon)


LLAMA = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "norm1.weight": "model.layers.{}.input_layernorm.weight",
    "norm2.weight": "model.layers.{}.post_attention_layernorm.weight",
    "attention.qkv.weight": "model.layers.{}.self_attn.[qkv]_proj.weight",
    "attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "mlp.fc.weight": "model.layers.{}.mlp.up_proj.weight",
    "mlp.out.weight": "model.layers.{}.mlp.down_proj.weight",
}
PHI = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.final_layernorm.weight",
    "final_norm.bias": "model.final_layernorm.bias",
    "head.weight": "lm_head.weight",
    "norm1.weight": "model.layers.{}.input_layernorm.weight",
    "norm1.bias": "model.layers.{}.input_layernorm.bias",
    "attention.qkv.weight": "model.layers.{}.self_attn.[qkv]_proj.weight",
    "attention.qkv.bias": "model.layers.{}.self_attn.[qkv]_proj.bias",
    "attention.out.weight": "model.layers.{}.self_attn.dense.weight",
    "attention.out.bias": "model.layers.{}.self_attn.dense.bias",
    "mlp.fc.weight": "model.layers.{}.mlp.fc1.weight",
    "mlp.fc.bias": "model.layers.{}.mlp.fc1.bias",
    "mlp.out.weight": "model.layers.{}.mlp.fc2.weight",
    "mlp.out.bias": "model.layers.{}.mlp.fc2.bias",
}
GPTJ = {
    "token_embedding.weight": "transformer.wte.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
    "norm1.weight": "transformer.h.{}.ln_1.weight",
    "norm1.bias": "transformer.h.{}.ln_1.bias",
    "attention.qkv.weight": "transformer.h.{}.attn.[qkv]_proj.weight",
    "attention.out.weight": "transformer.h.{}.attn.out_proj.weight",
    "mlp.fc.weight": "transformer.h.{}.mlp.fc_in.weight",
    "mlp.fc.bias": "transformer.h.{}.mlp.fc_in.bias",
    "mlp.out.weight": "transformer.h.{}.mlp.fc_out.weight",
    "mlp.out.bias": "transformer.h.{}.mlp.fc_out.bias",
}


def rows_in_pairs(rows: Tensor) -> Tensor:
    """GPT-J rotates neighbours of a head's dimensions; ours, dimension i and i + D/2H."""
    by_head = rows.unflatten(0, (HEADS, WIDTH // HEADS))
    return torch.cat([by_head[:, ::2], by_head[:, 1::2]], dim=1).flatten(0, 1)


def in_our_names(theirs: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors of another model (weights or gradients) as ours holds them."""
    found = {}

    def take(name: str) -> Tensor:
        if "[qkv]" not in name:
            return theirs[name]
        q, k, v = (theirs[name.replace("[qkv]", part)] for part in "qkv")
        return torch.cat([rows_in_pairs(q), rows_in_pairs(k), v] if names is GPTJ else [q, k, v])

    for ours, name in names.items():
        if "{}" not in name:
            found[ours] = take(name)
        else:
            found |= {f"layers.{i}.{ours}": take(name.format(i)) for i in range(LAYERS)}
    return found


def of_llama() -> nn.Module:
    sizes = {"intermediate_size": HIDDEN, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-3}
    config = transformers.LlamaConfig(**SIZES, **sizes, **TOKENS, rope_theta=100.0, attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config).double()
    in_double(model)
    return model


def of_phi() -> nn.Module:
    sizes = {"intermediate_size": HIDDEN, "max_position_embeddings": CONTEXT, "partial_rotary_factor": 1.0}
    dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_dropout": 0.0}
    config = transformers.PhiConfig(**SIZES, **sizes, **dropout, **TOKENS, attn_implementation="sdpa")
    return transformers.PhiForCausalLM(config).double()


def of_gptj() -> nn.Module:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": HIDDEN, "n_positions": CONTEXT}
    dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPTJConfig(
        **sizes, **dropout, **TOKENS, vocab_size=VOCAB, rotary_dim=WIDTH // HEADS, attn_implementation="eager"
    )
    return transformers.GPTJForCausalLM(config).double()


FAMILIES = {  # what makes theirs, its names, ours, and how near: GPT-J takes attention in single precision
    "llama": (
        of_llama,
        LLAMA,
        "normalizer=rmsnorm normalizer.eps=1e-3 position=rope position.base=100.0 mlp=swiglu model.bias=false "
        f"mlp.hidden={HIDDEN} model.qkv_bias=false",
        1e-10,
    ),
    "phi": (of_phi, PHI, f"residual=parallel position=rope model.mlp_hidden={HIDDEN} model.qkv_bias=true", 1e-10),
    "gptj": (of_gptj, GPTJ, f"residual=parallel position=rope model.mlp_hidden={HIDDEN} model.qkv_bias=false", 2e-5),
}


@pytest.mark.parametrize("attention", ["looped", "parallel", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_another_family_has_its_logits_and_gradients(
    family: str, attention: str, configure: Callable[..., Config]
) -> None:
    make, names, variants, tolerance = FAMILIES[family]
    theirs = make().eval()
    scramble(theirs)
    model = GPT(configure(*SHAPE, *variants.split(), f"attention={attention}"), VOCAB).double().eval()
    given = in_our_names(theirs.state_dict(), names)
    no_bias = {name for name in model.state_dict() if name not in given}
    assert {name.split(".", 2)[-1] for name in no_bias} <= {"attention.out.bias"}
    model.load_state_dict(given | {name: torch.zeros(WIDTH) for name in no_bias})
    if getattr(theirs.lm_head, "bias", None) is not None:
        nn.init.zeros_(theirs.lm_head.bias)
    if family != "gptj":  # tables of single precision, compared by themselves below
        rotary = model.position_embedding
        rotary.cos, rotary.sin = (
            table[0] for table in theirs.model.rotary_emb(torch.zeros(1).double(), torch.arange(CONTEXT)[None])
        )
    tokens, targets = torch.randint(VOCAB, (2, 3, CONTEXT), generator=torch.Generator().manual_seed(0))

    ours_out, theirs_out = model(tokens), theirs(tokens).logits
    assert theirs_out.std() > 0.1
    same(ours_out, theirs_out, "logits", tolerance)
    for logits in (ours_out, theirs_out):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = in_our_names(gradients, names)
    for name, parameter in model.named_parameters():
        if name not in no_bias:
            assert parameter.grad.abs().max() > 0, name
            same(parameter.grad, expected[name], name, tolerance)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rmsnorm_is_the_equation_and_llamas(eps: float) -> None:
    ours, theirs = rmsnorm(context_of(), eps=eps), llama.LlamaRMSNorm(WIDTH, eps=eps)
    scramble(ours)
    theirs.load_state_dict(ours.state_dict())
    x = 3 + torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    same(ours(x), theirs(x), "llama", 1e-5)
    ours, x = ours.double(), x.double().requires_grad_()
    found = torch.autograd.grad(ours(x).square().sum(), [x, ours.weight])
    written = normed(x, ours.weight, eps)
    same(ours(x), written, "equation")
    for one, other in zip(found, torch.autograd.grad(written.square().sum(), [x, ours.weight]), strict=True):
        same(one, other, "gradient")


@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_rope_is_llamas_and_a_rotation_of_complex_numbers(base: float) -> None:
    head_dim, start, length = WIDTH // HEADS, 4, 7
    ours = RotaryPosition(context_of(), base=base)
    rope = {"rope_type": "default", "rope_theta": base}
    theirs = llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**SIZES, rope_parameters=rope))
    q, k = torch.randn(2, 3, HEADS, length, head_dim, generator=torch.Generator().manual_seed(1))
    cos, sin = theirs(q, torch.arange(start, start + length)[None])
    for one, other in zip(ours.rotate(q, k, start), llama.apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        same(one, other, "llama", 1e-5)
    # Su et al. 2021, equation 13: each pair as a complex number, times e^(i m theta).
    turns = torch.polar(
        torch.ones(length, head_dim // 2),
        torch.arange(start, start + length)[:, None] * base ** (-torch.arange(0, head_dim, 2) / head_dim),
    )
    complex_q = torch.complex(*q.chunk(2, dim=-1)) * turns
    same(ours.rotate(q, k, start)[0], torch.cat([complex_q.real, complex_q.imag], dim=-1), "complex", 1e-5)


def test_scores_under_rope_depend_on_distance_alone() -> None:
    rope = RotaryPosition(context_of(context_length=100)).double()
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(at: int, of: int) -> Tensor:
        return (rope.rotate(q, k, at)[0] * rope.rotate(q, k, of)[1]).sum()

    same(score(9, 2), score(97, 90), "seven apart", 1e-6)
    assert abs(score(9, 2) - score(9, 3)) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_is_llamas(bias: bool) -> None:
    ours = SwiGLU(context_of(bias=bias), hidden=HIDDEN)
    scramble(ours)
    ours = ours.double()
    config = transformers.LlamaConfig(**SIZES, intermediate_size=HIDDEN, mlp_bias=bias, hidden_act="silu")
    theirs = llama.LlamaMLP(config).double()
    names = {"gate": "gate_proj", "fc": "up_proj", "out": "down_proj"}
    renamed = {f"{names[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same(ours(x), theirs(x), "values")
    for one in (ours, theirs):
        one(x).square().sum().backward()
    for name, parameter in ours.named_parameters():
        first, kind = name.split(".")
        same(parameter.grad, getattr(theirs.get_submodule(names[first]), kind).grad, name)


@pytest.mark.parametrize(("width", "hidden"), [(24, 96), (768, 3072), (10, 7), (2, 1)])
def test_swiglu_has_as_many_weights_as_gelu(width: int, hidden: int) -> None:
    context = context_of(d_model=width, mlp_hidden=hidden)
    with torch.device("meta"):
        gelu, swiglu = (sum(p.numel() for p in mlp(context).parameters() if p.dim() == 2) for mlp in (Gelu, SwiGLU))
    assert abs(swiglu - gelu) <= 1.5 * width  # half a unit of rounding, in three matrices


def test_a_model_without_positions_is_one_whose_positions_are_zero(configure: Callable[..., Config]) -> None:
    none, learned = (GPT(configure(*SHAPE, f"position={name}"), VOCAB).double() for name in ("none", "learned"))
    nn.init.zeros_(learned.position_embedding.weight)
    tokens = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    assert torch.equal(none(tokens), learned(tokens))
    # Attention without positions sees a set: the last token's logits do not change with the order of those before.
    one_layer = GPT(configure(*SHAPE, "position=none", "model.n_layer=1"), VOCAB).double()
    order = torch.cat([torch.randperm(CONTEXT - 1, generator=torch.Generator().manual_seed(2)), torch.tensor([11])])
    same(one_layer(tokens[:, order])[:, -1], one_layer(tokens)[:, -1], "order", 1e-12)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_parallel_sublayers_are_the_equation(norm: str, configure: Callable[..., Config]) -> None:
    """x + A(norm x) + M(norm x), or norm(x + A(x) + M(x)): one norm for both."""
    layer = GPT(configure(*SHAPE, f"norm={norm}", "residual=parallel"), VOCAB).layers[0]
    scramble(layer)
    x = torch.randn(2, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(1))
    before, after = (layer.norm1, nn.Identity()) if norm == "pre" else (nn.Identity(), layer.norm1)
    inside = before(x)
    expected = after(x + layer.attention(inside, Position()) + layer.mlp(inside))
    same(layer(x, Position()), expected, norm, 1e-5)
    assert layer.norm2 is None


def test_attention_is_scaled_by_the_root_of_a_heads_width(configure: Callable[..., Config]) -> None:
    """Vaswani et al. 2017, equation 1, token by token, with the last query on the last key."""
    layer = GPT(configure(*SHAPE, "attention=sdpa"), VOCAB).layers[0].attention.double()
    q, k, v = torch.randn(3, 1, HEADS, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    last = ((q[..., -1:, :] @ k.mT) / math.sqrt(8)).softmax(-1) @ v
    same(layer.attend(q[..., -2:, :], k, v)[..., -1:, :], last, "last")
