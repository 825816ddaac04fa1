"""What this machine has for the work: cores, memory, packages, codecs, the device that models run
on, and where files are kept.

Looks and reports, changes nothing. The heavy packages are imported inside. Any thread.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from pipeline.errors import RackfocusError
from pipeline.home import home_folder
from pipeline.metrics import available_cores
from stages.backends.cuda_driver import cuda_devices
from stages.sinks.containers import ENCODERS
from stages.sinks.window import has_display
from stages.sources.webcam import cameras_there

Rows = list[tuple[str, str]]

_PACKAGES: Final = (
    (("av",), "video files and streams", "pip install -e ."),
    (("opencv-python", "opencv-python-headless"), "pictures and cameras", "pip install -e ."),
    (("numpy",), "arrays", "pip install -e ."),
    (("onnxruntime-gpu", "onnxruntime"), "runs models", "pip install -e ."),
    (("openvino",), "a second runtime for the CPU", 'pip install -e ".[openvino]"'),
    (("torch",), "exports models, --backend torch", 'pip install -e ".[torch]"'),
)
_DECODERS: Final = ("h264", "hevc", "av1", "vp9", "mjpeg", "mpeg4")
_CGROUP: Final = Path("/sys/fs/cgroup")


def machine() -> list[tuple[str, Rows]]:
    """Return (title, rows of (what, finding)) about this machine; models are not loaded."""
    return [
        ("machine", _system()),
        ("packages", _packages()),
        ("video", _video()),
        ("folders and devices", _places()),
    ]


def _system() -> Rows:
    return [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("cores", cores(available_cores(), os.cpu_count(), _first_line(_CGROUP / "cpu.max"))),
        ("memory", _memory()),
        ("NVIDIA GPUs", _gpus()),
    ]


def cores(usable: int, total: int | None, quota: str | None) -> str:
    """Return in words what there is of processors.

    Args:
        usable: cores that this process may run on.
        total: cores of the machine.
        quota: the text of Linux's `cpu.max`: microseconds allowed in each period, or "max".
    """
    text = f"{usable}" if total in (None, usable) else f"{usable} of {total} for this process"
    allowed, _, period = (quota or "").partition(" ")
    if allowed.isdecimal() and period.isdecimal() and int(period):
        share = int(allowed) / int(period)
        if share < usable:
            text += f", of which the container may use the time of {share:g}"
    return text


def _memory() -> str:
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "cannot be told on this system"
    text = f"{page * pages / 1e9:.1f} GB, {page * free / 1e9:.1f} GB untouched"
    limit = _first_line(_CGROUP / "memory.max")
    if limit is not None and limit.isdecimal() and int(limit) < page * pages:
        text += f"; the container may use {int(limit) / 1e9:.1f} GB"
    return text


def _gpus() -> str:
    count, problem = cuda_devices()
    return f"{count}, by the driver" if count else f"none: {problem}"


def _packages() -> Rows:
    return [(names[0], _package(names, use, install)) for names, use, install in _PACKAGES]


def _package(names: Sequence[str], use: str, install: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if not found:
        return f"not installed ({use}): {install}"
    clash = "; two of them share one folder: uninstall both, then install one"
    return f"{' and '.join(found)}{clash if len(found) > 1 else ''} ({use})"


def _video() -> Rows:
    try:
        import av
        from av.codec import Codec
    except ImportError as error:
        return [("PyAV", f"does not load: {error}")]
    from stages.sinks.encoding import check_encoder

    def decodes(name: str) -> bool:
        try:
            return bool(Codec(name, "r"))
        except (ValueError, av.FFmpegError):
            return False

    missing = [name for name in _DECODERS if not decodes(name)]
    writes, lacking = [], []
    for codec, encoder in ENCODERS.items():
        try:
            check_encoder(encoder.name, codec)
            writes.append(f"{codec} ({encoder.name})")
        except RackfocusError as error:
            lacking.append(f"{error}")
    library = ".".join(map(str, av.library_versions["libavcodec"]))
    rows = [
        ("FFmpeg", f"inside PyAV {av.__version__}, libavcodec {library}; no program is needed"),
        ("decodes", ", ".join(n for n in _DECODERS if n not in missing) + " and others"),
        ("encodes", ", ".join(writes)),
    ]
    rows += [("missing", f"decoders: {', '.join(missing)}")] if missing else []
    return rows + [("not here", why) for why in lacking]


def _places() -> Rows:
    display = "yes" if has_display(os.environ, sys.platform) else "no: runs need -o SINK"
    return [
        ("home", home(home_folder())),
        ("cameras", cameras_there().removeprefix("there are: ")),
        ("screen", display),
    ]


def home(folder: Path) -> str:
    """Return in words whether downloads and engines can be kept in a folder, and how much is."""
    text = f"{folder}"
    if not folder.exists():
        parent = next(p for p in folder.absolute().parents if p.exists())
        able = os.access(parent, os.W_OK)
        remedy = "" if able else f"; {parent} cannot be written: set RACKFOCUS_HOME"
        return f"{text}, not made yet{remedy}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{text}: cannot be written ({error.strerror}): set RACKFOCUS_HOME to another folder"
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return f"{text}, writable, {size / 1e6:.1f} MB in it"


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
