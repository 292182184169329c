"""Callbacks from a plugin outside the package: what they can record, and that they can change no number of a run."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import losses, small_run, timeless, train

from gpt_ablate.config.metrics import Metric, of_records
from gpt_ablate.config.registry import load
from gpt_ablate.config.schema import Config, Variant
from gpt_ablate.launching import launch
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.objectives import auxiliary_losses, loss_per_token
from gpt_ablate.reporting import analysis, study_figures
from gpt_ablate.studies import study
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint, torch_settings
from gpt_ablate.training.callback_guard import CallbackError
from gpt_ablate.training.callbacks import RunView, UserCallbacks
from gpt_ablate.training.optimizers import Optimizer, optimizers
from gpt_ablate.utils.errors import UsageError

Plugin = Callable[[str], str]
Small = Callable[..., Config]
HEAD = """
import gc, math, os, random, signal, sys
import numpy as np
import torch
from gpt_ablate.config.metrics import Metric
from gpt_ablate.training.callbacks import Callback, callbacks
"""
NOTED = """
@callbacks.register("noted")
class Noted(Callback):
    metrics = (Metric("head/norm", "norm of the head", "L2 norm", lower_is_better=False),)

    def __init__(self, *, file: str, every: int = 1):
        self.file, self.every = file, every

    def note(self, run, hook):
        with open(self.file, "a") as file:
            print(hook, run.step, run.total_steps, run.epoch_done, *run.line, file=file)

    def on_start(self, run):
        self.note(run, "start")

    def on_step_end(self, run):
        self.note(run, "step")
        if run.step % self.every == 0:
            return {"head/norm": run.model.head.weight.norm().detach()}

    def on_end(self, run):
        self.note(run, "end")

@callbacks.register("second")
class Second(Callback):
    def __init__(self, *, file: str):
        self.file = file

    def on_step_end(self, run):
        with open(self.file, "a") as file:
            print("second", run.step, file=file)
        return {"second": np.float32(0.5)}
"""
SCORE = """
@callbacks.register("score")
class Score(Callback):
    metrics = (Metric("my/score", "score", "points", lower_is_better=False),)

    def on_step_end(self, run):
        post = run.config.axes["norm"].name == "post"
        return {"my/score": run.step + 0.01 * post * run.config.seed + 0.25 * post}
