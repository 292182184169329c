"""To and from Hugging Face's `GPT2LMHeadModel` (the extra `hf`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpt_ablate.axes.attention import LoopedAttention, ParallelAttention, SdpaAttention
from gpt_ablate.axes.mlp import Gelu
from gpt_ablate.axes.norm import PreNorm
from gpt_ablate.axes.position import LearnedPosition
from gpt_ablate.axes.residual import Sequential
from gpt_ablate.config.schema import Config
from gpt_ablate.models import sharing
from gpt_ablate.models.gpt import GPT
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

_LAYER_NAMES = {
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.out": "mlp.c_proj",
}
_TRANSPOSED = ("attention.qkv", "attention.out", "mlp.fc", "mlp.out")
"""Hugging Face's Conv1D holds its weight as (in, out)."""
_VARIANTS = {"norm": "pre", "normalizer": "layernorm", "position": "learned", "mlp": "gelu", "residual": "sequential"}
"""What GPT-2 has on each axis that changes what a model computes."""
_ACTIVATIONS = {"tanh": "gelu_new", "none": "gelu"}
"""What Hugging Face calls the two forms of GELU."""
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Settings of a Hugging Face GPT-2 that change what it computes, at the values our GPT has."""


def from_hf(source: GPT2LMHeadModel, config: Config) -> GPT:
    """A GPT of `config` with the weights of `source`.

    Raises UsageError where the two differ in shape, biases or norm placement, or in weights that are one tensor here,
    or where either is no GPT-2.
    """
    if (kind := type(source).__name__) != "GPT2LMHeadModel":
        raise UsageError([Problem("source", kind, "a GPT2LMHeadModel")])
    problems = _unlike(source.config, config)
    if problems:
        raise UsageError(problems)
    model = GPT(config, source.config.vocab_size).to(next(source.parameters()).dtype)
    if problems := _unlike_gpt2(model):
        raise UsageError(problems)
    theirs = source.state_dict()
    ours = {}
    for name in model.state_dict():
        their_name, transposed = _their_name(name)
        value = theirs[their_name]
        ours[name] = value.T if transposed else value
    try:
        if left := theirs.keys() - {_their_name(name)[0] for name in ours}:
            raise ValueError(f"this model has no place for {min(left)}")
        sharing.load_weights(model, ours)
    except ValueError as error:
        own = Problem("layers.name", config.axes["layers"].name, f"layers of their own ({error})")
        raise UsageError([own]) from error
    return model


def to_hf(model: GPT) -> GPT2LMHeadModel:
    """`model` as a `GPT2LMHeadModel`, to save with `save_pretrained` or push to a hub.

    It has only the head's weights in common with the token embedding; others that layers here share become copies.
    Raises UsageError for a model that GPT-2's architecture cannot hold, such as a post-norm one.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise UsageError([Problem("transformers", None, "pip install 'gpt_ablate[hf]'")]) from error

    if problems := _unlike_gpt2(model):
        raise UsageError(problems)
    first: Any = model.layers[0]
    vocab_size, d_model = model.token_embedding.weight.shape
    dropout = model.dropout.p
    shape = GPT2Config(
        vocab_size=vocab_size,
        n_positions=model.context_length,
        n_embd=d_model,
        n_layer=sum(1 for _ in model.layers),
        n_head=model.n_head,
        n_inner=first.mlp.fc.weight.shape[0],
        activation_function=_ACTIVATIONS[first.mlp.approximate],
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        layer_norm_epsilon=first.norm1.eps,
        tie_word_embeddings=model.head.weight is model.token_embedding.weight,
        bos_token_id=vocab_size - 1,  # end-of-text, the last of a vocabulary
        eos_token_id=vocab_size - 1,
    )
    target: Any = GPT2LMHeadModel(shape)
    target.to(model.head.weight.dtype)
    theirs: dict[str, Tensor] = {
        name: torch.zeros_like(value) for name, value in target.state_dict().items() if name.endswith(".bias")
    }
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith("layers.")}
    for i, layer in enumerate(model.layers):  # a stack may pass a layer several times
        ours |= layer.state_dict(prefix=f"layers.{i}.")
    for name, value in ours.items():
        their_name, transposed = _their_name(name)
        theirs[their_name] = value.T.contiguous() if transposed else value
    missing, unexpected = target.load_state_dict(theirs, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    return target.train(model.training)


def _unlike_gpt2(model: GPT) -> list[Problem]:
    """Every part of ours that GPT-2 does not have; another class, such as a plugin's, may compute anything."""
    problems: dict[str, Problem] = {}

    def expect(where: str, part: Any, *known: type) -> bool:
        if type(part) not in known:
            allowed = f"{' or '.join(kind.__name__ for kind in known)}: GPT-2 has nothing else there"
            problems.setdefault(where, Problem(where, type(part).__name__, allowed))
        return type(part) in known

    expect("position", model.position_embedding, LearnedPosition)
    expect("normalizer", model.final_norm, nn.LayerNorm)
    norms, dropouts = {getattr(model.final_norm, "eps", None)}, {model.dropout.p}
    forms: set[Any] = set()
    layer: Any
    for layer in model.layers:
        if not (expect("norm", layer, PreNorm) and expect("residual", layer.residual, Sequential)):
            continue
        for norm in (layer.norm1, layer.norm2):
            if expect("normalizer", norm, nn.LayerNorm):
                norms.add(norm.eps)
        if expect("mlp", layer.mlp, Gelu):
            forms.add(layer.mlp.approximate)
        if expect("attention", layer.attention, LoopedAttention, ParallelAttention, SdpaAttention):
            dropouts.add(layer.attention.dropout.p)
        dropouts.add(layer.dropout.p)
    for key, values in (("norm.eps", norms), ("model.dropout", dropouts), ("mlp.approximate", forms)):
        if not problems and len(values) > 1:
            problems[key] = Problem(key, sorted(values), "one value in all layers")
    return list(problems.values())


def _their_name(name: str) -> tuple[str, bool]:
    """Hugging Face's name for one of our parameters, and whether it holds it transposed."""
    outer = {
        "token_embedding.weight": "transformer.wte.weight",
        "position_embedding.weight": "transformer.wpe.weight",
        "final_norm.weight": "transformer.ln_f.weight",
        "final_norm.bias": "transformer.ln_f.bias",
        "head.weight": "lm_head.weight",
    }
    if name in outer:
        return outer[name], False
    _, i, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"transformer.h.{i}.{_LAYER_NAMES[part]}.{kind}", part in _TRANSPOSED and kind == "weight"


def _eps(config: Config) -> Any:
    return config.axes["normalizer"].node().get("eps")


def _unlike(theirs: Any, config: Config) -> list[Problem]:
    """Every setting of ours in which the Hugging Face model is another."""
    model = config.model
    inner = theirs.n_inner or 4 * theirs.n_embd
    expected: dict[str, tuple[Any, Any]] = {
        **{f"{axis}.name": (config.axes[axis].name, variant) for axis, variant in _VARIANTS.items()},
        "model.n_layer": (model.n_layer, theirs.n_layer),
        "model.n_head": (model.n_head, theirs.n_head),
        "model.d_model": (model.d_model, theirs.n_embd),
        "model.mlp_hidden": (model.hidden, inner),
        "model.context_length": (model.context_length, theirs.n_positions),
        "model.qkv_bias": (model.qkv_bias, True),
        "model.bias": (model.bias, True),
        "model.tie_weights": (model.tie_weights, theirs.tie_word_embeddings),
        "norm.eps": (config.axes["norm"].node().get("eps") or _eps(config), theirs.layer_norm_epsilon),
    }
    problems = [
        Problem(key, ours, f"{there}, as in the model to convert")
        for key, (ours, there) in expected.items()
        if ours != there
    ]
    for setting, ours in _FIXED.items():
        if (there := getattr(theirs, setting)) != ours:
            problems.append(Problem(setting, there, f"{ours}: there is nothing else here"))
    form = config.axes["mlp"].node().get("approximate") or "tanh"
    allowed = {"tanh": ["gelu_new", "gelu_pytorch_tanh"], "none": ["gelu"]}[form]
    if theirs.activation_function not in allowed:
        told = f"{' or '.join(allowed)} with mlp.approximate={form}"
        problems.append(Problem("activation_function", theirs.activation_function, told))
    return problems
