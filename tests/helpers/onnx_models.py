"""Tiny real ONNX files, built in milliseconds, whose answers can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
YOLOV5_ROWS_32 = 63
"""Rows of a yolov5 output for a 32x32 input: 3 anchors on 16 + 4 + 1 cells."""


def save(path: Path, nodes, inputs, outputs, constants=(), metadata=None) -> Path:
    """Write a checked model and return its path."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def channel_means(path: Path, *, batch=1, size_wh=(8, 6), metadata=None) -> Path:
    """Write a graph that answers 'mean' (b, 3): each channel's mean. `batch` may be None."""
    width, height = size_wh
    return save(
        path,
        [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0)],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch, 3])],
        metadata=metadata,
    )


def rackfocus_metadata(names, **more) -> dict[str, str]:
    """Return what our exporter writes into a file."""
    own = {
        "schema": 1,
        "task": "detect",
        "decoder": "yolov5",
        "class_names": list(names),
        "preprocessing": {},
        **more,
    }
    return {"rackfocus": json.dumps(own)}


def detector(path: Path, rows, *, batch=1, size_wh=(32, 32), metadata=None, gain=0.0) -> Path:
    """Write a yolov5-form graph that finds `rows` in every picture.

    Args:
        path: where to write.
        rows: (n, 5 + c): cx, cy, w, h in model pixels, objectness, class scores.
        batch: pictures a run, None for open.
        size_wh: None in it leaves that side open.
        metadata: the file's own.
        gain: the picture's mean, times this, is added to each objectness.
    """
    rows = np.asarray(rows, np.float32)
    table = np.zeros((1, YOLOV5_ROWS_32, rows.shape[1]), np.float32)
    table[0, : len(rows)] = rows
    slope = np.zeros_like(table)
    slope[0, : len(rows), 4] = gain
    width, height = size_wh
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["brightness"], axes=[1, 2], keepdims=1),
        helper.make_node("ReduceMean", ["brightness"], ["level"], axes=[3], keepdims=0),
        helper.make_node("Mul", ["level", "slope"], ["change"]),
        helper.make_node("Add", ["change", "table"], ["output"]),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, *table.shape[1:]])],
        {"table": table, "slope": slope},
        metadata,
    )


def many_outputs(path: Path) -> Path:
    """Write a graph whose outputs differ in every way: the input itself, a scalar, flags, rows.

    Of 'images' (n, 3): 'same' is the input, 'positive' its positive part, 'again' that once more,
    'largest' () the largest number, 'found' (n, 3) bool where it is positive, 'rows' (2, k) int64
    where that is: the number of columns depends on the values.
    """
    floats = TensorProto.FLOAT
    return save(
        path,
        [
            helper.make_node("Identity", ["images"], ["same"]),
            helper.make_node("Relu", ["images"], ["positive"]),
            helper.make_node("Identity", ["positive"], ["again"]),
            helper.make_node("ReduceMax", ["images"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["images", "zero"], ["found"]),
            helper.make_node("NonZero", ["positive"], ["rows"]),
        ],
        [helper.make_tensor_value_info("images", floats, ["n", 3])],
        [
            helper.make_tensor_value_info("same", floats, ["n", 3]),
            helper.make_tensor_value_info("positive", floats, ["n", 3]),
            helper.make_tensor_value_info("again", floats, ["n", 3]),
            helper.make_tensor_value_info("largest", floats, []),
            helper.make_tensor_value_info("found", TensorProto.BOOL, ["n", 3]),
            helper.make_tensor_value_info("rows", TensorProto.INT64, [2, None]),
        ],
        {"zero": np.zeros((), np.float32)},
    )


def byte_picture(path: Path) -> Path:
    """Write a graph with a fixed uint8 input (1, 4, 5, 3), rows and columns before channels.

    It answers 'sums' (1, 3) float32: each channel's sum.
    """
    return save(
        path,
        [
            helper.make_node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["floats", "axes"], ["sums"], keepdims=0),
        ],
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 4, 5, 3])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, [1, 3])],
        {"axes": np.array([1, 2])},
    )


def without_batch(path: Path) -> Path:
    """Write a graph with an input (3, 4, 5) and the answer 'mean' (3,): no batch axis at all."""
    return save(
        path,
        [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0)],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [3, 4, 5])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [3])],
    )


def two_rows(path: Path) -> Path:
    """Write a graph that takes 'table' (any, 4), gives it as 'rows', and fails but on two rows."""
    return save(
        path,
        [helper.make_node("Reshape", ["table", "form"], ["rows"])],
        [helper.make_tensor_value_info("table", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [2, 4])],
        {"form": np.array([2, 4])},
    )
