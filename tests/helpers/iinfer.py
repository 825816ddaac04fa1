"""The published weights of YOLOX-nano, out of the ONNX file that lies with the real clips."""

from __future__ import annotations

import onnx
import torch
from torch import nn


def fill(network, model):
    """Put the tensors of the published file into `network`.

    Its exporter folded batch normalisation into the convolutions and numbered the tensors; the
    nodes kept the modules' names.
    """
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    modules = dict(network.named_modules())
    left = {name for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    for node in (node for node in model.graph.node if node.op_type == "Conv"):
        name = _module_name(node.name)
        conv, norm = modules[name], modules.get(f"{name.rpartition('.')[0]}.bn")
        left.remove(name)
        conv.weight.copy_(torch.from_numpy(tensors[node.input[1]].copy()))
        bias = torch.from_numpy(tensors[node.input[2]].copy())
        if norm is None:
            conv.bias.copy_(bias)
            continue
        norm.weight.fill_(1.0)
        norm.running_mean.fill_(0.0)
        norm.running_var.fill_(1.0 - norm.eps)
        norm.bias.copy_(bias)
    assert not left


def _module_name(node):
    """Return "a.b.0.conv" for "/a/b/b.0/conv/Conv"."""
    name = []
    for part in node.strip("/").split("/")[:-1]:
        if name and part.startswith(f"{name[-1]}."):
            name.pop()
        name.append(part)
    return ".".join(name)
