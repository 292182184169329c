"""The run directory: write it, find it, read it back. What others may rely on is in docs/reference/run_directory.md."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt_ablate.config.fingerprint import comparable
from gpt_ablate.config.schema import Config
from gpt_ablate.studies import records
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import misplaced, unusable, write_json

STUDY_FILE = "study.json"
"""In a study's folder: what it asks, and the runs that launches have wanted."""
STUDY_LOCK = ".lock"
"""In a study's folder: held while its files are written."""
_LOCK = ".lock"


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk, named by its folder."""

    path: Path

    @property
    def name(self) -> str:
        """What a person calls it: its cell's folder and its own."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def run_file(self) -> Path:
        """What was run, on what, and how it stands."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object for each step that recorded something."""
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        """One JSON object for each sample."""
        return self.path / "samples.jsonl"

    @property
    def result_file(self) -> Path:
        """The outcome; its presence means that the run is finished."""
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoint"

    def finished(self) -> bool:
        """Whether the run came to its end (diverging is an end too)."""
        return os.path.lexists(self.result_file)

    def record(self) -> dict[str, Any]:
        """run.json. Raises UsageError if it is missing or damaged."""
        return records.read_run(self.run_file)

    def result(self) -> dict[str, Any] | None:
        """result.json, or None while there is none."""
        return records.read_result(self.result_file) if self.finished() else None

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl. Raises UsageError for one that is damaged."""
        return records.read_metrics(self.metrics_file)

    def samples(self) -> list[dict[str, Any]]:
        """All lines of samples.jsonl. Raises UsageError for one that is damaged."""
        return records.read_samples(self.samples_file)

    def clear(self) -> None:
        """Remove what an earlier launch recorded, run.json and checkpoints apart."""
        for file in (self.result_file, self.metrics_file, self.samples_file):
            file.unlink(missing_ok=True)

    def update(self, **values: Any) -> None:
        """Change fields of run.json."""
        write_json(self.run_file, self.record() | values)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes off this run; the system lets go of it when this process ends, however it ends.

        Raises UsageError if another process holds it.
        """
        try:
            with FileLock(self.path / _LOCK, timeout=2):  # `busy` may hold it for a moment
                yield
        except Timeout as error:
            raise UsageError([self._taken()]) from error

    def busy(self) -> bool:
        """Whether a process holds the lock now."""
        if not (self.path / _LOCK).exists() or misplaced(files=[self.path / _LOCK]):
            return False
        try:
            with FileLock(self.path / _LOCK, timeout=0):
                return False
        except Timeout:
            return True

    def _taken(self) -> Problem:
        return Problem("run directory", str(self.path), "a run that no other process is training now")

    def check_place(self) -> None:
        """Raise UsageError if nothing can be written here, or what is here is no file or folder of a run's own."""
        if problem := unusable(self.path):
            raise UsageError([problem])
        hydra = self.path / ".hydra"
        kept = (_LOCK, "run.json", "metrics.jsonl", "samples.jsonl", "result.json")
        files = [*(self.path / name for name in kept), *self.path.glob("events.out.*"), *hydra.glob("*.yaml")]
        files.append(self.checkpoints / "tokenizer.json")
        saved = [*self.checkpoints.glob("step_*"), *(self.checkpoints / name for name in ("final", "best"))]
        folders = [self.path, hydra, self.checkpoints, *saved]
        if taken := misplaced(files=files, folders=folders):
            raise UsageError(taken)
        if self.busy():
            raise UsageError([self._taken()])

    def check(self, fingerprint: str, config: Config, stored_sha256: str | None = None) -> None:
        """Raise UsageError if something else than this run lives here; `stored_sha256` as in Corpus."""
        where = str(self.path)
        if not self.run_file.exists():
            if self.metrics_file.exists() or self.result_file.exists():
                raise UsageError([Problem("run directory", where, "holds a run without its run.json; move it away")])
            if other := next(find(self.path), None):
                raise UsageError([Problem("run directory", where, f"a folder of its own; {other.path} lies in it")])
            return
        there = self.record()
        if there["fingerprint"] != fingerprint:
            changes = _differences(comparable(there["config"]), comparable(config.record()))
            if not changes and there["data"]["sha256"] == stored_sha256:
                changes = ["it was trained on this text with its byte order mark or carriage returns"]
            listed = "; ".join(changes) or "the text or the tokenizer is another"
            allowed = f"already holds a run of another config ({listed}). Choose another study=NAME"
            raise UsageError([Problem("run directory", where, allowed)])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "key: old there, new here" for every key whose value differs."""
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def existing(path: Path) -> RunDirectory:
    """The run in the folder `path`. Raises UsageError, naming runs below it, if it holds none."""
    if not (path / "run.json").exists():
        near = [str(run.parent) for run in sorted(path.glob("**/run.json"))[:3]] if path.is_dir() else []
        hint = f" (below it there is {', '.join(near)})" if near else ""
        raise UsageError([Problem("run", str(path), f"a run directory, which holds run.json{hint}")])
    return RunDirectory(path)


def find(root: Path) -> Iterator[RunDirectory]:
    """Every run at or below `root`, by path; folders that come and go meanwhile do no harm, links are not followed."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name != "checkpoint"]
        if "run.json" in files or "run.json" in below:
            found.append(Path(folder, "run.json"))
    for run_file in sorted(found):
        yield RunDirectory(run_file.parent)


def described(config: Config, overrides: list[str]) -> dict[str, Any]:
    """What a run is, as its run.json has it, before anything has come of it."""
    return {
        "config": config.record(),
        "axes": {axis: config.options[axis] for axis in config.axes},
        "options": config.options,
        "overrides": overrides,
    }
