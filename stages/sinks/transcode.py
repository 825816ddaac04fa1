"""Audio that the output container cannot hold: decoded, resampled and encoded anew, in time.

Imports av. One thread at a time.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet

_FRAME_SAMPLES: Final = {"aac": 1024, "libopus": 960}
"""Samples a frame of each encoder: AAC-LC's fixed size; 20 ms of Opus at 48 kHz."""
_AAC_RATES: Final = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
_FORMATS: Final = {"aac": "fltp", "libopus": "flt"}
_BITS_PER_CHANNEL: Final = 96_000


class AudioTranscoder:
    """One transcoded audio track. Gaps in the source's audio are filled with silence."""

    def __init__(self, container: OutputContainer, template: object, encoder: str) -> None:
        source = cast(AudioStream, template).codec_context
        channels = min(source.layout.nb_channels, 2) if encoder == "libopus" else source.channels
        layout = source.layout.name if channels == source.channels else "stereo"
        rate = source.sample_rate
        if encoder == "libopus" or rate not in _AAC_RATES:
            rate = 48_000
        self.codec = "opus" if encoder == "libopus" else encoder
        """FFmpeg's name of the codec written."""
        stream = cast(AudioStream, container.add_stream(encoder, rate=rate, layout=layout))
        stream.codec_context.bit_rate = _BITS_PER_CHANNEL * max(1, channels)
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        self.stream = stream
        self._spec = (
            f"sample_fmts={_FORMATS[encoder]}:sample_rates={rate}:channel_layouts={layout}",
            f"n={_FRAME_SAMPLES[encoder]}:p=0",
        )
        self._graph: Graph | None = None
        self._source: Any = None

    def packets(self, packet: Packet[Any]) -> list[Packet[Any]]:
        """Return the encoded packets that one source packet completes, 0 or more.

        Raises:
            av.FFmpegError: the packet cannot be decoded.
        """
        made: list[Packet[Any]] = []
        for frame in packet.decode():
            made += self._push(cast(AudioFrame, frame))
        return made

    def drain(self) -> list[Packet[Any]]:
        """Return what decoder, filter and encoder held back."""
        made: list[Packet[Any]] = []
        if self._graph is not None:
            self._graph.push(None)
            made += self._pull()
            made += self.stream.encode(None)
        return made

    def _push(self, frame: AudioFrame) -> list[Packet[Any]]:
        if self._graph is None:
            self._graph = self._make_graph(frame)
        self._graph.push(frame)
        return self._pull()

    def _make_graph(self, frame: AudioFrame) -> Graph:
        graph = Graph()
        nodes = (
            graph.add_abuffer(
                sample_rate=frame.sample_rate,
                format=frame.format.name,
                layout=frame.layout.name,
                time_base=frame.time_base,
            ),
            # Stretches nothing: fills gaps and cuts overlaps by the timestamps.
            graph.add("aresample", "async=1:min_hard_comp=0.05"),
            graph.add("aformat", self._spec[0]),
            graph.add("asetnsamples", self._spec[1]),
            graph.add("abuffersink"),
        )
        graph.link_nodes(*nodes).configure()
        return graph

    def _pull(self) -> list[Packet[Any]]:
        made: list[Packet[Any]] = []
        graph = self._graph
        while graph is not None:
            try:
                frame = cast(AudioFrame, graph.pull())
            except (BlockingIOError, av.EOFError):
                break
            made += self.stream.encode(frame)
        return made
