"""Parity with Hugging Face's GPT-2: logits, gradients, dropout, and the way there and back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_ablate.axes.attention import ParallelAttention
from gpt_ablate.axes.mlp import Gelu
from gpt_ablate.axes.norm import PreNorm
from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.huggingface import from_hf, to_hf
from gpt_ablate.utils.errors import UsageError

transformers = pytest.importorskip("transformers")

SHAPES = {  # n_layer, n_head, d_model, mlp_hidden, context_length, vocabulary
    "one head": (1, 1, 16, None, 8, 50),
    "wide": (2, 4, 48, 96, 16, 97),
    "deep": (4, 3, 24, 100, 12, 31),
}
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-10}
OUTER = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
INNER = [  # ours, theirs, theirs is (in, out)
    ("norm1.weight", "ln_1.weight", False),
    ("norm1.bias", "ln_1.bias", False),
    ("attention.qkv.weight", "attn.c_attn.weight", True),
    ("attention.qkv.bias", "attn.c_attn.bias", False),
    ("attention.out.weight", "attn.c_proj.weight", True),
    ("attention.out.bias", "attn.c_proj.bias", False),
    ("norm2.weight", "ln_2.weight", False),
    ("norm2.bias", "ln_2.bias", False),
    ("mlp.fc.weight", "mlp.c_fc.weight", True),
    ("mlp.fc.bias", "mlp.c_fc.bias", False),
    ("mlp.out.weight", "mlp.c_proj.weight", True),
    ("mlp.out.bias", "mlp.c_proj.bias", False),
]


def hugging_face(shape: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """A GPT2LMHeadModel with random values in every parameter, drawn in `dtype`."""
    n_layer, n_head, d_model, hidden, context, vocab = SHAPES[shape]
    defaults = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": d_model, "n_inner": hidden, "n_positions": context}
    tokens = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(defaults | sizes | tokens | settings))).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model.eval()


def overrides_of(shape: str, tied: bool = True) -> list[str]:
    n_layer, n_head, d_model, hidden, context, _ = SHAPES[shape]
    sizes = {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "mlp_hidden": hidden, "context_length": context}
    flags = {"qkv_bias": True, "tie_weights": tied}
    return [f"model.{key}={'null' if value is None else value}" for key, value in (sizes | flags).items()]


def tokens_of(shape: str, length: int | None = None) -> Tensor:
    *_, context, vocab = SHAPES[shape]
    return torch.randint(vocab, (3, length or context), generator=torch.Generator().manual_seed(4))


def gradients(model: nn.Module, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def in_our_names(theirs: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    mapped = {ours: theirs.pop(name) for ours, name in OUTER.items() if name in theirs}
    for i in range(n_layer):
        for ours, name, transposed in INNER:
            value = theirs.pop(f"transformer.h.{i}.{name}")
            mapped[f"layers.{i}.{ours}"] = value.T if transposed else value
    assert not theirs
    return mapped


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("attention", ["looped", "parallel", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.fast_cases(12)
def test_weights_of_hugging_face_give_its_logits_and_gradients(
    shape: str, tied: bool, attention: str, dtype: torch.dtype, configure: Callable[..., Config]
) -> None:
    source = hugging_face(shape, dtype, tie_word_embeddings=tied)
    model = from_hf(source, configure(*overrides_of(shape, tied), f"attention={attention}"))
    tokens = tokens_of(shape)
    ours, theirs = model(tokens), source(tokens).logits
    assert ours.dtype == dtype
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < LIMIT[dtype]
    expected = in_our_names(gradients(source, theirs, tokens), SHAPES[shape][0])
    found = gradients(model, ours, tokens)
    assert set(found) == set(expected)
    assert tied == ("head.weight" not in found)
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() < LIMIT[dtype] / 10, name
        assert gradient.abs().max() > 0


def test_dropout_stands_where_gpt2_has_it(configure: Callable[..., Config]) -> None:
    """Equal draws fall on equal tensors: embeddings, attention weights, both residual branches."""
    rates = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    source = hugging_face("wide", torch.float64, attn_implementation="eager", **rates).train()
    model = from_hf(source, configure(*overrides_of("wide"), "model.dropout=0.3", "attention=parallel")).train()
    tokens = tokens_of("wide")
    torch.manual_seed(0)
    theirs = source(tokens).logits
    torch.manual_seed(0)
    ours = model(tokens)
    assert (ours - theirs).abs().max() < 1e-10
    assert (ours - model(tokens)).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_there_and_back_is_exact(dtype: torch.dtype, tied: bool, configure: Callable[..., Config]) -> None:
    source = hugging_face("deep", dtype, tie_word_embeddings=tied)
    back = to_hf(from_hf(source, configure(*overrides_of("deep", tied))))
    returned = back.state_dict()
    assert list(returned) == list(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(returned[name], value), name
    assert (back.lm_head.weight is back.transformer.wte.weight) == tied
    for key in ("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size", "tie_word_embeddings"):
        assert getattr(back.config, key) == getattr(source.config, key)


@pytest.mark.parametrize(("layers", "attention", "tied"), [("fresh", "looped", "true"), ("clone", "parallel", "false")])
def test_a_model_of_ours_exports(
    layers: str, attention: str, tied: str, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    shape = ["model.d_model=24", "model.n_head=3", "model.context_length=12", "normalizer.eps=1e-3"]
    config = configure(*shape, f"layers={layers}", f"attention={attention}", f"model.tie_weights={tied}")
    model = GPT(config, 50).eval()
    tokens = tokens_of("one head")
    exported = to_hf(model)
    exported.save_pretrained(tmp_path)
    reloaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(tokens)
        for target in (exported, reloaded):
            assert not target.training
            assert (target(tokens).logits - logits).abs().max() < 1e-4
        assert (to_hf(model.double())(tokens).logits - model(tokens)).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("norm=post", r"norm = 'PostNorm': PreNorm"),
        ("normalizer=rmsnorm", r"normalizer = 'RMSNorm': LayerNorm"),
        ("position=rope", r"position = 'RotaryPosition': LearnedPosition"),
        ("position=none", r"position = 'NoPosition': LearnedPosition"),
        ("mlp=swiglu", r"mlp = 'SwiGLU': Gelu"),
        ("residual=parallel", r"residual = 'Parallel': Sequential"),
    ],
)
def test_what_gpt2_has_not_cannot_be_exported(variant: str, named: str, configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError, match=named):
        to_hf(GPT(configure(variant, *overrides_of("wide")), 97))


class _Doubled(ParallelAttention):
    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        return 2 * super().forward(x, cache)


class _Linear(Gelu):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(x))


class _Unnormed(PreNorm):
    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        return x + self.mlp(x)


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("layers.1.attention", "__class__", _Doubled, "attention = '_Doubled'"),
        ("layers.1.mlp", "__class__", _Linear, "mlp = '_Linear'"),
        ("layers.1", "__class__", _Unnormed, "norm = '_Unnormed'"),
        ("layers.1.norm2", "eps", 1e-2, r"norm.eps = \[1e-05, 0.01\]"),
        ("final_norm", "eps", 1e-2, "norm.eps"),
        ("layers.1.attention.dropout", "p", 0.5, "model.dropout"),
        ("layers.1.dropout", "p", 0.5, "model.dropout"),
    ],
)
def test_a_part_that_gpt2_has_not_is_not_exported_as_another(
    part: str, key: str, value: object, named: str, configure: Callable[..., Config]
) -> None:
    """Its parameters have the names and shapes of GPT-2's, and it computes something else."""
    model = GPT(configure(*overrides_of("wide")), 97)
    setattr(model.get_submodule(part), key, value)
    with pytest.raises(UsageError, match=named):
        to_hf(model)


