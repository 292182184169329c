"""The pictures that benchmarks leave beside their CSV files, in the report's style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt_ablate.reporting.figure_style import Theme, canvas, render, style, title

from .common import FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(name: str, draw: Callable[[Theme], Figure]) -> None:
    """Write benchmarks/<name>.png."""
    (FOLDER / f"{name}.png").write_bytes(render(draw).png)


def step_chart(rows: Sequence[Mapping[str, Any]]) -> None:
    """Seconds a step with their range, and peak memory, a bar for each implementation."""
    rows = sorted(rows, key=lambda row: row["seconds"])

    def draw(theme: Theme) -> Figure:
        figure = canvas(9, 1 + 0.3 * len(rows))
        left, right = figure.subplots(1, 2, sharey=True)
        ours = [row["implementation"].startswith("gpt_ablate") for row in rows]
        colours = [style(theme, 0 if own else 1).colour for own in ours]
        seconds = [row["seconds"] for row in rows]
        ranges = [[row["seconds"] - row["least"] for row in rows], [row["most"] - row["seconds"] for row in rows]]
        left.barh(range(len(rows)), seconds, color=colours, xerr=ranges, error_kw={"ecolor": "gray", "elinewidth": 1})
        right.barh(range(len(rows)), [row["peak_rss_gb"] for row in rows], color=colours)
        left.set_yticks(range(len(rows)), [row["implementation"] for row in rows])
        left.invert_yaxis()
        title(left, "Seconds a step: median, least, most")
        title(right, "Peak resident memory (GB)")
        return figure

    save("step", draw)
