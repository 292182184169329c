"""Cost against size: `python -m benchmarks.scaling` (about 20 minutes).

Seconds and peak memory of a training step, for context, batch and layers each varied around one shape (4 layers, 256
wide, batch 2 of 256 tokens, dropout 0), with each attention. An exponent is the slope of the line through the
logarithms of the points; memory is that above what the process holds before its first step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import common
from .charts import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt_ablate.reporting.figure_style import Theme

SHAPE = {"model.context_length": 256, "data.batch_size": 2, "model.n_layer": 4}
SIZES = {
    "model.context_length": (128, 256, 512, 1024),
    "data.batch_size": (1, 2, 4, 8, 16),
    "model.n_layer": (2, 4, 8, 16, 24),
}
NAMES = {"model.context_length": "context", "data.batch_size": "batch", "model.n_layer": "layers"}
ATTENTIONS = ("looped", "parallel", "sdpa")
STEPS = 2
SECONDS = (0.5, 1, 2, 4, 8)  # ticks


def main() -> None:
    """Measure all, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(_measure(args.worker)))
        return
    points = [(key, size, name) for key, sizes in SIZES.items() for size in sizes for name in ATTENTIONS]
    words = {f"{key}={size} attention={name}": (key, size, name) for key, size, name in points}
    found = common.in_turn(
        args.rounds, list(words), lambda each: common.worker("benchmarks.scaling", "--worker", *each.split())
    )
    rows: list[dict[str, Any]] = [
        {
            "varied": key,
            "size": size,
            "attention": name,
            "seconds": round(statistics.median(run["seconds"] for run in found[each]), 4),
            "memory_mb": round(statistics.median(run["bytes"] for run in found[each]) / 1e6, 1),
        }
        for each, (key, size, name) in words.items()
    ]
    for row in rows:
        alike = [one for one in rows if (one["varied"], one["attention"]) == (row["varied"], row["attention"])]
        for column in ("seconds", "memory_mb"):
            row[f"exponent_{column}"] = round(exponent(alike, column), 2)
        row["machine"] = common.machine()
    common.record("scaling", rows, ["varied", "size", "attention"], {})
    save("scaling", lambda theme: _draw(rows, theme))


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    """The power of size with which a column grows: least squares on logarithms."""
    x, y = ([np.log(row[name]) for row in rows] for name in ("size", column))
    return float(np.polyfit(x, y, 1)[0])


def _measure(overrides: list[str]) -> dict[str, float]:
    from gpt_ablate.utils import devices

    shape = [f"{key}={value}" for key, value in SHAPE.items() if not any(each.startswith(key) for each in overrides)]
    rest = ["data=text", "model.d_model=256", "model.n_head=4", "model.dropout=0", *shape, *overrides]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("A page of the same words again, long enough for the largest batch. " * 2500)
        with common.training(common.config_of(*rest, f"data.path={text}")) as trainer:
            before = devices.peak_memory(trainer.device)["peak_rss_bytes"]
            steps = iter(range(1, STEPS + 2))
            seconds = common.timed(lambda: trainer._optimise(next(steps)), STEPS)
            after = devices.peak_memory(trainer.device)["peak_rss_bytes"]
    return {"seconds": statistics.median(seconds), "bytes": after - before}


def _draw(rows: list[dict[str, Any]], theme: Theme) -> Figure:
    from gpt_ablate.reporting.figure_style import canvas, style, title

    figure = canvas(10, 6)
    axes = figure.subplots(2, len(SIZES), sharey="row")
    for j, (key, sizes) in enumerate(SIZES.items()):
        for i, (column, unit) in enumerate((("seconds", "seconds a step"), ("memory_mb", "memory (MB)"))):
            axis = axes[i][j]
            for k, name in enumerate(ATTENTIONS):
                its = [row for row in rows if (row["varied"], row["attention"]) == (key, name)]
                look = style(theme, k)
                label = f"{name}, {NAMES[key]}^{its[0][f'exponent_{column}']:.2f}"
                axis.plot(
                    sizes,
                    [row[column] for row in its],
                    color=look.colour,
                    linestyle=look.line,
                    marker=look.marker,
                    label=label,
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            if column == "seconds":
                axis.set_yscale("log")
                axis.set_yticks(SECONDS, [f"{each:g}" for each in SECONDS])
                axis.minorticks_off()
            axis.legend(fontsize="small")
            title(axis, f"{unit} against {NAMES[key]}")
    axes[1][0].set_ylim(bottom=0)  # once all are drawn, since it ends the fitting of the axes to what is drawn
    return figure


if __name__ == "__main__":
    main()
