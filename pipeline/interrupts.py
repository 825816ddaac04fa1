"""Ctrl-C and the other ways in which a system asks a run to stop: the first drains, the second
aborts. For the main thread, as signals are.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.runner import Pipeline


class StopRequests:
    """Passes stop requests on to the pipeline, also those that came before there was one.

    A signal's handler only counts: raised inside an import or a library's callback, an exception
    could be lost or leave things half done.
    """

    def __init__(self) -> None:
        self.received = 0
        self._pipeline: Pipeline | None = None

    def __call__(self, *_: object) -> None:
        """Take one request, as a signal's handler."""
        self.received += 1
        if self._pipeline is not None:
            self._pipeline.request_stop()
        elif self.received > 1:
            raise KeyboardInterrupt

    def hand_to(self, pipeline: Pipeline) -> None:
        """From now on a request stops `pipeline`; raise KeyboardInterrupt if one has come."""
        self._pipeline = pipeline
        if self.received:
            raise KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Take SIGINT, SIGTERM and a closed terminal as requests; give them back afterwards."""
    stop = StopRequests()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # as under nohup
        numbers.append(hangup)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
