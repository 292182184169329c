"""TensorBoard's view of a study as a whole: a run named `report` beside those of training, without torch."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import plot_curves
from .drawing import Floats, decimated

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from .study import Study, StudyRun

FOLDER = "report"
"""Where in the study's folder the events are; TensorBoard takes it for the run's name."""
CHARTS = {
    "train/loss": "training batches",
    "eval/train_loss": "training split",
    "eval/val_loss": "validation split",
}


def write(folder: Path, study: Study, answer: str, figures: Mapping[str, bytes]) -> None:
    """Replace the events in `folder` by the study's: mean curves by level, their charts, `figures` (PNG), the answer.

    `answer` is Markdown. The new file is whole before it is seen; then older ones go.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    beside = folder / f".{os.getpid()}.tmp"
    try:
        with beside.open("wb") as file:
            records = RecordWriter(file)
            records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for step, summary in _summaries(study, answer, figures):
                records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
        old = list(folder.glob("events.out.tfevents.*"))
        new = folder / f"events.out.tfevents.{now:.6f}"  # a later name than the old one's: a TensorBoard goes on to it
        beside.replace(new)
        for file_name in old:
            file_name.unlink(missing_ok=True)
    finally:
        beside.unlink(missing_ok=True)


def _summaries(study: Study, answer: str, figures: Mapping[str, bytes]) -> Iterator[tuple[int, Summary]]:
    from tensorboard.plugins.custom_scalar import metadata

    charts: dict[str, list[tuple[str, str]]] = {}
    for factor, levels in study.factors.items():
        for key, title in CHARTS.items():
            found = False
            for level in levels:
                runs = [run for run in study.runs if run.levels[factor] == level and run.status == "done"]
                points = list(_mean(runs, key))
                found = found or bool(points)
                for step, value in points:
                    yield step, _scalar(f"{_group(factor, key)}/{level}", value)
            if found:
                charts.setdefault(factor, []).append((title, _group(factor, key)))
    if charts:
        layout = _layout(charts).SerializeToString()
        yield 0, _tensor(metadata.CONFIG_SUMMARY_TAG, metadata.create_summary_metadata(), layout)
    yield 0, _text("answer", answer)
    for name, png in figures.items():
        yield 0, _image(f"figures/{name}", png)


def _group(factor: str, key: str) -> str:
    return f"variants/by_{factor}/{key.replace('/', '_')}"


def _mean(runs: Sequence[StudyRun], key: str) -> Iterator[tuple[int, float]]:
    """The mean over these runs, step by step."""
    curves: list[tuple[Floats, Floats]] = []
    for run in runs:
        steps, values = plot_curves.points(run, key)
        if len(steps) > 1:
            curves.append((steps, values))
    if curves:
        steps, means = decimated(*plot_curves.mean(curves))
        yield from ((round(step), value) for step, value in zip(steps.tolist(), means.tolist(), strict=True))


def _layout(charts: Mapping[str, Sequence[tuple[str, str]]]) -> Any:
    """A category for each factor; in it a chart for each loss, with a line for each level."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    categories = []
    for factor, of_factor in charts.items():
        lines = [
            layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(group)}/"]))
            for title, group in of_factor
        ]
        categories.append(layout_pb2.Category(title=factor, chart=lines))
    return layout_pb2.Layout(category=categories)


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
