"""An RTSP server that plays one file for ever, without encoding. Run it with the system's Python:

    /usr/bin/python3 rtsp_server.py FILE.mp4 PORT [USER PASSWORD]

Needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's base, good and bad plugins.
The file must be H.264. Says "ready" when it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - after the versions

CAPS = "video/x-h264,stream-format=byte-stream,alignment=au"
LAUNCH = (
    "( appsrc name=src is-live=true format=time block=true max-bytes=4000000 "
    "! h264parse config-interval=-1 ! identity sync=true ! rtph264pay name=pay0 pt=96 )"
)


def access_units(path):
    """Return [(bytes, pts, dts, duration)] of the file, and their caps."""
    pipeline = Gst.parse_launch(
        f"filesrc location={path} ! qtdemux ! h264parse config-interval=-1 ! {CAPS} "
        "! appsink name=sink sync=false max-buffers=0"
    )
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(Gst.State.PLAYING)
    units, caps = [], None
    while (sample := sink.emit("pull-sample")) is not None:
        buffer, caps = sample.get_buffer(), sample.get_caps()
        dts = buffer.pts if buffer.dts == Gst.CLOCK_TIME_NONE else buffer.dts
        units.append((buffer.extract_dup(0, buffer.get_size()), buffer.pts, dts, buffer.duration))
    pipeline.set_state(Gst.State.NULL)
    return units, caps


class Looping(GstRtspServer.RTSPMediaFactory):
    def __init__(self, units, caps):
        super().__init__()
        self.units, self.caps = units, caps
        self.length = max(p + d for _, p, _, d in units) - min(p for _, p, _, _ in units)
        self.set_shared(True)
        self.set_launch(LAUNCH)

    def do_configure(self, media):
        source = media.get_element().get_by_name_recurse_up("src")
        source.set_property("caps", self.caps)
        at = {"unit": 0, "offset": -min(d for _, _, d, _ in self.units)}

        def feed(source, _):
            data, pts, dts, duration = self.units[at["unit"]]
            buffer = Gst.Buffer.new_wrapped(data)
            buffer.pts, buffer.dts = pts + at["offset"], dts + at["offset"]
            buffer.duration = duration
            at["unit"] += 1
            if at["unit"] == len(self.units):
                at["unit"], at["offset"] = 0, at["offset"] + self.length
            source.emit("push-buffer", buffer)

        source.connect("need-data", feed)


def main():
    Gst.init(None)
    path, port, *login = sys.argv[1:]
    server = GstRtspServer.RTSPServer()
    server.set_service(port)
    factory = Looping(*access_units(path))
    if login:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*login), token)
        server.set_auth(auth)
        factory.add_role_from_structure(
            Gst.Structure.new_from_string(
                "viewer, media.factory.access=true, media.factory.construct=true"
            )
        )
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
