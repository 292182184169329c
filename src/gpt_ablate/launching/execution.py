"""One run from its place to its record: finished already, locked, gone on with, tried again, failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console
from rich.markup import escape

from gpt_ablate.config import metrics
from gpt_ablate.config.schema import Config
from gpt_ablate.data import loading
from gpt_ablate.data.corpus import Corpus
from gpt_ablate.launching.environment import git_commit, hardware, versions
from gpt_ablate.studies import records
from gpt_ablate.studies.run_directory import RunDirectory, described
from gpt_ablate.training import checkpoint, torch_settings
from gpt_ablate.training.trainer import Trainer
from gpt_ablate.utils import files, signals
from gpt_ablate.utils.errors import UsageError
from gpt_ablate.utils.files import without_home
from gpt_ablate.utils.messages import visible


def fingerprint(config: Config, corpus: Corpus) -> str:
    """What a run's result depends on, hashed; two runs are the same if this is."""
    return config.fingerprint(data=corpus.sha256, tokenizer=corpus.tokenizer.sha256)


def run(
    config: Config,
    path: Path,
    overrides: list[str],
    console: Console,
    on_start: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train the run that lives at `path` from where it stands, and return its result.

    `on_start` is called once its run.json is written; not for a run that is finished.
    Raises UsageError if another run lives there, Interrupted after a signal; any other
    exception is recorded in run.json and raised again.
    """
    directory = RunDirectory(path)
    corpus = loading.load(config)
    identity = fingerprint(config, corpus)
    directory.check_place()
    if config.trainer.resume != "restart":
        directory.check(identity, config, corpus.stored_sha256)
        if directory.finished():
            return _finished_already(directory, console)
    path.mkdir(parents=True, exist_ok=True)
    with (
        signals.noted(),
        directory.lock(),
        torch_settings.threads(config.trainer.threads),
        torch_settings.threads_fail_quietly(),
        torch_settings.memory_kept(),
        torch_settings.tf32(config.trainer.dtype == "tf32"),
    ):
        if config.trainer.resume != "restart" and directory.finished():  # while this process waited
            return _finished_already(directory, console)
        earlier = directory.record() if directory.run_file.exists() else {}
        record = new_record(config, identity, corpus.describe(), overrides)
        saved = _prepare(directory, config, record, earlier)
        checkpoint.save_tokenizer(directory, corpus.tokenizer)
        on_start()
        Thread(target=import_module, args=["torch.utils.tensorboard"]).start()  # 0.2 s, while the model is initialised
        try:
            trainer = Trainer(config, corpus, directory, record["start"], console, saved)
            directory.update(total_steps=trainer.total_steps)
            _say(console, directory, _beginning(earlier, saved))
            result = trainer.train()
        except (Exception, SystemExit) as error:
            with suppress(OSError, UsageError):  # where no record can be written, the exception is all there is to tell
                directory.update(status="failed", end=now(), error=files.without_home(traceback.format_exc()))
            if isinstance(error, SystemExit):
                raise RuntimeError("the run's code asked Python to exit") from error
            raise
        directory.update(status=result["status"], end=now())
        files.write_json(directory.result_file, result)
        checkpoint.drop_steps(directory)
    return result


def _prepare(
    directory: RunDirectory, config: Config, record: dict[str, Any], earlier: Mapping[str, Any]
) -> checkpoint.Saved | None:
    """Write run.json; the state that the run goes on from, None where it begins anew."""
    saved = None
    if config.trainer.resume == "auto":
        record["start"] = earlier.get("start", record["start"])
        saved = checkpoint.newest(directory)
    else:
        directory.clear()
        checkpoint.discard(directory)
    directory.checkpoints.mkdir(exist_ok=True)
    for folder in (directory.path, directory.path / ".hydra", directory.checkpoints):
        files.tidy(folder)
    files.write_json(directory.run_file, record)
    return saved


def _finished_already(directory: RunDirectory, console: Console) -> dict[str, Any]:
    _say(console, directory, "finished already")
    if checkpoint.has_steps(directory):  # a kill came between the result and this
        with directory.lock():
            checkpoint.drop_steps(directory)
    result = directory.result()
    assert result is not None
    return result


def _beginning(earlier: dict[str, Any], saved: checkpoint.Saved | None) -> str:
    again = "failed before; " if earlier.get("status") == "failed" else ""
    if saved:
        passed_over = "".join(f"passed over: {problem}\n" for problem in saved.passed_over)
        return f"{passed_over}{again}goes on after step {saved.step}"
    return again + ("starts at step 0 again: no checkpoint had been saved" if earlier and not again else "starts")


def _say(console: Console, directory: RunDirectory, what: str) -> None:
    name, told = (escape(visible(text)) for text in (directory.name, what))
    console.print(f"[bold]{name}[/]: {told}", highlight=False, soft_wrap=True)


def new_record(config: Config, fingerprint: str, data: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The run.json of a run that starts now."""
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": "running",
        "start": now(),
        "end": None,
        "fingerprint": fingerprint,
        **described(config, overrides),
        "metrics": [metric.record() for metric in metrics.of_config(config).values()],
        "data": dict(data),
        "versions": versions(),
        "hardware": hardware(),
        "git_commit": git_commit(),
        "total_steps": None,
        "error": None,
    }
    return without_home(record)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
