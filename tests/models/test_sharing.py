"""Layers, modules, parameters and buffers that occur several times in a model, by a plugin from outside the package."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.utils.checkpoint
from small_runs import losses, plain_losses, small_run, timeless, train
from test_checkpoint import signal_at
from torch import Tensor

from gpt_ablate.axes.layers import stacks
from gpt_ablate.axes.norm import norms
from gpt_ablate.config import registry
from gpt_ablate.config.schema import Config
from gpt_ablate.models import huggingface
from gpt_ablate.models import sharing as shared
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint, hardware_rules, optimizers, profiling, trainer
from gpt_ablate.utils import devices, random_streams
from gpt_ablate.utils.errors import UsageError

VOCAB, LAYERS = 37, 4
OWNED = {  # what each layer has of its own, where only the rest is shared
    "repeated": (),
    "again": (),
    "one_mlp": ("norm1", "norm2", "attention"),
    "one_attention": ("norm1", "norm2", "mlp"),
    "one_norm1": ("norm2", "attention", "mlp"),
    "one_mlp_fc": ("norm1", "norm2", "attention", "mlp.out"),
    "one_mlp_fc_weight": ("norm1", "norm2", "attention", "mlp.fc.bias", "mlp.out"),
    "one_attention_out_bias": ("norm1", "norm2", "mlp", "attention.qkv", "attention.out.weight"),
}
SHARED_LAYERS = [*OWNED, "alternating", "recurrent"]
SHARED_IN_A_LAYER = ["closing", "twice", "matrix", "remembering"]
ALONE = [*(f"layers.name={name}" for name in SHARED_LAYERS), *(f"norm.name={name}" for name in SHARED_IN_A_LAYER)]
EVERY = [
    *ALONE,
    *(f"norm.name={name} layers.name=repeated" for name in SHARED_IN_A_LAYER),
    *(f"norm.name={name} layers=clone" for name in SHARED_IN_A_LAYER),
]
RECIPES = [
    "model.dropout=0.1",
    "model.dropout=0.1 trainer.grad_clip=0.05 model.tie_weights=true",
    "model.dropout=0.1 trainer.accumulate=2 model.tie_weights=true",
    "trainer.grad_clip=0.05 trainer.accumulate=2 init=gpt2",
]
FEW = ["layers.name=repeated", "layers.name=recurrent", "layers.name=one_mlp_fc_weight", "norm.name=remembering"]


def cells(*varying: object) -> list[object]:
    """Every variant, with one of `varying` each; all but a few of them are slow."""
    return [
        pytest.param(name, varying[i % len(varying)], marks=[] if name in FEW else pytest.mark.slow)
        for i, name in enumerate(EVERY)
    ]


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its variants, for one test."""
    for each in (stacks, norms):
        monkeypatch.setattr(each, "builders", dict(each.builders))
    registry.load(["sharing_plugin"])
    yield
    del sys.modules["sharing_plugin"]


@pytest.fixture
def sharing(configure: Callable[..., Config]) -> Callable[..., Config]:
    """A small config of the plugin with the given overrides."""
    fixed = ["model.d_model=16", "model.context_length=16", "sampling.max_new_tokens=3", f"model.n_layer={LAYERS}"]
    own = ["plugins=[sharing_plugin]"]
    return lambda *overrides: configure(*fixed, *own, *(part for each in overrides for part in each.split()))


