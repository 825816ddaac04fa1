"""The HTTP server of the web sink: one thread, asyncio, GET and HEAD only.

    /                     the page
    /stream/NAME.mjpg     live pictures (multipart/x-mixed-replace)
    /picture/NAME.jpg     the newest picture
    /stats.json, /metrics the run's figures, for people and for Prometheus
    /healthz, /readyz     the server answers; every stage is open and every source gave a frame

The standard library's streams are used rather than a web framework because they let a viewer be
dropped who stopped reading (`transport.abort`) and say when one has taken the last picture
(a write buffer of zero): both belong to the promise that no viewer costs anybody anything.
Connections are closed after each answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.frame import Frame
from pipeline.stage import RunContext
from stages.sinks.webaccess import Access, listen, url_of
from stages.sinks.webfigures import Sampler, as_json, as_prometheus
from stages.sinks.webhttp import HEADERS, Answer, Request, head_of, parse_request
from stages.sinks.webpictures import Picture, Pictures

if TYPE_CHECKING:
    from stages.sinks.web import WebSinkConfig

_HEAD_BYTES: Final = 16 * 1024
_HEAD_S: Final = 5.0
_MORE_CONNECTIONS: Final = 32
"""Besides the viewers': for pages and figures."""
_SEND_BUFFER_BYTES: Final = 256 * 1024
"""What the system keeps for a viewer: more would be pictures that grow old under way."""
_LOOK_S: Final = 1.0
"""How often a viewer who waits for a picture is checked for having left."""
_RETRY_S: Final = 0.1
_STOP_S: Final = 1.0
_BOUNDARY: Final = "rackfocus-picture"
_POLICY: Final = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
    "style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class WebServer:
    """Serves one sink. `show` may be called from any thread, the rest by the sink's.

    Args:
        config: the sink's.
        name: the sink's, for notes and the thread.
        context: gives the figures.
        counters: the sink's; counted in the server's thread.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(
        self, config: WebSinkConfig, name: str, context: RunContext, counters: dict[str, int]
    ) -> None:
        self.failure: BaseException | None = None
        """What ended the server although nobody asked for it."""
        self._config = config
        self._name = name
        self._context = context
        self._counters = counters
        self._pictures = Pictures(config.quality, config.max_width)
        self._sampler = Sampler(context, lambda: self._watching)
        self._page = (Path(__file__).with_name("web.html")).read_text(encoding="utf-8")
        self._socket = listen(config.host, config.port, name)
        self.address = url_of(self._socket)
        self._access = Access(config.host, self._socket, config.token)
        self._watching = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"rackfocus {name}", daemon=True)

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        return self._access.loopback

    def start(self) -> None:
        """Start the server's thread; returns when it answers."""
        self._thread.start()
        self._ready.wait()

    def show(self, frame: Frame) -> None:
        """Take the newest frame of a stream. Never waits."""
        self._pictures.show(frame)
        if self._watching:
            self._tell(self._wake)

    def stop(self) -> None:
        """Send everyone away and wait for the thread to end."""
        self._tell(lambda: self._asked_to_stop.set())
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            self._context.note(f"{self._name}: the server did not end within {_STOP_S:g} s")

    def _tell(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(action)

    def _run(self) -> None:
        try:
            # The kind of loop that watches sockets, also on Windows.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the sink raises it at its next frame
            self.failure = error
        finally:
            self._socket.close()
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked_to_stop = asyncio.Event()
        self._fresh = asyncio.Event()
        self._socket.setblocking(False)  # noqa: FBT003 - the library's signature
        self._listen()
        self._ready.set()
        await self._asked_to_stop.wait()
        self._loop.remove_reader(self._socket)
        # A task that was cancelled before it began could not close its connection; leaving cancels
        # them all.
        await asyncio.sleep(0)

    def _listen(self) -> None:
        if not self._asked_to_stop.is_set():
            asyncio.get_running_loop().add_reader(self._socket, self._let_in)

    def _let_in(self) -> None:
        """Take one connection. Not `asyncio.start_server` or `sock_accept`: ended while they let
        somebody in, they leave that connection open."""
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no more files may be open, and asking at once again would spin
            loop.remove_reader(self._socket)
            loop.call_later(_RETRY_S, self._listen)
            return
        connection.setblocking(False)  # noqa: FBT003 - the library's signature
        task = loop.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        fresh, self._fresh = self._fresh, asyncio.Event()
        fresh.set()

    async def _serve(self, connection: socket.socket) -> None:
        """Handle one connection, whatever comes over it."""
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            reader, writer = await asyncio.open_connection(sock=connection, limit=_HEAD_BYTES)
        except OSError:
            connection.close()
            return
        # With nothing kept here, a write is complete when the system has taken it.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._answer(reader, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass  # gone, or too slow (TimeoutError is an OSError)
        except Exception as error:  # noqa: BLE001 - one connection must not end the others
            self._context.note(f"{self._name}: a request failed: {type(error).__name__}: {error}")
            with contextlib.suppress(OSError):
                await self._send(writer, Answer(500, b"failed\n"), body=True)
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > self._config.max_viewers + _MORE_CONNECTIONS:
            self._counters["refused"] += 1
            await self._send(writer, Answer(503, b"too many connections\n"), body=True)
            return
        request = await self._request(reader)
        self._counters["requests"] += 1
        if not isinstance(request, Request):
            await self._send(writer, request, body=True)
            return
        stream = request.path.removeprefix("/stream/").removesuffix(".mjpg")
        refused = self._refuse(request)
        if refused is None and request.path == f"/stream/{stream}.mjpg":
            refused = self._no_such(stream) or self._no_place()
            if refused is None:
                await self._watch(stream, reader, writer, head=request.method == "HEAD")
                return
        answer = refused or self._page_of(request)
        await self._send(writer, answer, body=request.method == "GET")

    async def _request(self, reader: asyncio.StreamReader) -> Request | Answer:
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return Answer(431, b"the request's head is too large\n")
        return parse_request(head)

    def _refuse(self, request: Request) -> Answer | None:
        """Return why this request is not served; None where it is."""
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"GET and HEAD only\n", more="Allow: GET, HEAD\r\n")
        if not self._access.knows_host(request.headers.get("host")):
            self._counters["refused"] += 1
            return Answer(421, b"this address is served for localhost; others need a token\n")
        given = request.query.get("token", [""])[-1]
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = bearer.strip().encode("latin-1").decode(errors="replace")
        if not self._access.admits(given):
            self._counters["refused"] += 1
            text = b"the token is missing or wrong: open /?token=... or send it as Bearer\n"
            return Answer(401, text, more="WWW-Authenticate: Bearer\r\n")
        return None

    def _no_such(self, stream: str) -> Answer | None:
        known = self._streams()
        if stream in known:
            return None
        return Answer(404, f"no stream {stream!r}; there are: {', '.join(known)}\n".encode())

    def _no_place(self) -> Answer | None:
        if self._watching < self._config.max_viewers:
            return None
        self._counters["refused"] += 1
        text = f"all {self._config.max_viewers} places are taken (max_viewers)\n"
        return Answer(503, text.encode(), more="Retry-After: 5\r\n")

    def _streams(self) -> list[str]:
        sample = self._sampler.sample()
        known = () if sample is None else sample.figures.streams  # also those not yet open
        return sorted({*known, *self._pictures.streams()})

    def _page_of(self, request: Request) -> Answer:
        path = request.path
        name = path.removeprefix("/picture/").removesuffix(".jpg")
        if path == f"/picture/{name}.jpg":
            return self._no_such(name) or self._picture(name)
        match path:
            case "/":
                nonce = secrets.token_urlsafe(16)
                more = f"Content-Security-Policy: {_POLICY.format(nonce=nonce)}\r\n"
                body = self._page.replace("{{nonce}}", nonce).encode()
                return Answer(200, body, "text/html; charset=utf-8", more)
            case "/healthz":
                return Answer(200, b"ok\n")
            case "/stats.json" | "/metrics" | "/readyz":
                return self._figures(path)
        return Answer(404, b"no such page; the start page is /\n")

    def _picture(self, stream: str) -> Answer:
        picture = self._take(stream)
        if picture is None:
            return Answer(503, b"no picture yet\n", more="Retry-After: 1\r\n")
        return Answer(200, picture.jpeg, "image/jpeg")

    def _figures(self, path: str) -> Answer:
        sample = self._sampler.sample()
        if sample is None:
            return Answer(503, b"no figures: this sink is not part of a run\n")
        if path == "/stats.json":
            body = json.dumps(as_json(sample, self._context), allow_nan=False).encode()
            return Answer(200, body, "application/json")
        if path == "/metrics":
            text = as_prometheus(sample).encode()
            return Answer(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if sample.figures.ready:
            return Answer(200, b"ready\n")
        missing = ", ".join(sample.figures.waiting_for)
        what = f"the first frame of {missing}" if sample.figures.opened else "the stages to open"
        return Answer(503, f"waiting for {what}\n".encode(), more="Retry-After: 1\r\n")

    async def _watch(
        self,
        stream: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        head: bool,
    ) -> None:
        """Send pictures, always the newest, until the viewer leaves or takes too long."""
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        writer.write(f"HTTP/1.1 200 OK\r\n{HEADERS}Content-Type: {kind}\r\n\r\n".encode())
        if head:
            await self._taken(writer)
            return
        self._watching += 1
        try:
            writer.write(f"--{_BOUNDARY}\r\n".encode())
            seen: Picture | None = None
            while not reader.at_eof():
                fresh = self._fresh  # before the look: a frame that comes after it sets this one
                if not self._pictures.is_new(stream, seen):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await fresh.wait()
                    continue
                seen = self._take(stream)
                if seen is not None:
                    about = f"Content-Type: image/jpeg\r\nContent-Length: {len(seen.jpeg)}\r\n\r\n"
                    # The boundary at once, not with the next picture: browsers show one when it
                    # has come.
                    end = f"\r\n--{_BOUNDARY}\r\n"
                    writer.write(b"".join((about.encode(), seen.jpeg, end.encode())))
                    await self._taken(writer)
        except TimeoutError:
            self._counters["dropped_viewers"] += 1
            raise
        finally:
            self._watching -= 1

    def _take(self, stream: str) -> Picture | None:
        picture = self._pictures.take(stream)
        self._counters["encoded"] = self._pictures.encoded
        return picture

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, *, body: bool) -> None:
        writer.write(head_of(answer) + (answer.body if body else b""))
        await self._taken(writer)

    async def _taken(self, writer: asyncio.StreamWriter) -> None:
        """Wait until the system has taken what was written.

        Raises:
            TimeoutError: the viewer reads too slowly, or not at all.
        """
        async with asyncio.timeout(self._config.viewer_timeout_s):
            await writer.drain()
