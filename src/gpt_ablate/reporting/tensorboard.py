"""The study in TensorBoard: a run named `report`, and below it a run for each level of a factor. No torch."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_ablate.reporting import figure_curves
from gpt_ablate.reporting.figure_style import Floats, decimated
from gpt_ablate.studies import hparams
from gpt_ablate.studies.factors import as_folder
from gpt_ablate.utils.errors import Problem
from gpt_ablate.utils.files import misplaced

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from gpt_ablate.studies.study import Study, StudyRun

FOLDER = "report"
"""The folder of the events inside the study; TensorBoard shows it as the name of a run."""
CHARTS = {
    "train/loss": "training batches",
    "eval/train_loss": "training split",
    "eval/val_loss": "validation split",
}
Events = list[tuple[int, "Summary"]]
"""(step, summary) pairs."""


def taken(root: Path, study: Study) -> list[Problem]:
    """What stands in the place of a file or folder of the events below `root`."""
    return misplaced(files=_events_in(root / FOLDER), folders=[root / FOLDER, *_folders(root, study)])


def write(root: Path, study: Study, answer: str, figures: Mapping[str, bytes]) -> None:
    """Replace the events of the report in `root`: mean curves, their charts, `figures` (PNG), the answer.

    Runs of older versions are made to tell what runs tell now.

    `answer` is Markdown. A level's mean curves are in a run of their own, so that it has a colour of its own. The new
    files are whole before they are seen; then the older ones go.
    """
    folder = root / FOLDER
    old = _events_in(folder)
    now = time.time()  # part of the name: a TensorBoard that is open goes on to files of later names
    levels = {place: _curves(study, *level) for place, level in _folders(root, study).items()}
    for place, events in ({folder: _summary(study, answer, figures)} | levels).items():
        _write_events(place, events, now)
    for run in study.runs:
        if run.result is not None:
            hparams.renew(run.directory, run.record, run.status == "done")
    for file in old:
        file.unlink(missing_ok=True)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()


def _events_in(folder: Path) -> list[Path]:
    return list(folder.rglob("events.out.tfevents.*"))


def _folders(root: Path, study: Study) -> dict[Path, tuple[str, str]]:
    """Where the curves of every factor's levels are."""
    return {
        root / FOLDER / as_folder(f"{factor}={level}"): (factor, level)
        for factor, levels in study.factors.items()
        for level in levels
    }


def _write_events(folder: Path, events: Events, now: float) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    folder.mkdir(parents=True, exist_ok=True)
    first = Event(wall_time=now, file_version="brain.Event:2")
    every = [first, *(Event(wall_time=now, step=step, summary=summary) for step, summary in events)]
    hparams.write_events(folder / f"events.out.tfevents.{now:.6f}", (event.SerializeToString() for event in every))


def _curves(study: Study, factor: str, level: str) -> Events:
    """The mean curves over the finished runs of one level."""
    runs = [run for run in study.runs if run.levels[factor] == level and run.status == "done"]
    return [(step, _scalar(_tag(factor, key), value)) for key in CHARTS for step, value in _mean(runs, key)]


def _summary(study: Study, answer: str, figures: Mapping[str, bytes]) -> Events:
    """The layout of the custom scalars, the answer and the figures."""
    from tensorboard.plugins.custom_scalar import metadata

    layout = _tensor(metadata.CONFIG_SUMMARY_TAG, metadata.create_summary_metadata(), _layout(study))
    images = [(0, _image(f"report/{name}", png)) for name, png in figures.items()]
    return [*([(0, layout)] if study.factors else []), (0, _text("answer", answer)), *images]


def _tag(factor: str, key: str) -> str:
    return f"variants/by_{factor}/{key.replace('/', '_')}"


def _mean(runs: Sequence[StudyRun], key: str) -> Iterator[tuple[int, float]]:
    """The mean over these runs, step by step."""
    curves: list[tuple[Floats, Floats]] = []
    for run in runs:
        steps, values = figure_curves.points(run, key)
        if len(steps) > 1:
            curves.append((steps, values))
    if curves:
        steps, means = decimated(*figure_curves.mean(curves))
        yield from ((round(step), value) for step, value in zip(steps.tolist(), means.tolist(), strict=True))


def _layout(study: Study) -> bytes:
    """A category for each factor; in it a chart for each loss that was recorded, with a line for each level."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    recorded = {key: title for key, title in CHARTS.items() if any(key in run.curves for run in study.runs)}
    categories = []
    for factor in study.factors:
        charts = [
            layout_pb2.Chart(
                title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(_tag(factor, key))}$"])
            )
            for key, title in recorded.items()
        ]
        categories.append(layout_pb2.Category(title=factor, chart=charts))
    layout: bytes = layout_pb2.Layout(category=categories).SerializeToString()
    return layout


def _scalar(tag: str, value: float) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])


def _text(tag: str, markdown: str) -> Summary:
    from tensorboard.plugins.text import metadata

    return _tensor(tag, metadata.create_summary_metadata(tag, ""), markdown.encode())


def _tensor(tag: str, metadata: Any, content: bytes) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    tensor = TensorProto(dtype=DT_STRING, string_val=[content])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _image(tag: str, png: bytes) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which is always the first
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
