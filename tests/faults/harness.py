"""The run that faults are injected into, and what it leaves, less times and memory."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

TEXT = " ".join(f"The {i}th of {i * i} sheep said {'baa' if i % 3 else 'no'}." for i in range(23))
RUN = [
    *("data=text", "data.path=text.txt", "data.batch_size=2", "trainer.device=cpu", "trainer.threads=1"),
    *("model=micro", "model.n_layer=1", "model.d_model=8", "model.n_head=2", "model.context_length=16"),
    *("model.dropout=0.1", "trainer.max_steps=6", "trainer.max_epochs=2", "trainer.checkpoint_every=2"),
    *("trainer.eval_every=1", "trainer.sample_every=2", "sampling.max_new_tokens=3", "hydra.run.dir=outputs/run"),
]
"""A run of six steps that evaluates, samples and saves as often as it can."""
_TIMES = {"wall_time", "tokens_per_second", "start", "end", "training_seconds", "seconds_per_step"}
_MEMORY = {"peak_rss_bytes", "peak_rss_is_of_run", "peak_allocated_bytes", "peak_reserved_bytes"}


@dataclass
class Launch:
    """One command that was started."""

    pid: int
    output: Path
    answers: IO[str]
    code: int | None = None

    def kill(self) -> None:
        """kill -9; does nothing to one that has ended."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Its exit code (negative: the signal that ended it) and what it printed."""
        if self.code is None:
            self.code = int(self.answers.readline())
        return self.code, self.output.read_text()


Start = Callable[..., Launch]


def record(run: Path) -> dict[str, Any]:
    """Every file of a run by its name, less times and memory."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = file.relative_to(run).as_posix()
        if name.startswith("events."):
            found["events"] = sorted(found.get("events", []) + _shown(file))
        elif file.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".json":
            found[name] = _timeless(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes().replace(str(run.parents[1]).encode(), b"")
    return found


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _TIMES | _MEMORY}


def _shown(events: Path) -> list[tuple[int, str, str]]:
    """What TensorBoard shows, in its order, less the speed and the times."""
    shown = []
    for event in EventFileLoader(str(events)).Load():
        shown += [(event.step, value.tag, _told(value)) for value in event.summary.value if "perf/" not in value.tag]
    return shown


def _told(value: Summary.Value) -> str:
    data = value.metadata.plugin_data
    if data.plugin_name == "hparams":
        content = HParamsPluginData.FromString(data.content)
        content.session_start_info.ClearField("start_time_secs")
        content.session_end_info.ClearField("end_time_secs")
        data.content = content.SerializeToString(deterministic=True)
    return str(value)
