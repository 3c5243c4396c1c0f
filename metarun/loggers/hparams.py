"""A run's settings for TensorBoard's HPARAMS table, which shows them beside the last values of the curves."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status  # type: ignore[attr-defined]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo  # type: ignore[attr-defined]
from torch.utils.tensorboard import RecordWriter

from metarun.config.groups import CONFIG_GROUPS, choice_name
from metarun.config.schema import MACHINE_KEYS, Settings, iter_options
from metarun.loggers.event_file import FILE_VERSION
from metarun.utils import files

FILE = "events.out.tfevents.0.settings"  # written anew by each sitting: of two such records TensorBoard keeps the first
LEFT_OUT = (
    "save.",
    "engine.",
    "eval.every",
    "eval.tasks",
    "eval.validation_tasks",
)  # how a run is executed, not what it computes


def write_hparams(folder: Path, settings: Settings, seconds: float | None = None) -> None:
    """Write the run's row of the table: as running if `seconds` is None, else as finished after that time.

    Raises:
        RunFailure: the disk is full or fails, or the folder is gone.
    """
    now = time.time()
    start = SessionStartInfo(start_time_secs=now - (seconds or 0))
    for name, value in hparam_dict(settings).items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], kind, value)
    values = [entry(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))]
    if seconds is not None:
        end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=now)
        values.append(entry(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))
    data = io.BytesIO()
    records = RecordWriter(data)
    for event in (Event(file_version=FILE_VERSION), Event(summary=Summary(value=values))):
        event.wall_time = now
        records.write(event.SerializeToString())
    place = folder / "tensorboard"
    with files.translate_os_errors(place):
        place.mkdir(exist_ok=True)
    files.atomic_write(place / FILE, data.getvalue())


def entry(tag: str, content: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)


def hparam_dict(settings: Settings) -> dict[str, Any]:
    """The settings that define a run, by dotted name, without null ones and those of LEFT_OUT."""
    chosen = {group: choice_name(getattr(settings, group)) for group in CONFIG_GROUPS}
    own = {
        name: value
        for name, _, value in iter_options(settings)
        if value is not None and name not in MACHINE_KEYS and not name.startswith(LEFT_OUT)
    }
    return {**chosen, **{name: str(value) if isinstance(value, list) else value for name, value in own.items()}}
