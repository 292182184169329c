"""Where memory, arithmetic and time go: `python -m gpt_ablate.profile attention=looped,parallel model=mini`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt_ablate.launching import environment
from gpt_ablate.launching.compose import composition_problem
from gpt_ablate.launching.placement import PlannedRun
from gpt_ablate.launching.planning import make_plan
from gpt_ablate.reporting.figure_style import Theme, canvas, render, style, title
from gpt_ablate.studies.factors import label
from gpt_ablate.utils import streams
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import misplaced, unusable, write_bytes, write_json
from gpt_ablate.utils.messages import refusals, say, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
FILES = ("profile.json", "profile.svg", "profile.png")


@streams.outlive(needed=True, at_once=False)
def main() -> None:
    """The command: a table for each config, and all of them in profile.json and a chart."""
    parser = argparse.ArgumentParser(prog="python -m gpt_ablate.profile", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for gpt_ablate.train; of lists, every combination")
    parser.add_argument("--config-dir", help="a folder with configs of yours")
    parser.add_argument(
        "--to", type=Path, default=Path("outputs/profile"), help="where to write (default: %(default)s)"
    )
    args = parser.parse_intermixed_args()
    try:
        with refusals():
            profiles = _profiles(_planned(args), streams.console())
            args.to.mkdir(parents=True, exist_ok=True)
            drawing = render(lambda theme: _chart(profiles, theme))
            content = {
                "schema_version": SCHEMA_VERSION,
                "versions": environment.versions(),
                "hardware": environment.hardware(),
            }
            table, *pictures = (args.to / name for name in FILES)
            write_json(table, content | {"profiles": profiles})
            for picture, drawn in zip(pictures, (drawing.light, drawing.png), strict=True):
                write_bytes(picture, drawn)
            print(visible(f"Written: {args.to}/profile.json, profile.svg, profile.png"))
    except (HydraException, OmegaConfBaseException) as error:
        say(str(composition_problem(error, args.overrides, args.config_dir)))
        sys.exit(2)


def _planned(args: argparse.Namespace) -> list[PlannedRun]:
    """The configs that `args` ask for, checked as those of runs are. Raises UsageError."""
    if problem := unusable(args.to):
        raise UsageError([problem])
    if taken := misplaced(files=[args.to / name for name in FILES]):
        raise UsageError(taken)
    arguments = [*(["--config-dir", args.config_dir] if args.config_dir else []), "--multirun", *args.overrides]
    planned = make_plan(get_args_parser().parse_args([*arguments, f"hydra.sweep.dir={args.to.absolute() / 'none'}"]))
    for note in planned.notes:
        print(visible(note))
    compiled = [Problem("trainer.compile", True, "false: a profile looks into the modules")]
    if any(run.config.trainer.compile for run in planned.runs):
        raise UsageError(compiled)
    return planned.runs


def _profiles(planned: Sequence[PlannedRun], console: Console) -> list[dict[str, Any]]:
    from gpt_ablate.data import loading  # imports torch
    from gpt_ablate.training import torch_settings
    from gpt_ablate.training.profiling import profile

    levels = [{key: str(level) for key, level in run.config.levels().items()} for run in planned]
    varying = [key for key in levels[0] if len({each.get(key) for each in levels}) > 1] or list(levels[0])
    profiles = []
    for run, of_run in zip(planned, levels, strict=True):
        name = label({key: of_run[key] for key in varying})
        with (
            torch_settings.threads(run.config.trainer.threads),
            torch_settings.deterministic(),
            torch_settings.memory_kept(),
            torch_settings.tf32(run.config.trainer.dtype == "tf32"),
        ):
            profiles.append(
                {"name": name, "config": run.config.record()}
                | profile(run.config, loading.load(run.config).tokenizer.vocab_size)
            )
        _show(profiles[-1], console)
    return profiles


def _show(profile: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(profile["name"]), title_justify="left")
    table.add_column("part")
    for column in ("saved for\nbackward", "arithmetic,\nforward", "time,\nforward", "time,\nbackward"):
        table.add_column(column, justify="right", no_wrap=True)
    total = {
        "saved_bytes": profile["saved_bytes"],
        "forward_flops": profile["forward_flops"],
        "forward_seconds": profile["seconds"]["forward"],
        "backward_seconds": profile["seconds"]["backward"],
    }
    for name, part in (*profile["parts"].items(), ("all", total)):
        table.add_row(
            Text(visible(name)),
            f"{part['saved_bytes'] / 1e6:,.1f} MB",
            f"{part['forward_flops'] / 1e9:,.1f} GFLOP",
            f"{part['forward_seconds']:.3f} s",
            f"{part['backward_seconds']:.3f} s",
        )
    console.print(table)
    told = (
        f"{profile['flops'] / 1e9:,.1f} GFLOP forward and backward; "
        f"weights {profile['weight_bytes'] / 1e6:,.1f} MB; above weights and optimiser state, "
        f"forward reaches {profile['forward_peak_bytes'] / 1e6:,.1f} MB, the step "
        f"{profile['step_peak_bytes'] / 1e6:,.1f} MB; process {profile['peak_rss_bytes'] / 1e9:.2f} GB; "
        f"optimiser {profile['seconds']['optimiser']:.3f} s\n"
    )
    console.print(told, highlight=False, soft_wrap=True)


def _chart(profiles: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Bytes kept for the backward pass, operations and seconds, a bar for each part and config."""
    every = dict.fromkeys(name for profile in profiles for name in profile["parts"])
    parts = [name for name in every if any(_weight(profile, name) for profile in profiles)]
    figure = canvas(11, 1.2 + (0.3 + 0.2 * len(profiles)) * len(parts))
    kept, counted, timed = figure.subplots(1, 3, sharey=True)
    for i, profile in enumerate(profiles):
        its = [profile["parts"].get(name, {}) for name in parts]
        at = [place + (i - (len(profiles) - 1) / 2) * 0.8 / len(profiles) for place in range(len(parts))]
        looks = {"height": 0.8 / len(profiles), "color": style(theme, i).colour}
        kept.barh(at, [part.get("saved_bytes", 0) / 1e6 for part in its], **looks, label=profile["name"])
        counted.barh(at, [part.get("forward_flops", 0) / 1e9 for part in its], **looks)
        spent = [part.get("forward_seconds", 0) + part.get("backward_seconds", 0) for part in its]
        timed.barh(at, spent, **looks)
    kept.set_yticks(range(len(parts)), parts)
    kept.invert_yaxis()
    title(kept, "Saved for backward (MB)")
    title(counted, "Forward (GFLOP)")
    title(timed, "Forward and backward (s)")
    figure.legend(*kept.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(profiles)))
    return figure


def _weight(profile: Mapping[str, Any], name: str) -> bool:
    part = profile["parts"].get(name, {})
    return part.get("saved_bytes", 0) > 0.005 * profile["saved_bytes"] or part.get("forward_flops", 0) > 0


if __name__ == "__main__":
    main()
