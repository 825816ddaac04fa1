"""The webcam source: a camera of this machine, through OpenCV.

Drivers block for as long as they like, so a thread of the source's own ("rackfocus-webcam") talks
to the camera and always drains it; `read` waits on a condition that `interrupt` can end. The
thread ends in `close`. One thread calls open, read and close; any may call interrupt.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import RefusedError, SourceError
from pipeline.frame import U8, Frame, FrameId, FrameTime
from pipeline.stage import Lost, ReadResult, RunContext, Source, StreamInfo, Timeout
from pipeline.url import Url
from stages.sources.negotiation import Capture, Mode, negotiate
from stages.sources.reconnecting import ReconnectConfig

_TIME_BASE: Final = Fraction(1, 1_000_000)
# How long `close` waits for a driver that is inside a read: twice the select timeout asked for.
_CLOSE_S: Final = 3.0
_SELECT_S: Final = "1"


class WebcamConfig(Config):
    """A camera of this machine, by number or /dev/videoN."""

    device: str = Field("0", description="camera number, or its path such as /dev/video0")
    width: int | None = Field(default=None, ge=1, le=16384, description="picture width to ask for")
    height: int | None = Field(
        default=None, ge=1, le=16384, description="picture height to ask for"
    )
    fps: float | None = Field(default=None, gt=0, le=1000, description="frame rate to ask for")
    pixel_format: Literal["auto", "mjpg", "raw"] = Field(
        "auto", description="auto: MJPG where the camera is faster or larger with it"
    )
    open_timeout_s: float = Field(10.0, gt=0, le=120, description="deadline for the first picture")
    read_timeout_s: float = Field(
        5.0, gt=0, le=120, description="the camera is lost after so long without a picture"
    )
    reconnect: ReconnectConfig = Field(
        ReconnectConfig(), description="what is done when the camera is lost"
    )

    @field_validator("device", mode="before")
    @classmethod
    def _check_device(cls, value: object) -> str:
        text = str(value)
        if not re.fullmatch(r"\d+|/dev/.+", text):
            raise ValueError(
                f"{text!r} is no camera: expected a number or a path such as /dev/video0"
            )
        return text


class WebcamSource(Source):
    """Delivers the freshest picture; one that was not read in time is replaced and counted.

    pts are microseconds since the first frame. counters: "skipped" (pictures replaced before they
    were read; their seq is missing), "corrupt" (reads in which the driver gave nothing).

    Args:
        capture: opens the device; `cv2.VideoCapture` unless a test brings its own.
    """

    live = True

    def __init__(
        self,
        config: WebcamConfig,
        name: str,
        *,
        capture: Callable[[int | str], Capture] | None = None,
    ) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._factory = capture
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def open(self, context: RunContext) -> StreamInfo:
        """Open the camera and wait for its first picture.

        Raises:
            SourceError: no such camera, in use, not allowed, or no picture within the deadline; the
                text lists the cameras that are there.
        """
        if self._thread is not None:
            self.close()
        self._clock = context.clock
        self._context = context
        self.counters = {"skipped": 0, "corrupt": 0}
        self._slot: tuple[int, int, U8] | None = None
        self._mode: Mode | None = None
        self._ended: str | None = None
        self._first_ns: int | None = None
        self._last_pts = -1
        self._taken = 0
        self._thread = threading.Thread(target=self._run, name="rackfocus-webcam", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._slot or self._ended or self._stop.is_set(),
                self._config.open_timeout_s,
            )
            slot, mode, ended = self._slot, self._mode, self._ended
        if slot is None or mode is None:
            stopped = self._stop.is_set()
            self.close()
            if stopped:
                raise SourceError(
                    f"camera {self._config.device}: stopped while it was being opened"
                )
            why = ended or f"no picture within {self._config.open_timeout_s:g} s"
            # Refused: who names a camera that is not there should not have to wait to hear it.
            raise RefusedError(f"camera {self._config.device}: {why}; {cameras_there()}")
        height, width = slot[2].shape[:2]
        rate = mode.rate_hz
        shown = f"{float(rate):g} fps" if rate else "a rate it does not tell"
        context.note(f"{self.name}: camera gives {width}x{height} at {shown} ({mode.pixel_format})")
        return StreamInfo(
            name=self.name,
            uri=Url(self._config.device),
            live=True,
            size_wh=(width, height),
            time_base=_TIME_BASE,
            rate_hz=rate,
        )

    def read(self, timeout_s: float) -> ReadResult:
        """Return the freshest picture not yet read; `Lost` when the camera stopped giving any.

        Raises:
            SourceError: the source is not open.
        """
        if self._thread is None:
            raise SourceError(f"{self.name}: read() before open()")
        with self._changed:
            self._changed.wait_for(
                lambda: self._slot or self._ended or self._stop.is_set(), max(0.0, timeout_s)
            )
            if self._stop.is_set():
                return Timeout()
            slot, self._slot = self._slot, None
            if slot is None:
                return Timeout() if self._ended is None else Lost(self._ended)
        seq, captured_ns, image = slot
        if self._first_ns is None:
            self._first_ns = captured_ns
        # Two pictures within a microsecond, or a clock that stood still, must not repeat a pts.
        pts = max((captured_ns - self._first_ns) // 1000, self._last_pts + 1)
        self._last_pts = pts
        self._taken += 1
        return Frame(FrameId(self.name, 0, seq), FrameTime(captured_ns, pts, _TIME_BASE), image)

    def interrupt(self) -> None:
        """End a waiting `open` or `read` at once, and later ones until `close`. Any thread."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread and release the camera. Idempotent."""
        if self._thread is not None and self._taken > 1 and self._last_pts > 0:
            rate = (self._taken - 1) / (self._last_pts / 1e6)
            self._context.note(f"{self.name}: {self._taken} frames at {rate:.1f} fps measured")
        self._close_thread()
        self._stop.clear()

    def _close_thread(self) -> None:
        if self._thread is None:
            return
        self.interrupt()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._context.note(
                f"{self.name}: the camera's driver still blocks {_CLOSE_S:g} s after close"
            )
        self._thread = None
        self._slot = None

    def _run(self) -> None:
        """The thread: open, negotiate, drain."""
        import cv2

        try:
            capture = self._open_device()
        except SourceError as error:
            self._end(str(error))
            return
        try:
            mode = negotiate(
                capture,
                width=self._config.width,
                height=self._config.height,
                fps=self._config.fps,
                pixel_format=self._config.pixel_format,
            )
            with self._changed:
                self._mode = mode
            self._drain(capture)
        except cv2.error as error:
            self._end(f"its driver failed: {error}")
        finally:
            capture.release()
            # Also when the driver raised: a waiting open or read must not sit out its deadline.
            self._end(self._ended or "its driver failed, or it was closed")

    def _open_device(self) -> Capture:
        import cv2

        # OpenCV lets a frozen camera hold a read for 10 s; it looks here at the first opening.
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", _SELECT_S)
        device = self._config.device
        target = int(device) if device.isdecimal() else device
        try:
            capture: Capture = (self._factory or cv2.VideoCapture)(target)
        except cv2.error as error:
            raise SourceError(f"cannot be opened ({error.err})") from error
        if not capture.isOpened():
            capture.release()
            path = Path(f"/dev/video{device}" if device.isdecimal() else device)
            if self._factory is None and path.exists():
                allowed = os.access(path, os.R_OK | os.W_OK)
                raise SourceError(
                    f"{path} is there but cannot be opened: "
                    + ("is another program using it?" if allowed else "permission denied")
                )
            raise SourceError("there is no such camera")
        return capture

    def _drain(self, capture: Capture) -> None:
        seq = 0
        heard = time.monotonic()
        while not self._stop.is_set():
            good, image = capture.read()
            captured_ns = self._clock.now_ns()
            if not good or image is None:
                if not capture.isOpened() or time.monotonic() - heard > self._config.read_timeout_s:
                    self._end(f"the camera gave no picture for {self._config.read_timeout_s:g} s")
                    return
                self.counters["corrupt"] += 1
                # An unplugged camera fails at once: without a pause this loop would burn a core.
                self._stop.wait(0.02)
                continue
            heard = time.monotonic()
            with self._changed:
                self.counters["skipped"] += self._slot is not None
                self._slot = (seq, captured_ns, image)
                self._changed.notify_all()
            seq += 1

    def _end(self, reason: str) -> None:
        with self._changed:
            self._ended = reason
            self._changed.notify_all()


def cameras_there() -> str:
    """Return a sentence part naming the video devices of this machine."""
    found = sorted(Path("/dev").glob("video[0-9]*"), key=lambda p: (len(p.name), p.name))
    if not found:
        return "no /dev/video* is there: connect a camera, or pass it into the container"
    return f"there are: {', '.join(map(str, found))}"
