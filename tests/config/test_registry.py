"""Names become code through the registries, and YAML and registries hold each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gpt_ablate.axes.norm import PreNorm, norms
from gpt_ablate.config.paths import CONF
from gpt_ablate.config.registry import Registry, axis_names, load
from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training.schedules import schedules
from gpt_ablate.utils import errors
from gpt_ablate.utils.errors import UsageError

load()
BUILT = [*axis_names(), "init", "schedule"]
OPTIONS = [(group, file.stem) for group in BUILT for file in sorted((CONF / group).glob("*.yaml"))]
PLUGIN = """
from gpt_ablate.axes.norm import Block, norms


@norms.register("mine")
class NoNorm(Block):
    def __init__(self, context, *, eps: float | None = None, scale: float = 0.5):
        super().__init__(context, eps=eps)
        self.scale = scale

    def leave(self, sublayer, x):
        return self.scale * x
"""


@pytest.fixture
def own_registry() -> Iterator[Registry[Callable[..., object]]]:
    """A registry of the test's own, with one variant."""
    made: Registry[Callable[..., object]] = Registry("flavour", ["base"])

    @made.register("vanilla")
    def vanilla(base: int, *, sweetness: float = 1.0, note: str | None = None) -> tuple[object, ...]:
        return base, sweetness, note

    yield made
    del Registry.by_key["flavour"]


def test_axes_are_the_files_of_the_package() -> None:
    assert axis_names() == ("attention", "layers", "mlp", "norm", "normalizer", "position", "residual")


@pytest.mark.parametrize("group", BUILT)
def test_every_yaml_names_a_registered_option_and_every_option_has_a_yaml(group: str) -> None:
    assert {option for owner, option in OPTIONS if owner == group} == set(Registry.by_key[group].builders)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_builds(group: str, option: str, configure: Callable[..., Config]) -> None:
    config = configure(f"{group}={option}", "model.d_model=16", "model.context_length=8")
    variant = config.axes.get(group) or getattr(config, group)
    assert variant.name == option
    if group == "schedule":
        assert 0 < schedules.bind(variant.node())(1, 10) <= 1
    else:
        logits = GPT(config, vocab_size=11)(torch.zeros(1, 8, dtype=torch.long))
        assert logits.shape == (1, 8, 11)
        assert logits.isfinite().all()


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_yaml_sets_every_parameter_that_has_no_default(
    group: str, option: str, configure: Callable[..., Config]
) -> None:
    config = configure(f"{group}={option}")
    node = (config.axes.get(group) or getattr(config, group)).node()
    Registry.by_key[group].bind(node)
    assert set(node) - {"name"} == set(Registry.by_key[group].parameters(option))


def test_build_passes_context_and_parameters(own_registry: Registry[Callable[..., object]]) -> None:
    assert own_registry.build({"name": "vanilla", "note": "x"}, 3) == (3, 1.0, "x")
    assert own_registry.parameters("vanilla") == {"sweetness": float, "note": str | None}


def test_null_is_not_given(own_registry: Registry[Callable[..., object]]) -> None:
    given = {"name": "vanilla", "note": None, "topping": None, "sweetness": None}
    assert own_registry.build(given, 3) == (3, 1.0, None)
    assert [problem.key for problem in own_registry.check(given | {"topping": 1})] == ["flavour.topping"]

    @own_registry.register("bitter")
    def bitter(base: int, *, cocoa: float) -> float:
        return base * cocoa

    assert [problem.key for problem in own_registry.check({"name": "bitter", "cocoa": None})] == ["flavour.cocoa"]


def test_a_name_registered_twice_raises(own_registry: Registry[Callable[..., object]]) -> None:
    with pytest.raises(ValueError, match="flavour=vanilla"):
        own_registry.register("vanilla")(lambda: None)
    with pytest.raises(ValueError, match="flavour"):
        Registry("flavour")


def test_an_unknown_name_lists_the_choices_closest_first(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure("norm.name=prr")
    (problem,) = error.value.problems
    assert (problem.key, problem.value, problem.closest) == ("norm.name", "prr", "pre")
    assert problem.allowed == "one of pre, post"
    with pytest.raises(UsageError, match="one of post, pre") as error:
        configure("norm.name=posst")
    assert "Did you mean 'post'?" in str(error.value)


def test_an_unknown_parameter_lists_the_accepted_ones(configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure("+norm.epss=1e-6", "+attention.window=3")
    said = {problem.key: problem for problem in error.value.problems}
    assert set(said) == {"norm.epss", "attention.window"}
    assert "accepted: eps" in said["norm.epss"].allowed
    assert said["norm.epss"].closest == "eps"
    assert "accepted: none" in said["attention.window"].allowed


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("norm.eps=tiny", "norm.eps"),
        ("norm.eps='1e-5'", "norm.eps"),
        ("optimizer.betas=null", "optimizer.betas"),
        ("mlp=swiglu mlp.hidden=0", "mlp.hidden"),
        ("position=rope position.base=-1", "position.base"),
        ("init=gpt2 init.std=[1]", "init.std"),
        ("schedule=warmup schedule.warmup_steps=1.5", "schedule.warmup_steps"),
        ("schedule=warmup schedule.warmup_steps=true", "schedule.warmup_steps"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(override: str, key: str, configure: Callable[..., Config]) -> None:
    with pytest.raises(UsageError) as error:
        configure(*override.split())
    assert [problem.key for problem in error.value.problems] == [key]


def test_a_plugin_registers_a_variant_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., Config]
) -> None:
    (tmp_path / "my_norms.py").write_text(PLUGIN)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i} and" for i in range(60)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(norms, "builders", dict(norms.builders))
    small = ["model.d_model=8", "model.context_length=8", "data=text", f"data.path={text}", "data.batch_size=2"]
    own = ["plugins=[my_norms]", "norm.name=mine", "+norm.scale=0.25"]
    try:
        config = configure(*small, *own, "trainer.max_steps=1", "sampling.max_new_tokens=1")
        assert config.axes["norm"].node() == {"name": "mine", "eps": None, "scale": 0.25}
        assert GPT(config, vocab_size=11).layers[0].scale == 0.25
        execution.run(config, tmp_path / "run", [], Console(quiet=True))
    finally:
        sys.modules.pop("my_norms", None)
    record = RunDirectory(tmp_path / "run").record()
    assert record["status"] == "done"
    assert {"norm": "mine", "layers": "fresh", "attention": "parallel"}.items() <= record["axes"].items()


@pytest.mark.parametrize("module", ["no_such_module", "broken_plugin"])
def test_a_plugin_that_cannot_be_imported_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., Config]
) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as error:
        configure(f"plugins=[{module}]", "seed=-1")
    assert [problem.key for problem in error.value.problems] == ["plugins", "seed"]
    assert module in str(error.value)


def test_a_variant_whose_name_is_taken_cannot_come_from_a_plugin() -> None:
    with pytest.raises(ValueError, match="norm=pre is registered twice"):
        norms.register("pre")(PreNorm)
    assert norms.builders["pre"] is PreNorm


def test_closest_knows_when_nothing_is_near() -> None:
    assert errors.closest("cosin", ["constant", "cosine"]) == "cosine"
    assert errors.closest("qqq", ["constant", "cosine"]) is None
