"""What the SOURCE and SINK texts of the command line mean: kind and options.

Looks at the text, and asks the file system only whether a source is a folder. Every text that is
not understood is an error that lists what would be. Safe from any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError
from pipeline.problems import did_you_mean
from pipeline.url import NETWORK_SCHEMES, Url

VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".mov")
"""Containers that the video sink writes."""
IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Pictures that the image source reads."""
WRITTEN_IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
"""Pictures that the image sink writes."""

SOURCE_FORMS: Final = (
    "a video file, a folder of images, a pattern such as 'shots/*.jpg', a camera number such as 0, "
    "/dev/video0, an rtsp://, rtmp://, srt:// or http(s):// address, synthetic:shapes, or "
    "chaos:SOURCE?FAULTS"
)
SINK_FORMS: Final = (
    "a video file (.mp4, .mkv, .mov), a .jsonl file, numbered images such as "
    "frames/%06d.jpg, an rtsp://, rtmp:// or udp:// address to push to, web or web:8080 for a page "
    "in the browser, window, or null"
)

PUSH_SCHEMES: Final = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "tcp")
"""Schemes that the push sink sends to."""

_SCHEME: Final = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://")
_NUMBERED: Final = re.compile(r"%0?\d*d")
_WEB: Final = re.compile(r"web(?::(?P<port>\d+))?")
_CAMERA: Final = re.compile(r"(?:/dev/video)?(?P<index>\d+)")


@dataclass(frozen=True, slots=True)
class Address:
    """What a text stands for."""

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)
    stream: str = ""
    """A name for the stream, from the address; "" for sinks."""


def parse_source(text: str) -> Address:
    """Return the kind and options of a SOURCE.

    Raises:
        UsageError: the text stands for nothing that can be read; credentials are masked.
    """
    text = text.strip()
    if camera := _CAMERA.fullmatch(text):
        device: object = int(text) if text.isdigit() else text
        return Address("webcam", {"device": device}, f"camera{camera['index']}")
    if text.startswith("synthetic:"):
        return _synthetic(text)
    if text.startswith("chaos:"):
        return _chaos(text)
    if scheme := _SCHEME.match(text):
        name = scheme["scheme"].lower()
        if name in NETWORK_SCHEMES:
            return Address("network", {"url": Url(text)}, _host_name(text))
        if name != "file":
            near = did_you_mean(name, NETWORK_SCHEMES) or ";"
            raise UsageError(
                f"source '{Url(text)}': {name}:// is not known{near} a source is {SOURCE_FORMS}"
            )
        text = text[scheme.end() :]
    if not text:
        raise UsageError(f"an empty source; expected {SOURCE_FORMS}")
    path = Path(text)
    if path.is_dir() or _is_pattern(text) or path.suffix.lower() in IMAGE_SUFFIXES:
        # The folder names the stream of a pattern: the pattern itself is no name.
        stem = path.parent.name if _is_pattern(text) else path.resolve().stem
        return Address("images", {"path": text}, stream_name(stem or "images"))
    return Address("file", {"path": text}, stream_name(path.stem))


def parse_sink(text: str) -> Address:
    """Return the kind and options of a SINK.

    Raises:
        UsageError: the text stands for nothing that can be written; credentials are masked.
    """
    text = text.strip()
    if text in ("window", "null"):
        return Address(text)
    if web := _WEB.fullmatch(text):
        return Address("web", {} if web["port"] is None else {"port": int(web["port"])})
    if scheme := _SCHEME.match(text):
        name = scheme["scheme"].lower()
        if name in ("http", "https"):
            raise UsageError(
                f"sink '{Url(text)}': {name}:// cannot be pushed to; web:8080 serves a page on "
                "that port of this machine (other addresses: --set web.host=...)"
            )
        if name not in PUSH_SCHEMES:
            near = did_you_mean(name, PUSH_SCHEMES) or ";"
            raise UsageError(
                f"sink '{Url(text)}': {name}:// cannot be pushed to{near} a sink is {SINK_FORMS}"
            )
        return Address("push", {"url": Url(text)})
    suffix = Path(text).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return Address("video", {"path": text})
    if suffix == ".jsonl":
        return Address("jsonl", {"path": text})
    if suffix in WRITTEN_IMAGE_SUFFIXES:
        if not _NUMBERED.search(Path(text).name):
            raise UsageError(
                f"sink '{text}': image files need a frame number in their name, for example "
                f"{Path(text).with_name(f'{Path(text).stem}-%06d{suffix}')}"
            )
        return Address("images", {"path": text})
    hint = did_you_mean(text, ("window", "web", "null"))
    if not hint and suffix:
        hint = did_you_mean(suffix, (*VIDEO_SUFFIXES, ".jsonl", *WRITTEN_IMAGE_SUFFIXES))
    told = f"extension '{suffix}' is not known" if suffix else "not a known output"
    raise UsageError(f"sink '{text}': {told}{hint or ';'} a sink is {SINK_FORMS}")


def stream_name(text: str) -> str:
    """Return `text` as a stream name: letters, digits, '_', '.' and '-', at least one."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "stream"


def _host_name(text: str) -> str:
    """Return a stream name from an address: its host, without user, password and port."""
    rest = text.partition("://")[2].rpartition("@")[2]
    return stream_name(re.split(r"[/?#:\\]", rest, maxsplit=1)[0])


def _is_pattern(text: str) -> bool:
    # A file whose name has brackets, as downloads often do, is a file and not a pattern.
    return any(sign in text for sign in "*?[") and not Path(text).exists()


def _chaos(text: str) -> Address:
    from stages.sources.chaos import split_uri

    source, options = split_uri(text)
    return Address("chaos", {"source": source, **options}, parse_source(source).stream)


def _synthetic(text: str) -> Address:
    from stages.sources.synthetic import parse_uri

    config = parse_uri(text)
    scene = text.removeprefix("synthetic:").partition("?")[0]
    return Address("synthetic", config.model_dump(exclude_unset=True), stream_name(scene))
