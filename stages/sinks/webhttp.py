"""As much of HTTP/1.1 as the web sink speaks: requests without a body, answers with one. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
HEADERS: Final = (
    "Cache-Control: no-store\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Connection: close\r\n"
)
"""Of every answer."""


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    more: str = ""
    """Further header lines, each with its line end."""


class Request(NamedTuple):
    """What was asked for."""

    method: str
    path: str
    """Unescaped."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    """By lower-case name."""


def parse_request(head: bytes) -> Request | Answer:
    """Return the request, or the answer to what is none."""
    line, *lines = head.decode("latin-1").split("\r\n")
    match line.split(" "):
        case [method, target, version] if version.startswith("HTTP/1."):
            pass
        case _:
            return Answer(400, b"not an HTTP/1 request\n")
    try:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
    except ValueError:
        return Answer(400, b"not an address\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {key.strip().lower(): value.strip() for key, _, value in pairs}
    return Request(method, unquote(parts.path), query, headers)


def head_of(answer: Answer) -> bytes:
    """Return what comes before the answer's body."""
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n{HEADERS}{answer.more}"
        f"Content-Type: {answer.kind}\r\nContent-Length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode()
