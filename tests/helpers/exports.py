"""Exports for tests: the two commands, the parts of a file, and what may be done to one."""

from __future__ import annotations

import json

import numpy as np
import onnx

from exporters import command
from stages.decoders.metadata import KEY
from stages.infer import InferConfig
from stages.model import load_model


def export(name, path, **given):
    given = {"weights": "random", "frames": None, "overwrite": False, **given}
    lines = []
    command.export_model(name, str(path), say=lines.append, **given)
    return lines


def verify(path, **given):
    lines = []
    command.verify_file(str(path), **{"weights": None, "frames": None, **given}, say=lines.append)
    return "\n".join(lines)


def load(path, **options):
    model = load_model(InferConfig(model=str(path), device="cpu", **options), lambda _: None)
    model.close()
    return model


def parts(path):
    """Return the graph without our metadata, and the metadata."""
    model = onnx.load(str(path))
    (entry,) = [e for e in model.metadata_props if e.key == KEY]
    card = json.loads(entry.value)
    model.metadata_props.remove(entry)
    return model, card


def write(path, model, card):
    """Write a graph with metadata as they are, no digest made anew."""
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(card)
    path.write_bytes(model.SerializeToString())
    return path


def sigmoid_again(model):
    """Put a second sigmoid behind the last one."""
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Sigmoid")
    name = last.output[0]
    last.output[0] = "once"
    place = list(model.graph.node).index(last) + 1
    model.graph.node.insert(place, onnx.helper.make_node("Sigmoid", ["once"], [name]))


def _nudge(model):
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.05)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _preprocess(card, **change):
    form = card["preprocessing"]
    form.update({key: value(form[key]) for key, value in change.items()})


# name: change(model, card), in place
TAMPERED = {
    "a weight": lambda model, card: _nudge(model),
    "mean off by one": lambda model, card: _preprocess(card, mean=lambda m: [v + 1 for v in m]),
    "RGB for BGR": lambda model, card: _preprocess(card, pixel_order=lambda order: order[::-1]),
    "stretch for letterbox": lambda model, card: _preprocess(card, fit=lambda fit: "stretch"),
    "classes shifted by one": lambda model, card: card.update(
        class_names=[*card["class_names"][1:], card["class_names"][0]]
    ),
}
