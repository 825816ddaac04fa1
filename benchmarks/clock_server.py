"""An RTSP server whose picture shows when it was made. Run it with the system's Python:

    /usr/bin/python3 clock_server.py PORT [WIDTH HEIGHT RATE]

The picture is noisy, as a camera's is, and carries the milliseconds of the monotonic clock, which
all processes of a Linux machine share, as two equal rows of 32 cells, dark 0 and bright 1, most
significant bit first, along its lower edge. Needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi
and GStreamer's base, good, bad and ugly plugins (x264enc). Says "ready" when it listens.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - after the versions

BITS = 32
TEMPLATES = 8
LAUNCH = (
    "( appsrc name=src is-live=true format=time do-timestamp=true max-bytes=3000000 "
    "! x264enc tune=zerolatency speed-preset=ultrafast bitrate=6000 key-int-max={rate} threads=1 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


class Clock(GstRtspServer.RTSPMediaFactory):
    """Draws and pushes pictures for as long as somebody watches."""

    def __init__(self, width: int, height: int, rate: int) -> None:
        super().__init__()
        self.width, self.height, self.rate = width, height, rate
        # Around mid grey, sixteen levels of noise.
        table = bytes(110 + value // 16 for value in range(256))
        size = width * height
        self.templates = [os.urandom(size).translate(table) for _ in range(TEMPLATES)]
        self.chroma = bytes([128]) * (size // 2)
        self.set_shared(True)
        self.set_launch(LAUNCH.format(rate=2 * rate))

    def do_configure(self, media: GstRtspServer.RTSPMedia) -> None:
        """Start feeding: called by the server when the first viewer comes."""
        source = media.get_element().get_by_name_recurse_up("src")
        caps = f"video/x-raw,format=I420,width={self.width},height={self.height}"
        source.set_property("caps", Gst.Caps.from_string(f"{caps},framerate={self.rate}/1"))
        stop = threading.Event()
        media.connect("unprepared", lambda _: stop.set())
        threading.Thread(target=self.feed, args=(source, stop), daemon=True).start()

    def feed(self, source: Gst.Element, stop: threading.Event) -> None:
        """Push pictures at their rate until told to stop."""
        due = time.monotonic()
        number = 0
        while not stop.is_set():
            data = self.picture(number, int(time.monotonic() * 1000))
            if source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) != Gst.FlowReturn.OK:
                return
            number += 1
            due += 1 / self.rate
            stop.wait(max(0.0, due - time.monotonic()))

    def picture(self, number: int, milliseconds: int) -> bytes:
        """Return one I420 picture with its clock."""
        luma = bytearray(self.templates[number % TEMPLATES])
        cell = self.width // BITS
        row = b"".join(
            (b"\xeb" if milliseconds >> (BITS - 1 - bit) & 1 else b"\x14") * cell
            for bit in range(BITS)
        )
        row += b"\x14" * (self.width - len(row))
        band = row * (2 * cell)
        luma[-len(band) :] = band
        return bytes(luma) + self.chroma


def main() -> None:
    """Serve rtsp://127.0.0.1:PORT/live until killed."""
    Gst.init(None)
    port, *shape = sys.argv[1:]
    width, height, rate = map(int, shape or (1280, 720, 30))
    server = GstRtspServer.RTSPServer()
    server.set_service(port)
    server.get_mount_points().add_factory("/live", Clock(width, height, rate))
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
