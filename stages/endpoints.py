"""Network addresses in configurations: checked, shown without credentials, opened with them.

What sources and sinks of the network share. Imports PyAV inside `explain`. Pure; any thread.
"""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import quote

from pydantic import PlainSerializer, PlainValidator

from pipeline.errors import RefusedError, SourceError
from pipeline.url import NETWORK_SCHEMES, Url

_HOST: Final = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")
# All that must not stand in credentials (RFC 3986, section 3.2.1), and a percent sign that escapes
# nothing.
_ESCAPE: Final = re.compile(r"%(?![0-9a-fA-F]{2})|[^A-Za-z0-9._~!$&'()*+,;=%-]")


def _url(value: object) -> Url:
    if isinstance(value, Url):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected an address such as rtsp://camera/stream")
    url = Url(value.strip())
    if url.reveal().partition("://")[0].lower() not in NETWORK_SCHEMES:
        raise ValueError(f"{url} is no address of a kind known here ({', '.join(NETWORK_SCHEMES)})")
    return url


Address = Annotated[Url, PlainValidator(_url), PlainSerializer(str, return_type=str)]
"""A config field's type: text becomes a `Url`, which is written without its credentials."""


def connectable(url: Url) -> str:
    """Return the address with its credentials, these escaped where they need it. Never print it.

    Passwords are typed as they are: '@', '/', '#' and '?' in them would be taken for the address's
    own, blanks and quotes are not allowed in one. What is escaped already stays.
    """
    scheme, _, rest = url.reveal().partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # "camera/path@2" has no credentials; "user:pass/word@camera" does: it is no host and port.
    if "@" not in rest or ("@" not in authority and _HOST.fullmatch(authority)):
        return url.reveal()
    login, _, place = rest.rpartition("@")
    user, colon, password = login.partition(":")
    user, password = (_ESCAPE.sub(lambda m: quote(m[0], safe=""), t) for t in (user, password))
    return f"{scheme}://{user}{colon}{password}@{place}"


def explain(url: Url, error: Exception) -> SourceError:
    """Return an error in words, without credentials; a `RefusedError` where trying again cannot
    help."""
    import av

    text = url.clean(getattr(error, "strerror", None) or str(error))
    kind: type[SourceError] = SourceError
    remedy = ""
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        kind, remedy = RefusedError, ": check user and password in the address"
    elif isinstance(error, av.error.HTTPNotFoundError):
        kind, remedy = RefusedError, ": check the path behind the server's name"
    elif isinstance(error, av.error.ProtocolNotFoundError | av.error.DemuxerNotFoundError):
        kind, remedy = RefusedError, ": the FFmpeg inside PyAV is built without it"
    elif isinstance(error, av.error.ExitError | TimeoutError):
        text = "nothing came within the deadline"
    elif isinstance(error, av.error.InvalidDataError):
        remedy = ": what comes is no video that FFmpeg can read"
    elif isinstance(error, ConnectionRefusedError):
        remedy = ": is the server running, and is the port right?"
    return kind(f"{url}: {text}{remedy}")
