"""A model without a file: the parts of a LoadedModel that stages use, answers given by the test."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipeline.errors import ModelError
from pipeline.frame import Frame, FrameId, FrameTime, Inferred, Prepared
from pipeline.geometry import Letterbox
from stages.decoders.decoder import Candidates, Decoder, Preprocessing


class TableDecoder(Decoder):
    """Reads outputs["rows"] (n, 6): x1, y1, x2, y2, score, class."""

    kind = "table"
    class_count = 2

    def __init__(self, *, suppressed=False):
        self.suppressed = suppressed

    def decode(self, outputs, score_threshold):
        rows = np.asarray(outputs["rows"], np.float32)
        rows = rows[rows[:, 4] >= score_threshold]
        return Candidates(
            rows[:, :4].copy(),
            rows[:, 4].copy(),
            rows[:, 5].astype(np.int64),
            suppressed=self.suppressed,
        )


class FakeModel:
    """Counts how often it was opened; each picture's output is the mean of its tensor."""

    def __init__(self, preprocessing=None, *, decoder=None, fallback=False):
        self.preprocessing = preprocessing or Preprocessing((32, 32))
        self.decoder = decoder or TableDecoder()
        self.class_names = ("cat", "dog")
        self.name = "fake"
        self.is_open = True
        self.runs = []
        self.backend = self
        self._fallback = fallback

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def blank(self):
        width, height = self.preprocessing.size_wh
        return np.zeros((3, height, width), np.float32)

    def run(self, tensors):
        if not self.is_open:
            raise ModelError("not open")
        self.runs.append(len(tensors))
        return [{"mean": np.array([[tensor.mean()]])} for tensor in tensors]

    def describe(self):
        return {
            "name": "fake",
            "requested": "cuda",
            "device": "cpu",
            "reason": "there is none",
            "fallback": self._fallback,
        }


def picture(width, height, seed=0):
    """Return a (h, w, 3) uint8 picture of seeded noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frames(count, *, size_wh=(40, 30), stream="s"):
    """Return frames of different noise, 0.1 s apart."""
    return [
        Frame(FrameId(stream, 0, i), FrameTime(i, i, Fraction(1, 10)), picture(*size_wh, seed=i))
        for i in range(count)
    ]


def square_letterbox(size=32, source_wh=(64, 32)):
    """Return the top-left letterbox of a wide picture in a square input."""
    scale = size / max(source_wh)
    return Letterbox((scale, scale), (0.0, 0.0), source_wh, (size, size))


def prepared(count):
    """Return items for infer; each tensor's mean is its seq."""
    return [
        Prepared(frame, np.full((3, 32, 32), frame.id.seq, np.float32), square_letterbox())
        for frame in frames(count, size_wh=(64, 32))
    ]


def inferred(rows, count=1):
    """Return items for nms, each with these (n, 6) rows."""
    rows = np.asarray(rows, np.float32).reshape(-1, 6)
    return [
        Inferred(frame, {"rows": rows}, square_letterbox())
        for frame in frames(count, size_wh=(64, 32))
    ]
