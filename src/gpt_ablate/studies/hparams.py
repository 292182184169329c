"""TensorBoard's table of hyperparameters: what each run tells of itself, in its own events.

No run writes the list of columns: TensorBoard would take the first that it finds for all. Without one it shows whatever
any run tells, what differs first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_ablate.config.fingerprint import flatten
from gpt_ablate.studies.factors import level_of
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils.files import without_home

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_OF_A_LAUNCH = (
    *("study.", "plugins.", "callbacks.", "cell_keys.", "report."),
    *("trainer.resume.", "trainer.fail_fast."),
)
_TAIL_BYTES = 1 << 16


def values(record: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Every key of a run's config that a launch may vary, and the option of every group; null is left out."""
    flat = {
        key: value
        for key, value in flatten(record["config"]).items()
        if value is not None and not f"{key}.".startswith(_OF_A_LAUNCH)
    }
    groups = {key.removesuffix(".name") for key in flat if key.endswith(".name")} | record.get("options", {}).keys()
    plain = {key: value for key, value in flat.items() if key.removesuffix(".name") not in groups}
    chosen = {group: level_of(record, group) for group in sorted(groups)}
    told = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in plain.items()}
    return without_home(chosen | told)


def start(record: Mapping[str, Any], began: float) -> Summary:
    """What a run tells as it starts; `began` in seconds since the epoch."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(start_time_secs=began)
    for key, value in values(record).items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(info.hparams[key], f"{kind}_value", value)
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def end(done: bool, ended: float) -> Summary:
    """What a run tells at its end."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if done else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
    return _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def renew(directory: RunDirectory, record: Mapping[str, Any], done: bool) -> None:
    """In the events of a finished run that has a list of columns, as older versions wrote: put what runs tell now."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import metadata

    for file in directory.path.glob("events.out.tfevents.*"):
        if file.is_symlink() or metadata.EXPERIMENT_TAG.encode() not in _tail(file):
            continue
        events = [(raw, Event.FromString(raw)) for raw in RawEventFileLoader(str(file)).Load()]
        kept = [raw for raw, event in events if not any(_of_hparams(value.tag) for value in event.summary.value)]
        times = [event.wall_time for _, event in events]
        told = [(times[0], start(record, times[0])), (times[-1], end(done, times[-1]))]
        new = [Event(wall_time=when, summary=summary).SerializeToString() for when, summary in told]
        write_events(file, [*kept, *new])


def write_events(path: Path, events: Iterable[bytes]) -> None:
    """Write an event file of serialised events, whole or not at all."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    beside = path.with_name(f".{os.getpid()}.tmp")  # TensorBoard reads every file whose name has "tfevents" in it
    try:
        with beside.open("wb") as file:
            records = RecordWriter(file)
            for event in events:
                records.write(event)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _of_hparams(tag: str) -> bool:
    return tag.startswith("_hparams_/")


def _tail(file: Path) -> bytes:
    """The end of an event file, where older versions wrote the list of columns."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return opened.read()


def _summary(tag: str, content: Any) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    described = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
