"""Where the web sink listens, and who is let in. Pure apart from opening the socket."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import re
import socket

from pydantic import SecretStr

from pipeline.errors import UsageError


def listen(host: str, port: int, sink: str) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: the port is taken or reserved, or the host is not one of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(
            f"{sink}: the host {host!r} is not known ({error}); expected an address of this "
            "machine: 127.0.0.1 for itself alone, 0.0.0.0 for the network"
        ) from None
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        where = f"{sink}: cannot listen on port {port} of {host}"
        if error.errno == errno.EADDRINUSE:
            text = "another program (or run) has it; choose another, for example "
            text += f"-o web:{port + 1 if port < 65535 else port - 1}, or -o web:0 for any"
        elif error.errno == errno.EACCES:
            text = "this user may not use it; choose one above 1023, for example -o web:8080"
        elif error.errno == errno.EADDRNOTAVAIL:
            text = "this machine has no such address; 127.0.0.1 is itself, 0.0.0.0 all it has"
        else:
            text = str(error.strerror or error)
        raise UsageError(f"{where}: {text}") from None


def url_of(listener: socket.socket) -> str:
    """Return the address to open in a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Access:
    """Decides who is let in.

    Without a token a page of this machine alone is served under this machine's names only: else any
    web page that its user opens could give its own name this address, and look through the camera
    (DNS rebinding).

    Args:
        host: as configured.
        listener: what is listened on.
        token: what must be given; None for nothing.
    """

    def __init__(self, host: str, listener: socket.socket, token: SecretStr | None) -> None:
        address = listener.getsockname()[0]
        self.loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        """This machine alone reaches it."""
        self._names = {host.lower(), address, "localhost", "127.0.0.1", "::1"}
        self._token = token

    def knows_host(self, header: str | None) -> bool:
        """Return whether a request with this Host header may be answered."""
        if header is None or self._token is not None or not self.loopback:
            return True
        return re.sub(r":\d+$", "", header.lower()).strip("[]") in self._names

    def admits(self, given: str) -> bool:
        """Return whether this token opens the door; takes as long for every wrong one."""
        if self._token is None:
            return True
        return hmac.compare_digest(given.encode(), self._token.get_secret_value().encode())