"""


def doing(body: str, hook: str = "on_step_end") -> str:
    """A plugin whose callback `mine` does so in one of its methods."""
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    return f'{HEAD}\n@callbacks.register("mine")\nclass Mine(Callback):\n    def {hook}(self, run):\n{lines}\n'


HARMLESS = {
    "draws": "torch.rand(3); torch.manual_seed(0); np.random.seed(0); random.seed(0)",
    "mode": "run.model.eval() if run.model.training else run.model.train()",
    "forward": "run.model.train(); run.model(run.batch()[0])",
    "backward": "run.model(run.batch()[0]).sum().backward()",
    "gradients": "for it in run.model.parameters(): it.grad = torch.ones_like(it)",
    "batch": "[it.zero_() for it in run.batch()]",
    "config": "run.config.__dict__['seed'] = 5; run.config.optimizer.__dict__['lr'] = 9.0; run.config.plugins.clear()",
    "grad_mode": "torch.set_grad_enabled(False)",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "device": "torch.set_default_device('meta')",
    "threads": "torch.set_num_threads(3)",
    "determinism": "torch.use_deterministic_algorithms(False); torch.backends.mkldnn.set_flags(False)",
    "folder": "os.chdir('/')",
    "term": "run.model.layers[0].auxiliary_losses = {'more': run.model.head.weight.sum()}",
    "forward_of_own": "run.model.forward = run.model.features = lambda tokens, cache=None: torch.zeros(1)",
    "hook_removed": "run.model.head.register_full_backward_hook(print).remove()",
    "signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "own": "self.kept = run.batch(); self.model = run.model",
}
"""What a callback does that must change no number."""
CHANGES = {
    "weights": ("run.model.head.weight.data += 1e-9", "head.weight"),
    "order": ("data = run.model.head.weight.data; data.copy_(data.flip(0))", "head.weight"),
    "one_bit": ("run.model.final_norm.bias.data.view(torch.int32)[0] ^= 1", "final_norm.bias"),
    "buffer": ("run.model.extra[0] = 1", "extra"),
    "type": ("run.model.double()", "token_embedding.weight"),
    "elsewhere": ("run.model.head.weight.data = run.model.head.weight.data.clone()", "head.weight"),
    "frozen": ("run.model.layers[1].requires_grad_(False)", "layers.1.norm1.weight"),
    "replaced": ("run.model.layers[0].mlp = torch.nn.Identity()", "layers.0._modules"),
    "untied": ("run.model.head.weight = torch.nn.Parameter(torch.zeros(3, 3))", "head._parameters"),
    "dropout": ("run.model.dropout.p = 0.0", "dropout.p"),
    "epsilon": ("run.model.final_norm.eps = 1e-3", "final_norm.eps"),
    "plain_tensor": ("run.model.table += 1", "model.table"),
    "class": ("run.model.final_norm.__class__ = torch.nn.Identity", "the class of final_norm"),
    "hook": ("run.model.layers[0].register_forward_hook(lambda *a: None)", "hooks of layers.0"),
    "pre_hook": ("run.model.register_forward_pre_hook(lambda *a: None)", "hooks of model"),
    "hook_of_all": ("torch.nn.modules.module.register_module_forward_hook(print)", "hooks of all modules"),
    "hook_of_weight": ("run.model.head.weight.register_hook(lambda it: 0 * it)", "head.weight"),
    "hook_after": ("run.model.head.weight._post_accumulate_grad_hooks.clear()", "head.weight"),
    "optimizer": (
        "found = [it for it in gc.get_objects() if type(it).__name__ == 'AdamW']\n"
        "[state] = [it.state for it in found if run.model.head.weight in it.state]\n"
        "state[run.model.head.weight]['exp_avg'] += 1e-9",
        "the optimiser's exp_avg of head.weight",
    ),
}
"""What a callback does that must end the run, and what the error names."""
ENDS = {
    "raises": ("raise ValueError('no such thing')", "raised ValueError: no such thing"),
    "exits": ("sys.exit(0)", "raised SystemExit: 0"),
    "assert": ("assert run.step < 0, 'nope'", "raised AssertionError: nope"),
    "diverged": (
        "from gpt_ablate.training.builtin_callbacks import Diverged; raise Diverged(run.step, 'the loss')",
        "raised Diverged: the loss at step 0",
    ),
    "frozen": ("run.config.seed = 3", "raised ValidationError"),
    "nan": ("return {'x': math.nan}", "'x': nan, not a finite number"),
    "infinite": ("return {'x': -math.inf}", "'x': -inf, not a finite number"),
    "too_large": ("return {'x': 1e39}", "'x': 1e+39, not a finite number"),
    "far_too_large": ("return {'x': 10**400}", "OverflowError"),
    "truth": ("return {'x': True}", "'x': True, not a finite number"),
    "truth_of_numpy": ("return {'x': np.bool_(True)}", "True"),
    "text": ("return {'x': '1.5'}", "'x': '1.5', not a finite number"),
    "nothing": ("return {'x': None}", "'x': None, not a finite number"),
    "many": ("return {'x': torch.zeros(2)}", "'x': tensor([0., 0.]), not a finite number"),
    "number": ("return 3.0", "returned 3.0, not a mapping"),
    "pairs": ("return [('x', 1.0)]", "not a mapping"),
    **{
        f"name {name}": (f"return {{{name!r}: 1.0}}", f"the name {name!r}, which is taken")
        for name in (
            *("step", "epoch", "tokens", "wall_time", "lr", "grad_norm", "train/loss", "train/epoch_loss"),
            *("eval/val_loss", "parameters", "val_bits_per_byte", "optim/lr", "perf/tokens_per_second", "samples"),
        )
    },
    **{
        f"name {name!a}": (f"return {{{name!a}: 1.0}}", f"the name {name!r}: a name has letters, digits")
        for name in ("", "a b", "a\n", "a\x00", "\udc80", "=1+1", "/a", "-a", "_hparams_/x", "a:b", 5, None)
    },
}
"""What a callback does or returns that must end the run, and what the error says."""


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> Config:
    """The small config, composed once since that takes most of the time."""
    folder = tmp_path_factory.mktemp("plain")
    return configure(*small_run(folder), "trainer.max_steps=4", "model.dropout=0.1", "sampling.max_new_tokens=3")


@pytest.fixture
def configured(composed: Config, plugin: Plugin) -> Callable[..., Config]:
    """The small config with the callbacks of a plugin, `mine` unless others are given."""

    def make(code: str, *chosen: str | dict[str, Any]) -> Config:
        plugin(code)
        load(["mine"])
        return composed.model_copy(update={"plugins": ["mine"], "callbacks": list(chosen or ("mine",))})

    return make


@pytest.fixture
def call(configured: Callable[..., Config]) -> Callable[..., dict[str, float]]:
    """Call one method of a callback at step 0 of a model, which has a buffer and a plain tensor of its own."""

    def make(code: str, hook: str = "on_step_end", *chosen: str) -> dict[str, float]:
        config = configured(code, *chosen)
        model = GPT(config, 37)
        model.register_buffer("extra", torch.zeros(2))
        model.table = torch.zeros(3)
        optimizer: Optimizer = optimizers.build(config.optimizer.node(), model, None)
        run = RunView(config, model, 0, 4, True, {"step": 0, "wall_time": 0.0}, lambda: batch())
        before = process(), state(model)
        returned = UserCallbacks(config).call(hook, run, optimizer)
        assert process() == before[0]
        assert state(model) == before[1]
        return returned

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 16, dtype=torch.long)

    def state(model: GPT) -> list[Any]:
        """What the next step would compute, and in which mode the model is."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            terms = loss_per_token(model, *batch()), *auxiliary_losses(model).values()
        gradients = [it.grad is None for it in model.parameters()]
        return [[it.item() for it in terms], gradients, [it.training for it in model.modules()]]

    return make


