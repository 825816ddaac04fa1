"""Addresses that cannot leak: a `Url` whose every printed form has its credentials masked.

Sources and sinks hold addresses as `Url` and call `reveal()` only where the library that connects
needs the real one. `redact` cleans free text (library messages, child processes' stderr).
Pure and immutable; safe from any thread.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
NETWORK_SCHEMES: Final = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "tcp", "http", "https")
"""Schemes of addresses that are read over the network."""

# Scheme, then everything up to the LAST '@' before whitespace or a quote: passwords in the wild
# contain '/', '#', '?', ':' and even '@' unescaped, and a too long match only hides more. One slash
# is enough, since `Path` makes one of two; so is a forgotten colon. `C:/` is no scheme.
_SCHEME: Final = r"(?P<scheme>(?:\b[a-zA-Z][a-zA-Z0-9+.-]+:/+|//))"
_USERINFO: Final = re.compile(_SCHEME + r"(?P<info>[^\s'\"<>]*)@")
# Where the whole text is one address, blanks and quotes are part of a password too.
_WHOLE: Final = re.compile(_SCHEME + r"(?P<info>.*)@", re.DOTALL)
# Secrets that cameras and CDNs take as query parameters.
_QUERY: Final = re.compile(
    r"(?P<key>[?&;](?:[\w-]*(?:pass|pwd|passwd|password|token|secret|key|auth|sig|signature|user"
    r"|username|login|credential|session)[\w-]*))=(?P<value>[^&;#\s'\"<>]*)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`."""
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    return _QUERY.sub(rf"\g<key>={MASK}", text)


class Url:
    """An address whose `str`, `repr` and format never show user, password or token."""

    __slots__ = ("_raw",)

    def __init__(self, raw: str) -> None:
        self._raw = raw

    def reveal(self) -> str:
        """Return the address with its credentials, for the library that connects. Never print
        it."""
        return self._raw

    @property
    def secrets(self) -> tuple[str, ...]:
        """The parts that `str` hides, longest first: for cleaning texts that quote them alone."""
        found = [m["info"] for m in _WHOLE.finditer(self._raw)]
        parts = {part for info in found for part in (info, info.partition(":")[2]) if part}
        parts |= {m["value"] for m in _QUERY.finditer(self._raw) if m["value"]}
        return tuple(sorted(parts, key=len, reverse=True))

    def clean(self, text: str) -> str:
        """Return `text` without any URL credentials, also where this one's stand alone."""
        text = redact(text)
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text

    def __str__(self) -> str:
        return redact(_WHOLE.sub(rf"\g<scheme>{MASK}@", self._raw))

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and other._raw == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __reduce__(self) -> str | tuple[object, ...]:
        # A pickle would carry the password into whatever file it is written to.
        raise TypeError("a Url holds credentials and cannot be pickled")
