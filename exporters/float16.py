"""A graph in float16, but for what is no layer and feeds none. One thread."""

from __future__ import annotations

from typing import Any

from exporters.layers import NOT_DATA, name_nodes, outside, reads


def to_fp16(model: Any) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Return the model with its layers, and what feeds them features, in float16.

    Every tensor keeps its name in float32, and has a twin in float16 where one is read. ONNX
    Runtime's converter of whole graphs rounds to float16 between nodes that it is told to leave
    alone, and breaks graphs with If. `model` is modified.
    """
    import onnx
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_tensor_float_to_float16,
    )

    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    name_nodes(model)
    typed = onnx.shape_inference.infer_shapes(model).graph
    values = (*typed.input, *typed.value_info, *typed.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == single}
    weights = {t.name: t for t in model.graph.initializer if t.data_type == single}
    staying = {*outside(model)} | {
        node.name
        for node in model.graph.node
        if node.op_type in (*DEFAULT_OP_BLOCK_LIST, "Constant", "ConstantOfShape")
    }
    read_whole = {value.name for value in model.graph.output}
    for node in model.graph.node:
        data = NOT_DATA.get(node.op_type, len(node.input))
        read_whole.update(reads(node) if node.name in staying else node.input[data:])
    made: list[Any] = []
    twins: dict[str, str] = {}

    def twin(name: str) -> str:
        """Return the float16 tensor of that name, made where it is not there yet."""
        if name not in twins:
            twins[name] = f"{name}:half"
            if name in weights:
                tensor = model.graph.initializer.add()
                tensor.CopyFrom(weights[name])
                tensor.name = twins[name]
                convert_tensor_float_to_float16(tensor)
            else:
                made.append(_cast(name, twins[name], half))
        return twins[name]

    for node in model.graph.node:
        if node.name in staying:
            made.append(node)
            continue
        data = NOT_DATA.get(node.op_type, len(node.input))
        for place, name in enumerate(node.input[:data]):
            if name in floats or name in weights:
                node.input[place] = twin(name)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == single:
                    attribute.i = half
        made.append(node)
        for place, name in enumerate(node.output):
            if name in floats:
                node.output[place] = twins[name] = f"{name}:half"
                if name in read_whole:
                    made.append(_cast(twins[name], name, single))
    used = {name for node in made for name in reads(node)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:], model.graph.node[:], model.graph.value_info[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(made)
    return model


def _cast(source: str, target: str, to: int) -> Any:  # noqa: ANN401 - onnx.NodeProto
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"cast to {target}", to=to)