def stop_and_go_on(config: Config, path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run that was interrupted in its second step."""
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        with pytest.raises(trainer.Interrupted):
            train(config, path)
    return train(config, path)


@pytest.mark.parametrize(("variant", "recipe"), cells(*RECIPES))
@pytest.mark.fast_cases(5)
def test_an_interrupted_run_goes_on_bit_for_bit(
    variant: str, recipe: str, sharing: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sharing(*small_run(tmp_path), variant, recipe, "trainer.max_steps=4", "trainer.eval_every=1")
    whole, parts = train(config, tmp_path / "whole"), stop_and_go_on(config, tmp_path / "parts", monkeypatch)
    assert timeless(parts.metrics()) == timeless(whole.metrics())
    assert timeless(parts.samples()) == timeless(whole.samples())
    for kind in ("final", "best"):
        file = f"checkpoint/{kind}/model.safetensors"
        assert (parts.path / file).read_bytes() == (whole.path / file).read_bytes()
    trained, _ = checkpoint.load_trained(whole, plugins=["sharing_plugin"])
    assert whole.result()["parameters"] == trained.n_parameters()


@pytest.mark.parametrize(("variant", "waiting"), cells(1, optimizers.WAITING_BYTES, 1))
@pytest.mark.fast_cases(8)
def test_losses_are_those_of_a_plain_loop(
    variant: str, waiting: int, sharing: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "WAITING_BYTES", waiting)
    parts = 1 if "remembering" in variant else 2  # that one counts its passes
    limits = ("optimizer.lr=1e-3", "trainer.max_steps=3", f"trainer.accumulate={parts}")
    config = sharing(*small_run(tmp_path), variant, *limits)
    run = train(config, tmp_path / "run")
    expected, norms_expected = plain_losses(config)
    steps = run.result()["step"]
    assert losses(run) == pytest.approx(expected[:steps], rel=1e-5)
    found = [line["grad_norm"] for line in run.metrics() if "grad_norm" in line]
    assert found == pytest.approx(norms_expected[:steps], rel=1e-4)


@pytest.fixture
def build(sharing: Callable[..., Config]) -> Callable[..., GPT]:
    """A small model of the plugin with the given overrides."""
    return lambda *overrides: GPT(sharing(*overrides), VOCAB)


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", ALONE)
@pytest.mark.fast_cases(4)
def test_counting_leaves_the_model_as_it_was(variant: str, build: Callable[..., GPT]) -> None:
    model, other = (build(variant, "model.dropout=0.1") for _ in range(2))
    tokens = tokens_of(2, 16)
    torch.manual_seed(0)
    expected = other(tokens)
    own = {name: {**vars(module)} for name, module in model.named_modules()}
    held = dict(model.state_dict(keep_vars=True))
    assert flops_per_token(model) > 0
    assert {name: vars(module) for name, module in model.named_modules()} == own
    assert all(tensor is held[name] for name, tensor in model.state_dict(keep_vars=True).items())
    torch.manual_seed(0)
    assert torch.equal(model(tokens), expected)
    model(tokens).sum().backward()
    assert flops_per_token(model) > 0
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("variant", OWNED)
@pytest.mark.fast_cases(3)
def test_every_use_is_counted_and_every_weight_once(
    variant: str, sharing: Callable[..., Config], build: Callable[..., GPT]
) -> None:
    shared, fresh = build(f"layers.name={variant}"), build()
    assert flops_per_token(shared) == flops_per_token(fresh)
    layer = fresh.layers[0].named_parameters()
    own = sum(parameter.numel() for name, parameter in layer if name.startswith(OWNED[variant] or "none"))
    assert shared.n_parameters() == build("model.n_layer=1").n_parameters() + (LAYERS - 1) * own


@pytest.mark.parametrize("variant", ["layers.name=repeated", "layers.name=one_mlp", "norm.name=remembering"])
def test_a_profile_counts_as_training_does(variant: str, sharing: Callable[..., Config]) -> None:
    config = sharing(variant, "data.batch_size=1")
    found, model = profiling.profile(config, 50257, repeats=1), GPT(config)
    assert found["flops"] == config.model.context_length * flops_per_token(model)
    assert found["parameters"] == model.n_parameters() == found["weight_bytes"] / 4
    width, context = config.model.d_model, config.model.context_length
    assert found["parts"]["mlp"]["forward_flops"] == LAYERS * context * 2 * 8 * width**2
    assert all(part["saved_bytes"] >= 0 for part in found["parts"].values())


@pytest.mark.parametrize(("variant", "init"), list(zip(SHARED_LAYERS, ["torch", "gpt2"] * 5, strict=True)))
def test_layers_that_share_start_from_the_values_of_fresh_ones(
    variant: str, init: str, build: Callable[..., GPT]
) -> None:
    """Each parameter by its first name, so that runs of both are paired."""
    fresh = dict(build(f"init={init}").named_parameters())
    for name, parameter in build(f"layers.name={variant}", f"init={init}").named_parameters():
        if "adapter" not in name:
            assert torch.equal(parameter, fresh[name.replace(".layer.", ".")]), name


@pytest.mark.parametrize("layers", ["layers=fresh", "layers=clone", "layers.name=recurrent"])
@pytest.mark.parametrize("norm", ["closing", "twice", "matrix", "everywhere"])
def test_a_parameter_is_filled_once_by_its_first_name(norm: str, layers: str, build: Callable[..., GPT]) -> None:
    torch.manual_seed(1)
    model = build(f"norm.name={norm}", layers, "init=gpt2")
    torch.manual_seed(2)
    again = build(f"norm.name={norm}", layers, "init=gpt2").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    name = "attention.shared.0" if norm == "matrix" else "mlp.fc.weight"
    drawn = torch.empty(64, 16).normal_(std=0.02, generator=random_streams.generator(123, f"init/layers.0.{name}"))
    first = model.layers[0]
    assert torch.equal(getattr(first, "layer", first).mlp.fc.weight, drawn)


@pytest.mark.parametrize("attention", ["looped", "parallel"])
@pytest.mark.parametrize(
    "variant", ["layers.name=repeated", "layers.name=one_attention", "layers.name=recurrent", "norm.name=twice"]
)
def test_a_cache_gives_the_logits_of_a_full_pass(variant: str, attention: str, build: Callable[..., GPT]) -> None:
    model, tokens = build(variant, f"attention={attention}").double().eval(), tokens_of(3, 16)
    with torch.no_grad():
        full, cache = model(tokens), model.new_cache(3)
        pieces = [model(piece, cache) for piece in tokens.split([3, 1, 2, 9, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=0, atol=1e-12)
    assert cache[0].length == 16


@pytest.mark.parametrize("tied", ["false", "true"])
@pytest.mark.parametrize("variant", ["layers=fresh", "layers.name=repeated", "norm.name=closing", "norm.name=matrix"])
@pytest.mark.fast_cases(3)
def test_weights_are_stored_once_and_older_files_load(
    variant: str, tied: str, build: Callable[..., GPT], tmp_path: Path
) -> None:
    """Older files were written by safetensors, which keeps another name of a tensor that has several."""
    model, other = (build(variant, f"model.tie_weights={tied}", f"seed={seed}") for seed in (0, 1))
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    older = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights = shared.weights(model)
    assert len(weights) == len(older) == len(list(model.parameters()))
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    checkpoint.load(tmp_path, other)
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    del older["position_embedding.weight"]
    for spoiled in (older, older | {"position_embedding.weight": torch.zeros(16, 16), "more": torch.zeros(1)}):
        safetensors.torch.save_file(spoiled, tmp_path / "model.safetensors")
        with pytest.raises(UsageError, match="weights of this run's model"):
            checkpoint.load(tmp_path, other)


def test_two_values_for_one_tensor_are_refused(build: Callable[..., GPT], tmp_path: Path) -> None:
    safetensors.torch.save_model(build(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"layers\.0\.\S+ and layers\.1\.\S+ are one tensor in this model"):
        checkpoint.load(tmp_path, build("layers.name=repeated"))


def test_a_clone_shares_within_itself_alone(build: Callable[..., GPT]) -> None:
    layers = build("norm.name=matrix", "layers=clone").layers
    assert all(layer.attention.shared[0] is layer.mlp.fc.weight for layer in layers)
    assert len({id(layer.mlp.fc.weight) for layer in layers}) == LAYERS


def test_a_shared_buffer_stays_one_where_the_model_goes(build: Callable[..., GPT]) -> None:
    model = build("norm.name=remembering", "layers.name=repeated")
    for moved in (model.double(), shared.on_meta(model), model.to("meta")):
        layers = list(moved.layers)
        assert layers[0].attention.passes is layers[1].mlp.passes
    assert layers[0].mlp.passes.is_meta


def test_two_parameters_in_one_memory_are_refused(build: Callable[..., GPT]) -> None:
    with pytest.raises(ValueError, match=r"0\.mlp\.fc\.weight and layers\.0\.mlp\.out\.weight are two parameters"):
        build("norm.name=aliased")
    table = torch.zeros(4, 6)
    model = torch.nn.ParameterList([table[:, :3], table[:2, 3:]])
    shared.refuse_overlap(model)  # apart, though in one storage
    model.append(table[1:, 5:])
    with pytest.raises(ValueError, match="1 and 2 are two parameters"):
        shared.refuse_overlap(model)


@pytest.mark.parametrize(("grad_clip", "waiting"), [(None, 1), (None, 10**9), (0.1, 1)])
def test_a_gradient_in_parts_is_used_whole_or_refused(
    grad_clip: float | None, waiting: int, sharing: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reentrant checkpoint has a backward pass of its own for each use."""
    monkeypatch.setattr(optimizers, "WAITING_BYTES", waiting)
    moved = []
    for reentrant in (False, True):
        model = GPT(sharing("layers.name=repeated"), VOCAB)
        own = optimizers.optimizers.build(sharing().optimizer.node(), model, grad_clip)
        layer = model.layers[0]
        layer.forward = functools.partial(
            torch.utils.checkpoint.checkpoint, type(layer).forward.__get__(layer), use_reentrant=reentrant
        )
        loss = model(tokens_of(2, 16)).square().mean()
        own.begin(0.01, loss)
        if reentrant and waiting == 1 and not grad_clip:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                loss.backward()
            return
        loss.backward()
        own.finish()
        moved.append(model)
    for one, other in zip(*(model.parameters() for model in moved), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_layers_of_a_plugin_may_need_no_memory(
    sharing: Callable[..., Config], configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ("model.n_layer=4", "model.d_model=64")
    tables = 12 * (2 * 50257 * 64 + 16 * 64)
    monkeypatch.setattr(devices, "memory_bytes", lambda _: tables)
    assert hardware_rules.model_memory(sharing(*shape), 50257) == []
    (problem,) = hardware_rules.model_memory(configure(*shape, "model.context_length=16"), 50257)
    assert "a model that fits in" in problem.allowed


def test_shared_layers_become_copies_at_hugging_face(sharing: Callable[..., Config], build: Callable[..., GPT]) -> None:
    pytest.importorskip("transformers")
    whole = ("model.qkv_bias=true", "model.tie_weights=true")
    for variant in ("repeated", "alternating", "again", "one_mlp_fc_weight"):
        model, tokens = build(f"layers.name={variant}", *whole).double().eval(), tokens_of(2, 16)
        exported = huggingface.to_hf(model)
        assert (exported(tokens).logits - model(tokens)).abs().max() < 1e-10
        if variant == "again":
            continue
        back = huggingface.from_hf(exported, sharing(f"layers.name={variant}", *whole))
        assert torch.equal(back(tokens), model(tokens))
    with pytest.raises(UsageError, match=r"norm = 'Recurrent'"):
        huggingface.to_hf(build("layers.name=recurrent"))
    own = huggingface.to_hf(build(*whole))
    for variant in ("repeated", "again", "one_attention_out_bias"):
        with pytest.raises(UsageError, match=rf"layers\.name = '{variant}': layers of their own"):
            huggingface.from_hf(own, sharing(f"layers.name={variant}", *whole))
