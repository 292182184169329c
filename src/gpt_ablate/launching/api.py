"""The Python API for what is on disk: load_run, load_study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_ablate.studies import results, study
from gpt_ablate.studies.run_directory import RunDirectory, existing
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from gpt_ablate.data.tokenizers import Tokenizer
    from gpt_ablate.models.gpt import GPT


@dataclass(frozen=True)
class Run:
    """A run on disk. Every property reads the files anew, so that a run that is still training can be followed."""

    path: Path
    """The run directory."""

    @property
    def status(self) -> str:
        """`running`, `interrupted`, `done`, `failed` or `diverged`.

        `interrupted`: no process trains it now, and launching it again continues it.
        """
        return results.standing_now(self._directory, self._directory.record(), self._directory.result())

    @property
    def config(self) -> dict[str, Any]:
        """The config that the run recorded in run.json."""
        config: dict[str, Any] = self._directory.record()["config"]
        return config

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.jsonl: a row for each recorded step, indexed by `step`.

        Losses are in nats per token, `wall_time` is in seconds. A metric that a step did not record is NaN there.
        """
        import pandas as pd

        return pd.DataFrame(self._directory.metrics() or {"step": []}).set_index("step")

    @property
    def samples(self) -> pd.DataFrame:
        """samples.jsonl: a row for each sample, with `step`, `epoch`, `prompt`, `text` and the sampling settings."""
        import pandas as pd

        return pd.DataFrame(self._directory.samples() or {"step": [], "epoch": [], "prompt": [], "text": []})

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json: final and best losses, parameters, FLOPs, throughput; None while the run is not finished."""
        return self._directory.result()

    def model(self, checkpoint: Literal["final", "best"] = "final", plugins: Sequence[str] = ()) -> GPT:
        """The trained model, on the CPU and in evaluation mode: tokens (B, T) -> logits (B, T, V).

        `final` is the newest checkpoint, which in a finished run holds the last weights. `best` has the lowest
        validation loss. `plugins` names the modules that the run needs and that you trust: importing runs their code.

        Raises UsageError if a plugin is not named, or if there is no such checkpoint or it is damaged.
        """
        if checkpoint not in ("final", "best"):
            raise UsageError([Problem("checkpoint", checkpoint, "one of final, best")])
        if isinstance(plugins, str):
            raise UsageError([Problem("plugins", plugins, f"a list of modules, such as [{plugins!r}]")])
        from gpt_ablate.training.checkpoint import load_trained

        model, _ = load_trained(self._directory, checkpoint == "best", plugins)
        return model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with: `encode(text)` gives token ids, `stream_text(ids)` their text.

        Raises UsageError if its file is damaged.
        """
        from gpt_ablate.training.checkpoint import load_tokenizer

        return load_tokenizer(self._directory)

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.path)


@dataclass(frozen=True)
class Study:
    """The runs below one folder, as they were when `load_study` read them."""

    path: Path
    """The study's folder."""
    _read: study.Study = field(repr=False, compare=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run, with the columns of results.csv; a planned run without files has the status `missing`."""
        import pandas as pd

        return pd.DataFrame(study.rows(self._read))

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """A row for each comparison of report.json, with its `difference`, `interval`, `p_holm` and `verdict`.

        Each rests on the seeds that both of its cells have (`seeds`). Raises UsageError if no run is finished.
        """
        import pandas as pd

        return pd.DataFrame(self._analysed["comparisons"])

    @property
    def answer(self) -> str:
        """The answer of the report in sentences. Raises UsageError if no run is finished."""
        return " ".join(self._analysed["answer"])

    def report(self, to: str | os.PathLike[str] | None = None) -> Path:
        """Write the report into the folder `to` (default: the study's own); the path of its report.html.

        The study is read anew, and runs that are missing are named in the report. Raises UsageError if no run is
        finished or the place cannot hold a report.
        """
        from rich.console import Console

        from gpt_ablate.reporting import report_writer

        target = self.path if to is None else Path(to)
        report_writer.write(self.path, target, Console(quiet=True), allow_missing=True)
        return target / "report.html"

    @cached_property
    def _analysed(self) -> dict[str, Any]:
        from gpt_ablate.reporting import aa_control, analysis

        return analysis.analyse(self._read, allow_missing=True, noise=aa_control.find_noise_floor(self._read))


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`, finished or not.

    Raises UsageError if the folder holds no run, or a damaged one.
    """
    directory = existing(Path(path))
    directory.record()
    return Run(directory.path)


def load_study(path: str | os.PathLike[str]) -> Study:
    """The study in the folder `path`.

    Raises UsageError if it holds no run, a damaged one, or runs that cannot be compared.
    """
    return Study(Path(path), study.read(Path(path)))
