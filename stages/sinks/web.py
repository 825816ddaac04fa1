"""A page with the live picture and the run's figures, served over HTTP.

The sink's thread runs it and only leaves the newest frame of each stream for the server's thread,
which ends in `close`: no viewer, however slow, can hold the sink up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr

from pipeline.config import Config
from pipeline.errors import SinkError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink

if TYPE_CHECKING:
    from stages.sinks.webserver import WebServer

_TOKEN_CHARS: Final = 8


def _token(value: object) -> object:
    if value is None or isinstance(value, SecretStr):
        return value
    if not isinstance(value, str) or len(value) < _TOKEN_CHARS:
        raise ValueError(
            f"it should be text of at least {_TOKEN_CHARS} characters (in quotes where it is all "
            "digits)"
        )
    return SecretStr(value)


class WebSinkConfig(Config):
    """Where the page is served and to whom."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; 0.0.0.0 lets other machines in, so give a token then",
    )
    port: int = Field(8080, ge=0, le=65535, description="0: any that is free; it is printed")
    token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        None,
        description="asked of everyone, as ?token=... or as 'Authorization: Bearer ...'; kept out "
        "of logs and reports. Process lists show flags, so write it in a file",
    )
    quality: int = Field(80, ge=1, le=100, description="of the JPEG pictures")
    max_width: int | None = Field(
        1280, ge=16, le=16384, description="wider pictures are scaled down; null: never"
    )
    max_viewers: int = Field(
        16, ge=1, le=1000, description="live pictures shown at a time, over all streams"
    )
    viewer_timeout_s: float = Field(
        10.0, gt=0, le=600, description="a viewer that takes a picture no faster is dropped"
    )


class WebSink(Sink):
    """Serves page, MJPEG, figures and metrics; see `webserver` for the addresses.

    A frame is encoded only if someone watches, and once for all who do. counters: "encoded",
    "requests", "refused" (wrong token, foreign host, no place), "dropped_viewers".

    Raises:
        UsageError: (open) the port is taken or may not be used, or the host is not one of this
            machine's.
        SinkError: (process) the server ended by itself.
    """

    def __init__(self, config: WebSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._server: WebServer | None = None
        self._address: str | None = None
        self._frames = 0

    def open(self, context: RunContext) -> None:
        """Listen; from here on the page is there."""
        from stages.sinks.webserver import WebServer

        self.close()
        self._frames = 0
        self.counters = {"encoded": 0, "requests": 0, "refused": 0, "dropped_viewers": 0}
        self._server = WebServer(self.config, self.name, context, self.counters)
        self._address = self._server.address
        asked = " (asks for the token)" if self.config.token is not None else ""
        context.note(f"{self.name}: {self._address}{asked}")
        if self.config.token is None and not self._server.loopback:
            context.note(
                f"{self.name}: anyone who reaches {self.config.host} can watch; a token keeps "
                "others out"
            )
        self._server.start()

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Leave the frames for those who watch; never waits."""
        if self._server is None or self._server.failure is not None:
            cause = None if self._server is None else self._server.failure
            raise SinkError(f"{self.name}: the server ended by itself: {cause!r}")
        for frame in items:
            self._server.show(frame)
        self._frames += len(items)
        return ()

    def close(self) -> None:
        """Send everyone away and end the server. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return the address and how many frames could be seen there."""
        if self._address is None:
            return []
        return [OutputInfo(self._address, self._frames, details=dict(self.counters))]
