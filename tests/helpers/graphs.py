"""Descriptions of graphs and outputs for tests of recognition and decoders; no file, no session."""

from __future__ import annotations

import numpy as np

from stages.decoders.decoder import GraphInfo, TensorInfo


def describe(outputs, *, size_wh=(416, 416), dtype="float32", nhwc=False, metadata=None):
    """Return a graph with one picture input; `outputs` maps names to shape or (shape, dtype)."""
    width, height = size_wh
    shape = (1, height, width, 3) if nhwc else (1, 3, height, width)
    infos = []
    for name, form in outputs.items():
        of, kind = form if isinstance(form[-1], str) else (form, "float32")
        infos.append(TensorInfo(name, tuple(of), kind))
    entry = TensorInfo("images", shape, dtype)
    return GraphInfo((entry,), tuple(infos), metadata or {})


def zeros(graph):
    """Return all-zero outputs of the graph's shapes; open dimensions are 0."""
    return {
        info.name: np.zeros([size or 0 for size in info.shape], info.dtype)
        for info in graph.outputs
    }
