"""The one table of kinds: which sources, stages and sinks exist, and where their classes live.

Nothing is imported before it is asked for, so that `check`, `list` and `--help` stay quick. Pure;
safe from any thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from pipeline.config import Config

Role = Literal["source", "stage", "sink"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of source, stage or sink."""

    role: Role
    name: str
    config: str
    """"module:Class" of its options."""
    component: str
    """"module:Class" of what is built from them."""
    summary: str
    needs_model: bool = False
    """True where the constructor takes the loaded model as a third argument."""
    wraps: bool = False
    """True where its option `source` is another source, and the constructor's third argument."""

    def config_class(self) -> type[Config]:
        """Import and return the class of its options."""
        return cast("type[Config]", _load(self.config))

    def component_class(self) -> Any:  # noqa: ANN401 - a Source, Stage or Sink class, by role
        """Import and return the class that does the work."""
        return _load(self.component)


def _load(reference: str) -> object:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _table(role: Role, *rows: tuple[str, str, str, str]) -> Mapping[str, Kind]:
    """Make a table from (kind, module, class prefix, summary)."""
    suffix = role.capitalize()
    kinds = {}
    for name, module, prefix, summary in rows:
        config = f"{prefix}SinkConfig" if role == "sink" else f"{prefix}Config"
        needs_model = role == "stage" and name in _MODEL_STAGES
        kinds[name] = Kind(
            role,
            name,
            f"{module}:{config}",
            f"{module}:{prefix}{suffix}",
            summary,
            needs_model,
            wraps=role == "source" and name == "chaos",
        )
    return MappingProxyType(kinds)


_MODEL_STAGES: Final = frozenset({"preprocess", "infer", "nms"})

SOURCES: Final = _table(
    "source",
    ("file", "stages.sources.file", "File", "A video file; audio and subtitles go along."),
    ("images", "stages.sources.images", "Images", "A folder or pattern of pictures, as frames."),
    (
        "network",
        "stages.sources.network",
        "Network",
        "RTSP, RTMP, SRT, HTTP; comes back by itself.",
    ),
    ("webcam", "stages.sources.webcam", "Webcam", "A camera of this machine."),
    ("synthetic", "stages.sources.synthetic", "Synthetic", "A drawn scene with ground truth."),
    ("chaos", "stages.sources.chaos", "Chaos", "Another source, broken on purpose."),
)

STAGES: Final = _table(
    "stage",
    ("preprocess", "stages.preprocess", "Preprocess", "Fits the picture into the model's input."),
    ("infer", "stages.infer", "Infer", "Runs the model."),
    ("nms", "stages.nms", "Nms", "Turns outputs into detections and drops doubles."),
    ("track", "stages.track", "Track", "Follows objects over time; counts at lines, in zones."),
    ("overlay", "stages.overlay", "Overlay", "Draws boxes, labels and figures."),
)

SINKS: Final = _table(
    "sink",
    ("video", "stages.sinks.video", "Video", "A video file with the source's times and sound."),
    ("jsonl", "stages.sinks.jsonl", "Jsonl", "One JSON object a frame: what was found, where."),
    ("images", "stages.sinks.images", "Images", "One picture file a frame."),
    ("push", "stages.sinks.push", "Push", "A stream pushed to an RTSP, RTMP or other server."),
    ("web", "stages.sinks.web", "Web", "A page with the live picture and figures, over HTTP."),
    ("window", "stages.sinks.window", "Window", "A window on the screen."),
    ("null", "stages.sinks.null", "Null", "Counts the frames and keeps nothing."),
)

TABLES: Final[Mapping[Role, Mapping[str, Kind]]] = MappingProxyType(
    {"source": SOURCES, "stage": STAGES, "sink": SINKS}
)