def process() -> list[Any]:
    """What of a process the numbers of a run depend on, or its end."""
    told = (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), os.getcwd())
    switches = (torch.is_grad_enabled(), torch.backends.mkldnn.enabled, torch.get_deterministic_debug_mode())
    draws = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return [*told, *switches, *draws, *(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, composed: Config) -> list[dict[str, Any]]:
    """The record of the small run without callbacks."""
    return timeless(train(composed, tmp_path_factory.mktemp("run") / "run").metrics())


@pytest.mark.parametrize("what", HARMLESS)
def test_what_a_callback_does_is_put_back(what: str, call: Callable[..., Any]) -> None:
    with torch_settings.deterministic():
        assert call(doing(HARMLESS[what])) == {}


@pytest.mark.parametrize("hook", ["on_start", "on_step_end", "on_end"])
def test_no_method_changes_a_number(
    hook: str, configured: Callable[..., Config], tmp_path: Path, plain: list[dict[str, Any]]
) -> None:
    every = "\n".join(body for what, body in HARMLESS.items() if what not in ("device", "forward_of_own"))
    run = train(configured(doing(every, hook)), tmp_path / "run")
    assert timeless(run.metrics()) == plain


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_training_is_refused(what: str, call: Callable[..., Any]) -> None:
    body, named = CHANGES[what]
    try:
        with pytest.raises(CallbackError, match=r"^callback mine: on_step_end changed ") as caught:
            call(doing(body))
        assert named in str(caught.value)
        assert "may not change the training" in str(caught.value)
    finally:
        torch.nn.modules.module._global_forward_hooks.clear()


@pytest.mark.parametrize("what", ENDS)
def test_what_cannot_be_recorded_is_refused(what: str, call: Callable[..., Any]) -> None:
    body, told = ENDS[what]
    with pytest.raises(CallbackError, match=r"^callback mine: on_step_end") as caught:
        call(doing(body))
    assert told in str(caught.value)


def test_numbers_of_any_library_are_recorded(call: Callable[..., Any]) -> None:
    returned = "{'a': 1, 'b/c-d.e_1': torch.tensor(2.0, requires_grad=True), 'd': np.float32(0.5), 'é': np.array(3)}"
    assert call(doing(f"return {returned}")) == {"a": 1.0, "b/c-d.e_1": 2.0, "d": 0.5, "é": 3.0}
    assert all(type(number) is float for number in call(doing(f"return {returned}")).values())


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
def test_what_is_recorded_nowhere_is_refused(hook: str, call: Callable[..., Any]) -> None:
    with pytest.raises(CallbackError, match=f"callback mine: {hook} returned .*, which is recorded nowhere"):
        call(doing("return {'x': 1.0}", hook), hook)


def test_two_callbacks_cannot_share_a_name(call: Callable[..., Any]) -> None:
    with pytest.raises(CallbackError, match="callback mine: on_step_end returned the name 'x', which is taken"):
        call(doing("return {'x': 1.0}"), "on_step_end", "mine", "mine")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("    def __init__(self):\n        raise OSError('no file')", "could not be made: OSError: no file"),
        ("    def __new__(cls):\n        return 5", "is 5, not an instance of"),
    ],
)
def test_a_callback_that_cannot_be_made_is_named(code: str, told: str, configured: Callable[..., Config]) -> None:
    config = configured(f'{HEAD}\n@callbacks.register("mine")\nclass Mine(Callback):\n{code}\n')
    with pytest.raises(CallbackError, match=f"^callback mine {told}"):
        UserCallbacks(config)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (CHANGES["weights"][0], "callback mine: on_step_end changed head.weight"),
        (ENDS["exits"][0], "callback mine: on_step_end raised SystemExit: 0"),
        (ENDS["diverged"][0], "callback mine: on_step_end raised Diverged"),
        (ENDS["nan"][0], "callback mine: on_step_end returned 'x': nan"),
        ("run.line['train/loss'] = 0.0", "callback mine: on_step_end raised TypeError"),
        (
            "return {'train/more': 1.0} if run.step > 1 else {'train/loss': 0.0}",
            "the name 'train/loss', which is taken",
        ),
    ],
)
def test_the_record_of_a_failed_run_names_the_callback(
    body: str, told: str, configured: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(CallbackError):
        train(configured(doing(body)), tmp_path / "run")
    record = RunDirectory(tmp_path / "run").record()
    assert record["status"] == "failed"
    assert told in record["error"].splitlines()[-1]
    assert not RunDirectory(tmp_path / "run").finished()


def test_they_are_called_in_order_with_their_parameters(small: Small, plugin: Plugin, tmp_path: Path) -> None:
    file = tmp_path / "noted"
    chosen = f"callbacks=[{{name: second, file: {file}}}, {{name: noted, file: {file}, every: 3}}]"
    run = train(small(plugin(HEAD + NOTED), chosen, "trainer.max_steps=7", "trainer.max_epochs=2"), tmp_path / "run")
    told = [line.split() for line in file.read_text().splitlines()]
    assert [line[:2] for line in told] == [
        ["start", "0"],
        *([kind, str(step)] for step in range(8) for kind in ("second", "step")),
        ["end", "7"],
    ]
    ends = {line[1]: line[3] for line in told if line[0] == "step"}
    assert [step for step, done in ends.items() if done == "True"] == ["0", "6", "7"]
    evaluated = [line[1] for line in told if line[0] == "step" and "eval/val_loss" in line]
    assert evaluated == ["0", "7"]
    recorded = {line["step"]: line.get("head/norm") for line in run.metrics()}
    assert [step for step, norm in recorded.items() if norm is not None] == [0, 3, 6]
    trained, _ = checkpoint.load_trained(run, plugins=["mine"])
    assert run.result()["final"]["head/norm"] == recorded[6] != trained.head.weight.norm().item()
    assert "second" not in run.result()["final"]  # not declared


def test_losses_are_the_same_after_resuming(
    configured: Callable[..., Config], tmp_path: Path, plain: list[dict[str, Any]]
) -> None:
    flag = tmp_path / "stopped"
    stop = f"""
if run.step == 2 and not os.path.exists({str(flag)!r}):
    open({str(flag)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGTERM)
return {{"x": 2.0}}
"""
    body = "\n".join(HARMLESS[name] for name in ("draws", "forward", "backward", "mode", "threads", "dtype"))
    config = configured(doing(body + stop))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert losses(RunDirectory(tmp_path / "run")) == [line["train/loss"] for line in plain[1:3]]
    run = train(config, tmp_path / "run")
    lines = timeless(run.metrics())
    assert [line.pop("x") for line in lines] == [2.0] * 5
    assert lines == plain


def test_a_scalar_reaches_the_record_tensorboard_and_the_report(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured(HEAD + SCORE, "score")
    asked = config.report.model_copy(update={"metrics": {"my/score": None}})
    short = config.trainer.model_copy(update={"max_steps": 2})
    for norm in ("pre", "post"):
        for seed in (0, 1):
            axes = config.axes | {"norm": Variant(name=norm)}
            own = {"axes": axes, "seed": seed, "report": asked, "trainer": short}
            run = train(config.model_copy(update=own), tmp_path / f"s/{norm}/seed_{seed}")
    assert [line["my/score"] for line in run.metrics()] == [0.26, 1.26, 2.26]
    events = EventAccumulator(str(run.path)).Reload()
    assert [it.value for it in events.Scalars("my/score")] == pytest.approx([0.26, 1.26, 2.26])
    read = study.read(tmp_path / "s")
    told = analysis.analyse(read)
    metric = {"key": "my/score", "name": "score", "unit": "points", "lower_is_better": False, "scale": "difference"}
    assert told["metrics"] == [metric | {"margin": None}]
    (comparison,) = told["comparisons"]
    sign = 1 if told["baseline"] == "norm=pre" else -1
    assert comparison["differences"] == pytest.approx([sign * 0.25, sign * 0.26])
    assert comparison["verdict"] == ("better" if sign == 1 else "worse")  # more is better
    assert sorted(cell["metrics"]["my/score"]["mean"] for cell in told["cells"]) == pytest.approx([2.0, 2.255])
    ratio = Metric("my/score", "score", "points", scale="ratio")
    assert ratio.statistical(read.runs[0]) == pytest.approx(math.log(read.runs[0].last["my/score"]))
    below = replace(read.runs[0], last={"my/score": 0.0}, result=None)
    with pytest.raises(UsageError, match=r"report.metrics = 'my/score': a metric above 0 .* has 0"):
        ratio.statistical(below)
    findings = [plate.finding for plate in study_figures.plates(told, read)]
    assert any("Score, mean over seeds: " in finding and "2.25" in finding for finding in findings)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["callbacks=[nted]"], "callbacks = 'nted': one of noted, second. Did you mean 'noted'?"),
        (["callbacks=[{name: second, fil: x}]"], "Did you mean 'file'?"),
        (["callbacks=[{name: noted, file: x, every: two}]"], "callbacks.every = 'two': should be a valid integer"),
        (["callbacks=[{file: x}]"], "callbacks = None: one of noted, second"),
        (["callbacks=[{name: [noted]}]"], "callbacks = ['noted']: one of noted, second"),
        (["callbacks=[5]"], "callbacks.0"),
        (["callbacks=noted"], "callbacks = 'noted': should be a valid list"),
        (
            ["callbacks=[{name: noted, file: x}]", "report.metrics={head/nrm: null}"],
            "Did you mean 'head/norm'?",
        ),
        (["report.metrics={head/norm: null}"], "report.metrics = 'head/norm': one of eval/train_loss"),
        (["seed=-1", "callbacks=[nted]", "report.metrics={eval/val_loss: 1}"], "Did you mean 'noted'?"),
    ],
)
def test_what_does_not_exist_is_refused_before_a_run_starts(
    overrides: list[str],
    told: str,
    plugin: Plugin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [plugin(HEAD + NOTED), "model=micro", "data=sample", *overrides]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *chosen])
    with pytest.raises(SystemExit) as exited:
        launch.main()
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ("(Metric('eval/val_loss', 'mine', 'points'),)", "'eval/val_loss' is declared already"),
        ("(Metric('a b', 'mine', 'points'),)", "not 'a b'"),
        ("('x',)", "not 'x'"),
        ("Metric('x', 'mine', 'points')", None),
        ("(Metric('x', 'mine', 'points'), Metric('x', 'mine', 'stars'))", "'x' is declared already"),
    ],
)
def test_a_metric_has_a_name_of_its_own(metrics: str, told: str | None, small: Small, plugin: Plugin) -> None:
    code = doing("return None").replace("class Mine(Callback):", f"class Mine(Callback):\n    metrics = {metrics}")
    if told is None:
        assert small(plugin(code), "callbacks=[mine]", "report.metrics={x: null}").report.metrics == {"x": None}
        return
    with pytest.raises(UsageError, match="callbacks = 'mine': an option whose ") as refused:
        small(plugin(code), "callbacks=[mine]")
    assert told in str(refused.value)


def test_a_metric_that_runs_declare_differently_is_refused() -> None:
    records = [{"metrics": [Metric("mass", "mass", unit).record()]} for unit in ("grams", "ounces")]
    with pytest.raises(UsageError, match=r"report\.metrics = 'mass': .*grams.*ounces"):
        of_records(records, ["mass"])
    assert of_records(records, ["eval/val_loss"])["mass"].unit == "grams"