def test_a_source_that_is_no_gpt2_with_a_head_is_refused(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError, match="source = 'GPT2Model'"):
        from_hf(hugging_face("wide").transformer, configure(*overrides_of("wide")))


def test_without_transformers_the_extra_is_named(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'gpt_ablate\[hf\]'"):
        to_hf(GPT(configure(*overrides_of("wide")), 97))


def test_a_config_of_another_shape_is_refused(configure: Callable[..., Config]) -> None:
    """Every difference is named, and nothing else."""
    other = {
        "norm.name": "post",
        "normalizer.name": "rmsnorm",
        "position.name": "none",
        "mlp.name": "swiglu",
        "residual.name": "parallel",
        "model.n_layer": 3,
        "model.n_head": 2,
        "model.d_model": 24,
        "model.mlp_hidden": 50,
        "model.context_length": 32,
        "model.qkv_bias": "false",
        "model.tie_weights": "false",
    }
    overrides = [f"{key}={value}" for key, value in other.items()]
    with pytest.raises(UsageError) as error:
        from_hf(hugging_face("wide"), configure(*overrides_of("wide"), *overrides))
    assert [problem.key for problem in error.value.problems] == list(other)
    with pytest.raises(UsageError) as error:
        from_hf(hugging_face("deep"), configure(*overrides_of("deep"), "model.context_length=13"))
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == ("model.context_length", 13)
    assert "12" in problem.allowed


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("activation_function", "relu", "activation_function"),
        ("layer_norm_epsilon", 1e-3, r"norm\.eps|layer_norm_epsilon"),
        ("scale_attn_weights", False, "scale_attn_weights"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx"),
        ("add_cross_attention", True, "add_cross_attention"),
    ],
)
def test_a_source_that_computes_something_else_is_refused(
    setting: str, value: object, named: str, configure: Callable[..., Config]
) -> None:
    with pytest.raises(UsageError, match=named):
        from_hf(hugging_face("wide", **{setting: value}), configure(*overrides_of("wide")))
