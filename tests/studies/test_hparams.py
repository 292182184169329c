"""TensorBoard's table of hyperparameters, as its own backend makes it of what is on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from small_runs import small_run, train
from synthetic import make_study
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as with_a_list_of_columns

from gpt_ablate.config.schema import Config
from gpt_ablate.reporting import report_writer, study_figures

Table = tuple[list[str], list[str], dict[str, dict[str, str | float | bool]]]


def table(logdir: Path) -> Table:
    """The columns of TensorBoard's table, those of metrics, and for each run what stands in its row."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    context, request = backend_context.Context(base_plugin.TBContext(data_provider=provider)), RequestContext()
    content = context.hparams_metadata(request, "")
    nothing = provider.list_hyperparameters(request, experiment_ids=[""], limit=None)
    experiment = context.experiment_from_metadata(request, "", True, content, nothing)
    columns = [info.name for info in experiment.hparam_infos]
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=every, include_metrics=True
    )
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    rows = {group.name: {key: _plain(value) for key, value in group.hparams.items()} for group in groups}
    return columns, [info.name.tag for info in experiment.metric_infos], rows


def _plain(value: object) -> str | float | bool:
    kind = value.WhichOneof("kind")  # type: ignore[attr-defined]
    found: str | float | bool = getattr(value, kind)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]) -> dict[str, Path]:
    """A run of a study of norms, and one of a study that sweeps another key and declares another metric."""
    small = [*small_run(tmp_path_factory.mktemp("text")), "trainer.max_steps=1", "sampling.max_new_tokens=1"]
    other = ["optimizer.lr=0.002", "cell_keys=[optimizer.lr,schedule]", "schedule=warmup", "arm=a"]
    declared = ["report.metrics={tokens_per_second: 0.05}"]
    made = {}
    for name, overrides in {"norms": ["norm=post"], "rates": [*other, *declared]}.items():
        made[name] = tmp_path_factory.mktemp(name)
        train(configure(*small, *overrides), made[name])
    return made


@pytest.mark.parametrize("order", [("norms", "rates"), ("rates", "norms")])
def test_two_studies_in_one_table_show_the_keys_of_both(
    order: tuple[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    for place, name in enumerate(order):
        shutil.copytree(runs[name], tmp_path / f"{place}-{name}" / "cell" / "seed_0")
    columns, metrics, rows = table(tmp_path)
    assert {"norm", "layers", "attention", "init", "model", "data", "optimizer", "schedule", "seed"} <= set(columns)
    assert {"optimizer.lr", "schedule.warmup_steps", "normalizer.eps", "model.n_layer", "model.dropout"} <= set(columns)
    assert not any(column.startswith(("report", "cell_keys", "plugins")) for column in columns)
    assert columns[:3] == ["norm", "optimizer.lr", "schedule"]  # TensorBoard puts first what differs
    assert {"eval/train_loss", "eval/val_loss", "perf/tokens_per_second"} <= set(metrics)
    by_name = {name.split("/")[0].partition("-")[2]: row for name, row in rows.items()}
    expected = {"norm": "post", "schedule": "constant", "optimizer.lr": 4e-4, "model.qkv_bias": False, "seed": 123}
    assert expected.items() <= by_name["norms"].items()
    expected = {"norm": "pre", "schedule": "warmup", "schedule.warmup_steps": 10, "optimizer.lr": 0.002, "arm": "a"}
    assert expected.items() <= by_name["rates"].items()


def test_the_report_makes_runs_of_older_versions_tell_what_runs_tell_now(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_figures, "plates", lambda *_: [])
    root = make_study(tmp_path / "a", {"norm": ["post", "pre"]}, seeds=[0])
    for run in root.glob("*/seed_0"):
        with SummaryWriter(str(run)) as writer:
            writer.add_scalar("eval/val_loss", 4.5, 7)
            for summary in with_a_list_of_columns({"norm": run.parent.name.partition("-")[0]}, {"eval/val_loss": 4.5}):
                writer._get_file_writer().add_summary(summary)
    shutil.copytree(runs["rates"], tmp_path / "b" / "cell" / "seed_0")
    assert "schedule.warmup_steps" not in table(tmp_path)[0]
    report_writer.write(root, root, Console(quiet=True))
    columns, metrics, rows = table(tmp_path)
    assert {"norm", "init", "optimizer.lr", "schedule.warmup_steps", "seed"} <= set(columns)
    assert {"eval/val_loss", "train/loss"} <= set(metrics)
    old = rows["a/post-fresh-parallel/seed_0"]
    assert {"norm": "post", "init": "gpt2", "optimizer.lr": 0.003, "seed": 0}.items() <= old.items()
    written = {file: file.read_bytes() for file in root.glob("*/seed_0/events*")}
    assert len(written) == 2
    report_writer.write(root, root, Console(quiet=True))
    assert {file: file.read_bytes() for file in root.glob("*/seed_0/events*")} == written
