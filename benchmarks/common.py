"""What every benchmark needs: workers in processes of their own, in turn; the machine; a CSV; what got worse."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_ablate.config.schema import Config
    from gpt_ablate.training.trainer import Trainer

FOLDER = Path(__file__).parent
NOISE = 1.05
"""A ratio that moves by less than this factor between two recordings is not pointed out."""


def config_of(*overrides: str) -> Config:
    """The config that `overrides` name, with the text of the package where they name none."""
    from hydra import compose, initialize_config_dir

    from gpt_ablate.config.paths import CONF
    from gpt_ablate.config.resolve import resolve

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", overrides=["data=sample", *overrides]))


@contextmanager
def training(config: Config) -> Iterator[Trainer]:
    """A trainer as a run has it, whose record goes to a folder that is gone afterwards."""
    from rich.console import Console

    from gpt_ablate.data import loading
    from gpt_ablate.studies.run_directory import RunDirectory
    from gpt_ablate.training import torch_settings
    from gpt_ablate.training.trainer import Trainer

    with (
        tempfile.TemporaryDirectory(dir="outputs") as folder,
        torch_settings.deterministic(),
        torch_settings.memory_kept(),
    ):
        directory = RunDirectory(Path(folder))
        directory.checkpoints.mkdir()
        trainer = Trainer(config, loading.load(config), directory, "2026-01-01T00:00:00+00:00", Console(quiet=True))
        with trainer.tracker:
            yield trainer


def timed(do: Callable[[], object], times: int) -> list[float]:
    """Seconds of so many calls after a first, which is not counted."""
    do()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)
    return seconds


def in_turn(rounds: int, names: Sequence[str], measure: Callable[[str], dict[str, Any]]) -> dict[str, list[Any]]:
    """`rounds` measurements of each name, so interleaved that a slow minute of the machine falls on all alike."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(rounds):
        shift = i % len(names)
        for name in [*names[shift:], *names[:shift]]:
            found[name].append(measure(name))
            print(f"round {i + 1}/{rounds}  {name}: {json.dumps(found[name][-1])}", flush=True)
    return found


def worker(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m <module> <arguments>` prints as JSON in its last line. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


def machine(packages: Iterable[str] = ()) -> str:
    """One line: processor (where Linux tells it with its family), cores, memory, system and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    about = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = about.get("flags", "").split()
    family = f"family {about['cpu family']}" if "cpu family" in about else ""
    kind = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{name} {_version(name)}" for name in ("torch", *packages)]
    return ", ".join(
        [
            " ".join(filter(None, (about.get("model name", platform.processor()), family, kind))),
            f"{os.cpu_count()} cores, {memory:.0f} GiB",
            f"{platform.system()}, Python {platform.python_version()}",
            *versions,
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def record(name: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str], better: Mapping[str, str]) -> None:
    """Write benchmarks/<name>.csv. `better` says of a column whether "less" or "more" is better than last time.

    Rows are matched by the columns in `key`; a figure worse by more than NOISE is pointed out, unless it was measured
    on another processor.
    """
    target = FOLDER / f"{name}.csv"
    before = {}
    if target.exists():
        with target.open(newline="") as file:
            before = {tuple(row[column] for column in key): row for row in csv.DictReader(file)}
    processors = {str(row["machine"]).partition(",")[0] for row in (*rows, *before.values())}
    if len(processors) > 1:
        print(f"not compared with the last recording: processors {' and '.join(sorted(processors))}")
        before = {}
    for row in rows:
        earlier = before.get(tuple(str(row[column]) for column in key), {})
        for column, which in better.items():
            try:
                now, then = float(row[column]), float(earlier[column])
            except (KeyError, TypeError, ValueError):
                continue
            if now > then * NOISE if which == "less" else now * NOISE < then:
                label = " ".join(str(row[column]) for column in key)
                print(f"WORSE than recorded: {label}: {column} {then:.3g} -> {now:.3g}")
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {target.relative_to(FOLDER.parent)}")
