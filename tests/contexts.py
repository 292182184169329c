"""What the framework gives to the builder of a variant, for tests of one variant by itself."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gpt_ablate.axes import LayerContext
from gpt_ablate.config.registry import load

load()


def _no_layer(index: int) -> nn.Module:
    raise AssertionError(f"layer {index} of a context that has none")


def context_of(**values: object) -> LayerContext:
    """A small one, with other values for some attributes."""
    small = LayerContext(
        d_model=24,
        n_head=3,
        mlp_hidden=40,
        context_length=12,
        n_layer=2,
        dropout=0.0,
        qkv_bias=True,
        bias=True,
        index=0,
        variants={},
        make_layer=_no_layer,
    )
    return replace(small, **values)  # type: ignore[arg-type]
