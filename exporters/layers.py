"""Which nodes of a graph are its layers, and which only compute with what the layers give.

Layers may have smaller numbers; boxes, anchors and scores may not. Works on `onnx.ModelProto`,
which is imported late and has no types. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""The operators that have nearly all weights and nearly all the work."""
NOT_DATA: Final = {"RoiAlign": 1, "Resize": 1}
"""Operators of whose inputs only the first so many are pictures or features; the others are
coordinates and sizes."""


def layers(model: Any) -> list[Any]:  # noqa: ANN401 - onnx.ModelProto
    """Return the convolutions and matrix products, in the graph's order."""
    return [node for node in model.graph.node if node.op_type in WEIGHTED]


def name_nodes(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Give every node a name of its own: layers are chosen by name."""
    taken: set[str] = set()
    for k, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_at_{k}"
        taken.add(node.name)


def outside(model: Any) -> list[str]:  # noqa: ANN401 - onnx.ModelProto
    """Return the names of nodes that feed no layer with features; nodes must have names."""
    makers = {name: node for node in model.graph.node for name in node.output}
    inside: set[str] = set()
    waiting = layers(model)
    while waiting:
        node = waiting.pop()
        if node.name in inside or _has_graph(node):
            continue
        inside.add(node.name)
        data = node.input[: NOT_DATA.get(node.op_type, len(node.input))]
        waiting += [makers[name] for name in data if name in makers]
    return [node.name for node in model.graph.node if node.name not in inside]


def _has_graph(node: Any) -> bool:  # noqa: ANN401 - onnx.NodeProto
    """Return whether it is an If or a Loop: those decide about boxes, not about features."""
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def reads(node: Any) -> Iterator[str]:  # noqa: ANN401 - onnx.NodeProto
    """Yield what a node reads, with what the graphs inside it (If, Loop) read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from reads(inner)
            yield from (value.name for value in graph.output)
