"""How figures look: a light and a dark theme, lines told apart without colour too, files that come out the same."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt_ablate.utils.messages import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
POINTS = 300
"""Most points of a drawn curve: more than a figure's width can show."""
MOST_LINES = 40
"""Lines of a panel that colours and kinds of line tell apart, and a legend has room for."""
DOTS = 160
"""Pixels per inch."""
MANY_LINES = 80
"""From here on, thin lines are drawn as pixels: a vector for each would make files of many megabytes."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; the lines' are Okabe and Ito's, which colour-blind readers tell apart."""

    name: str
    paper: str
    ink: str
    muted: str
    rule: str
    band: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "light",
    paper="#ffffff",
    ink="#1b1b1a",
    muted="#5b5a57",
    rule="#d5d3ce",
    band="#ecebe7",
    lines=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8c6d00"),
)
DARK = Theme(
    "dark",
    paper="#17181a",
    ink="#e6e4de",
    muted="#aaa7a0",
    rule="#45464a",
    band="#2b2c2f",
    lines=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#ffffff", "#d55e00", "#0072b2", "#f0e442"),
)


@dataclass(frozen=True)
class Style:
    """What tells one group from the others."""

    colour: str
    line: Any
    marker: str


def style(theme: Theme, i: int) -> Style:
    """The style of the i-th group; colours come again after 8, with another kind of line."""
    return Style(
        theme.lines[i % len(theme.lines)], STYLES[(i + i // len(theme.lines)) % len(STYLES)], MARKERS[i % len(MARKERS)]
    )


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches. The serif ships with matplotlib, so every machine draws the same."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """matplotlib's settings while a figure is made."""
    import matplotlib
    from cycler import cycler

    settings: dict[Any, Any] = {
        "font.family": ["STIXGeneral", "DejaVu Sans"],
        "font.size": 11,
        "text.parse_math": False,  # a name with dollars in it is a name
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.labelsize": 11,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=list(theme.lines)),
        "legend.frameon": False,
        "legend.fontsize": 10.5,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "svg.hashsalt": "gpt_ablate",
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
    }
    with matplotlib.rc_context(settings):
        yield


@dataclass(frozen=True)
class Drawing:
    """A figure as files: SVG in both themes, PNG in the light one."""

    light: bytes
    dark: bytes
    png: bytes


def render(draw: Callable[[Theme], Figure]) -> Drawing:
    """The figure as files; equal input gives equal bytes."""
    light, png = _files(draw, LIGHT)
    # what was drawn as pixels cannot change its colours in the file, so it is drawn again
    dark = _files(draw, DARK, png=False)[0] if b"<image" in light else recoloured(light)
    return Drawing(light, dark, png)


def recoloured(svg: bytes) -> bytes:
    """A figure of the light theme in the dark one's colours: what drawing it again would give, in no time."""
    return re.sub(rb"#[0-9a-f]{6}", lambda match: _IN_THE_DARK.get(match[0], match[0]), svg)


def _colours(theme: Theme) -> list[bytes]:
    every = [theme.paper, theme.ink, theme.muted, theme.rule, theme.band, *theme.lines]
    return [colour.encode() for colour in every]


_IN_THE_DARK = dict(zip(_colours(LIGHT), _colours(DARK), strict=True))


def _files(draw: Callable[[Theme], Figure], theme: Theme, png: bool = True) -> tuple[bytes, bytes]:
    """SVG and PNG; without savefig, which draws everything once more before it draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, pixels = io.BytesIO(), io.BytesIO()
    with themed(theme):
        figure = draw(theme)
        figure.set_dpi(DOTS)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # placed once, not again for each file
        to_svg: Any = FigureCanvasSVG(figure)
        to_svg.print_svg(svg, metadata={"Date": None})
        if png:
            figure.set_dpi(DOTS)
            to_png: Any = FigureCanvasAgg(figure)
            to_png.print_png(pixels, metadata={"Software": None})
    return visible(svg.getvalue().decode()).encode(), pixels.getvalue()


def decimated(x: Floats, y: Floats, points: int = POINTS) -> tuple[Floats, Floats]:
    """At most so many points: means of neighbours, which keep a noisy curve's level where picking would not."""
    if len(x) <= points:
        return x, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    sizes = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def note_line(axis: Axes, height: float, name: str, theme: Theme) -> None:
    """A horizontal line across the panel, with its name beside the right end."""
    axis.axhline(height, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axis.annotate(
        name,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=9.5,
        linespacing=0.95,
        color=theme.muted,
    )


def legend(figure: Figure, axis: Axes, columns: int = 3) -> None:
    """One legend below the panels, from what is labelled in one of them; the figure grows by its height."""
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    entry = 0.75 + 0.064 * max(len(label) for label in labels)  # inches: line and text
    fitting = max(1, min(columns, len(labels), int(figure.get_figwidth() / entry)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // fitting))
    figure.legend(handles, labels, loc="outside lower center", ncols=fitting, handlelength=3)


def title(axis: Axes, text: str) -> None:
    """A panel's title."""
    axis.set_title(text, pad=8)


def in_thousands(axis: Axes) -> None:
    """Large numbers along x as 20k, 3M, 1.5T."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
