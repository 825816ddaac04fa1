"""A window on the screen. Closing it, q or Esc asks the run to stop; all other outputs complete.

The sink's thread runs it and owns the windows. cv2 is imported when it opens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import UsageError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink

STOP_KEYS: Final = frozenset({27, ord("q"), ord("Q")})
_KEY_MASK: Final = 0xFF


class WindowSinkConfig(Config):
    """How the window looks."""

    title: str = Field(default="rackfocus", description="Title; the stream's name follows it.")
    on_full: Literal["block", "drop_oldest"] = Field(
        default="drop_oldest",
        description="What to do with frames that come faster than they are shown.",
    )


def has_display(environ: Mapping[str, str], platform: str) -> bool:
    """Return whether a window can be opened: OpenCV aborts the whole process where it cannot."""
    if not platform.startswith(("linux", "freebsd")):
        return True
    return bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


class WindowSink(Sink):
    """Shows the newest frame of each stream in a window of its own.

    Raises:
        UsageError: (open) there is no screen.
    """

    def __init__(self, config: WindowSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self.on_full = config.on_full
        self.wants_stop = False
        self._cv2: Any = None
        self._shown: dict[str, int] = {}

    def open(self, context: RunContext) -> None:  # noqa: ARG002 - the contract's signature
        """Check that there is a screen; windows appear with their first frame."""
        if not has_display(os.environ, sys.platform):
            raise UsageError(
                f"{self.name}: there is no screen to open a window on (neither DISPLAY nor "
                "WAYLAND_DISPLAY is set); write to a file instead: -o out.mp4"
            )
        # Qt warns about fonts that the wheel does not ship and about threads; neither matters here.
        os.environ.setdefault("QT_LOGGING_RULES", "*.warning=false")
        import cv2

        self._cv2 = cv2
        self._shown = {}
        self.wants_stop = False

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Show the frames; after the user closed a window, nothing more is shown."""
        for frame in items:
            if self.wants_stop:
                break
            stream = frame.id.stream
            title = f"{self.config.title} - {stream}"
            if stream not in self._shown:
                # GUI_NORMAL: without the tool bar, which would cover part of the picture's height.
                look = self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO
                self._cv2.namedWindow(title, look | self._cv2.WINDOW_GUI_NORMAL)
                self._cv2.resizeWindow(title, *frame.size_wh)
                self._shown[stream] = 0
            self._cv2.imshow(title, frame.image)
            self._shown[stream] += 1
            key = self._cv2.waitKey(1)
            gone = self._cv2.getWindowProperty(title, self._cv2.WND_PROP_VISIBLE) < 1
            if gone or (key >= 0 and key & _KEY_MASK in STOP_KEYS):
                self.wants_stop = True
        return ()

    def close(self) -> None:
        """Close the windows. Idempotent."""
        if self._cv2 is not None and self._shown:
            self._cv2.destroyAllWindows()
            self._cv2.waitKey(1)
        self._cv2 = None

    def outputs(self) -> Sequence[OutputInfo]:
        """Return one entry a window."""
        return [OutputInfo(f"window:{stream}", count) for stream, count in self._shown.items()]
