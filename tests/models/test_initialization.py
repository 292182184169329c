"""Initial values: which parameters there are, what each holds, and what runs of one seed share."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT
from gpt_ablate.utils import random_streams

VOCAB = 257
GOLDEN_STREAM = 543_422_168_210_205_445
NAMES = [
    "token_embedding.weight",
    "position_embedding.weight",
    "layers.0.norm1.weight",
    "layers.0.norm1.bias",
    "layers.0.attention.qkv.weight",
    "layers.0.attention.out.weight",
    "layers.0.attention.out.bias",
    "layers.0.norm2.weight",
    "layers.0.norm2.bias",
    "layers.0.mlp.fc.weight",
    "layers.0.mlp.fc.bias",
    "layers.0.mlp.out.weight",
    "layers.0.mlp.out.bias",
    "final_norm.weight",
    "final_norm.bias",
    "head.weight",
]


@pytest.fixture(scope="module")
def values(configure: Callable[..., Config]) -> Callable[..., dict[str, Tensor]]:
    """Initial values of the micro model with the given overrides."""

    def make(*overrides: str) -> dict[str, Tensor]:
        return dict(GPT(configure(*overrides), VOCAB).state_dict())

    return make


def assert_equal(some: dict[str, Tensor], others: dict[str, Tensor], except_for: tuple[str, ...] = ()) -> None:
    """The same names with the same values, apart from names that start with one of `except_for`."""
    kept = [name for name in some if not name.startswith(except_for or "/")]
    assert kept == [name for name in others if not name.startswith(except_for or "/")]
    assert "head.weight" in kept
    for name in kept:
        assert torch.equal(some[name], others[name]), name


def test_names_of_a_one_layer_model(values: Callable[..., dict[str, Tensor]]) -> None:
    assert list(values("model.n_layer=1")) == NAMES
    assert list(values("model.n_layer=1", "norm=post")) == [name for name in NAMES if "final_norm" not in name]
    with_bias = values("model.n_layer=1", "model.qkv_bias=true")
    assert sorted(with_bias) == sorted([*NAMES, "layers.0.attention.qkv.bias"])


def test_a_stream_is_the_head_of_a_sha256() -> None:
    digest = hashlib.sha256(b"0/init/head.weight").hexdigest()
    assert random_streams.stream(0, "init/head.weight") == int(digest[:16], 16) // 2 == GOLDEN_STREAM
    assert (
        len({random_streams.stream(seed, name) for seed in range(9) for name in ("data/1", "data/11", "init/a")}) == 27
    )


def test_a_parameter_is_drawn_from_the_stream_of_its_name(values: Callable[..., dict[str, Tensor]]) -> None:
    found = values("seed=0")

    def generator(name: str) -> torch.Generator:
        seed = int(hashlib.sha256(f"0/init/{name}".encode()).hexdigest()[:16], 16) // 2
        return torch.Generator().manual_seed(seed)

    head = torch.empty(VOCAB, 64).uniform_(-1 / 8, 1 / 8, generator=generator("head.weight"))
    assert torch.equal(found["head.weight"], head)
    embedding = torch.randn(VOCAB, 64, generator=generator("token_embedding.weight"))
    assert torch.equal(found["token_embedding.weight"], embedding)


def test_clones_are_equal_in_value_and_not_in_storage(configure: Callable[..., Config]) -> None:
    model = GPT(configure("layers=clone", "model.n_layer=3"), VOCAB)
    layers = [dict(layer.named_parameters()) for layer in model.layers]
    for name, first in layers[0].items():
        copies = [layer[name] for layer in layers]
        assert all(torch.equal(first, copied) for copied in copies), name
        assert len({copied.untyped_storage().data_ptr() for copied in copies}) == 3, name
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert not torch.equal(layers[0]["mlp.fc.weight"].grad, layers[1]["mlp.fc.weight"].grad)


def test_fresh_layers_all_differ(configure: Callable[..., Config]) -> None:
    model = GPT(configure("layers=fresh", "model.n_layer=3", "model.qkv_bias=true"), VOCAB)
    layers = [dict(layer.named_parameters()) for layer in model.layers]
    for name in (name for name in layers[0] if not name.startswith("norm")):
        for one, other in itertools.combinations(layers, 2):
            assert (one[name] != other[name]).float().mean() > 0.9, name


def test_no_two_parameters_hold_the_same_draws(values: Callable[..., dict[str, Tensor]]) -> None:
    drawn = {name: value for name, value in values("init=gpt2").items() if value.std() > 0}
    for (name, one), (other_name, other) in itertools.combinations(drawn.items(), 2):
        one, other = one.flatten()[:64], other.flatten()[:64]
        assert not torch.allclose(one / one.std(), other / other.std(), atol=1e-3), (name, other_name)


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_clone_and_fresh_share_all_but_the_later_layers(init: str, values: Callable[..., dict[str, Tensor]]) -> None:
    shape = (f"init={init}", "model.n_layer=3")
    assert_equal(values("layers=clone", *shape), values("layers=fresh", *shape), except_for=("layers.1.", "layers.2."))


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_pre_and_post_share_all_that_both_have(init: str, values: Callable[..., dict[str, Tensor]]) -> None:
    assert_equal(values("norm=pre", f"init={init}"), values("norm=post", f"init={init}"), except_for=("final_norm",))


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_initial_values_do_not_depend_on_attention(init: str, values: Callable[..., dict[str, Tensor]]) -> None:
    assert_equal(values("attention=looped", f"init={init}"), values("attention=parallel", f"init={init}"))


PAIRS = {  # two variants, the names that each has to itself or holds in another shape, and how many both have
    ("position=rope", "position=learned"): r"position_embedding",
    ("position=none", "position=rope"): r"nothing",
    ("mlp=swiglu", "mlp=gelu"): r"\.mlp\.",
    ("residual=parallel", "residual=sequential"): r"\.norm2\.",
    ("normalizer=rmsnorm", "normalizer=layernorm"): r"norm\d?\.bias",
    (
        "position=rope mlp=swiglu normalizer=rmsnorm residual=parallel",
        "",
    ): r"position|\.mlp\.|norm2|norm.*bias",
}


@pytest.mark.parametrize("init", ["torch", "gpt2"])
@pytest.mark.parametrize(("some", "others"), PAIRS)
@pytest.mark.fast_cases(6)
def test_variants_of_an_axis_share_all_that_both_have(
    some: str, others: str, init: str, values: Callable[..., dict[str, Tensor]]
) -> None:
    one, other = (values(*variants.split(), f"init={init}") for variants in (some, others))
    own = re.compile(PAIRS[some, others])
    kept = {name for name in one if not own.search(name)}
    assert kept == {name for name in other if not own.search(name)}
    assert {"token_embedding.weight", "head.weight", "layers.1.attention.qkv.weight", "layers.1.norm1.weight"} <= kept
    for name in kept:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "variant", ["normalizer=rmsnorm", "position=rope", "mlp=swiglu", "residual=parallel", "norm=post attention=sdpa"]
)
def test_clones_of_every_variant_are_copies_of_its_first_fresh_layer(
    variant: str, values: Callable[..., dict[str, Tensor]]
) -> None:
    clone, fresh = (values(f"layers={layers}", *variant.split(), "model.n_layer=3") for layers in ("clone", "fresh"))
    assert list(clone) == list(fresh)
    for name, value in clone.items():
        assert torch.equal(value, fresh[re.sub(r"layers\.\d+", "layers.0", name)]), name


def test_initial_values_do_not_depend_on_depth(values: Callable[..., dict[str, Tensor]]) -> None:
    assert_equal(values("model.n_layer=2"), values("model.n_layer=4"), except_for=("layers.2.", "layers.3."))


def test_initial_values_do_not_depend_on_what_was_drawn_before(values: Callable[..., dict[str, Tensor]]) -> None:
    torch.manual_seed(1)
    first = values()
    torch.manual_seed(2)
    assert_equal(first, values())


def test_a_tied_head_is_the_embedding_and_the_rest_stays(configure: Callable[..., Config]) -> None:
    tied = GPT(configure("model.tie_weights=true"), VOCAB)
    assert tied.head.weight is tied.token_embedding.weight
    plain = GPT(configure("model.tie_weights=false"), VOCAB).state_dict()
    assert {name for name, value in tied.state_dict().items() if not torch.equal(value, plain[name])} == {"head.weight"}


def test_every_seed_gives_other_values(values: Callable[..., dict[str, Tensor]]) -> None:
    assert_equal(values("seed=0"), values("seed=0"))
    zero, one = values("seed=0"), values("seed=1")
    same = {name for name in zero if torch.equal(zero[name], one[name])}
    assert same == {name for name in zero if "norm" in name}


def test_torch_init_is_that_of_torchs_modules(configure: Callable[..., Config]) -> None:
    model = GPT(configure("init=torch", "model.qkv_bias=true"), VOCAB)
    torch.manual_seed(0)
    checked = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            reference: nn.Module = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        elif isinstance(module, nn.Embedding):
            reference = nn.Embedding(module.num_embeddings, module.embedding_dim)
        else:
            continue
        for (part, found), expected in zip(module.named_parameters(), reference.parameters(), strict=True):
            checked += 1
            spread = 6 / math.sqrt(found.numel())  # six standard errors of either statistic, and more
            assert found.std().item() == pytest.approx(expected.std().item(), rel=spread), f"{name}.{part}"
            assert abs(found.mean()) < spread * expected.std(), f"{name}.{part}"
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                assert 0.85 * bound < found.abs().max() <= bound, f"{name}.{part}"
                assert expected.abs().max() <= bound, f"{name}.{part}"
            else:
                assert found.abs().max() > 3
    assert checked == 2 + 2 * 8 + 1


@pytest.mark.parametrize("std", [0.02, 0.05])
def test_gpt2_init_scales_what_joins_the_residual_path(std: float, values: Callable[..., dict[str, Tensor]]) -> None:
    found = values("init=gpt2", f"init.std={std}", "model.n_layer=3", "model.qkv_bias=true")
    scaled = 0
    for name, value in found.items():
        if "norm" in name:
            continue
        if name.endswith(".bias"):
            assert not value.any(), name
            continue
        residual = name.endswith((".attention.out.weight", ".mlp.out.weight"))
        scaled += residual
        expected = std / math.sqrt(2 * 3) if residual else std
        assert value.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * value.numel())), name
        assert abs(value.mean()) < 4 * expected / math.sqrt(value.numel()), name
        assert value.abs().max() > 3 * expected, "normal, not uniform"
    assert scaled == 6


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_norms_start_as_the_identity(init: str, values: Callable[..., dict[str, Tensor]]) -> None:
    norms = {name: value for name, value in values(f"init={init}").items() if "norm" in name}
    assert len(norms) == 10
    for name, value in norms.items():
        assert (value == (1 if name.endswith("weight") else 0)).all(), name
