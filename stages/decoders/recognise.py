"""Which decoder understands a graph, how its input is made, and what its classes are called.

Asked in this order: the name the user gave, our own metadata, the file's outputs. Outputs count
only where no other family could have made them; a guess is an error that lists the choices. Pure:
it sees descriptions, never a session or a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pipeline.errors import ModelError
from stages.decoders.decoder import GraphInfo, Preprocessing, Recognised, TensorInfo
from stages.decoders.detr import DetrDecoder
from stages.decoders.family import Family
from stages.decoders.metadata import Stated, stated
from stages.decoders.names import table_for
from stages.decoders.nanodet import NanodetDecoder, PicodetDecoder
from stages.decoders.rcnn import RcnnDecoder
from stages.decoders.segmentation import SegmentationDecoder
from stages.decoders.ssd import SsdDecoder
from stages.decoders.yolo_end2end import YoloEnd2EndDecoder
from stages.decoders.yolo_fastestv2 import YoloFastestV2Decoder
from stages.decoders.yolov5 import Yolov5Decoder
from stages.decoders.yolov8 import Yolov8Decoder
from stages.decoders.yolox import YoloxDecoder
from stages.decoders.yunet import YunetDecoder

FAMILIES: Mapping[str, type[Family]] = {
    family.kind: family
    for family in (
        YoloxDecoder,
        Yolov5Decoder,
        Yolov8Decoder,
        YoloEnd2EndDecoder,
        SsdDecoder,
        NanodetDecoder,
        PicodetDecoder,
        YoloFastestV2Decoder,
        RcnnDecoder,
        DetrDecoder,
        YunetDecoder,
        SegmentationDecoder,
    )
}
"""Every decoder by the name it has in YAML and in metadata."""

_FITS = ("letterbox", "letterbox_top_left", "stretch")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "fit": _FITS,
    "pixel_order": ("bgr", "rgb"),
    "layout": ("nchw", "nhwc"),
    "dtype": ("float32", "float16", "uint8"),
}
_OVERRIDES = ("input_size", "fit", "pixel_order", "mean", "scale", "pad_value", "layout", "dtype")


def recognise(
    graph: GraphInfo,
    *,
    decoder: str | None = None,
    class_names: Sequence[str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Recognised:
    """Return all that is needed to use the graph as a detector or segmenter.

    Args:
        graph: Inputs, outputs as seen in a trial run, metadata.
        decoder: The user's choice among `FAMILIES`; goes before what the file says.
        class_names: The user's names; go before what the file says.
        overrides: The user's preprocessing: input_size (width, height), fit, pixel_order, mean,
            scale, pad_value, layout, dtype; and `options`, a mapping for the decoder. None means
            not given.

    Raises:
        ModelError: not recognised with certainty, or the graph, the choice, the names and the
            overrides do not fit each other.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    options = _options(given.pop("options", {}))
    unknown = sorted(given.keys() - set(_OVERRIDES))
    if unknown:
        raise ModelError(
            f"unknown preprocessing {', '.join(unknown)}; known: {', '.join(_OVERRIDES)}"
        )
    if decoder is not None and decoder not in FAMILIES:
        raise ModelError(f"unknown decoder {decoder!r}; choices: {', '.join(FAMILIES)}")
    says = stated(graph.metadata)
    picture = _picture_input(graph)
    size_wh = _size_wh(graph, picture, given, says)
    count = _known_names(class_names, says)

    if decoder is not None:
        family, reason = FAMILIES[decoder], f"decoder {decoder!r} was asked for"
    elif says is not None and says.decoder is not None:
        if says.decoder not in FAMILIES:
            raise ModelError(
                f"the file's metadata asks for decoder {says.decoder!r}, which this version does "
                f"not have; choices: {', '.join(FAMILIES)}"
            )
        family, reason = FAMILIES[says.decoder], f"{says.by}: decoder {says.decoder!r}"
    else:
        family, reason = _by_outputs(graph, size_wh, count, options)
    own = says is not None and says.decoder == family.kind
    if says is not None and own:
        options = {**says.options, **options}
    surplus = sorted(options.keys() - set(family.options))
    if surplus:
        raise ModelError(
            f"decoder {family.kind!r} has no option {', '.join(surplus)}; "
            f"known: {', '.join(family.options) or 'none'}"
        )
    made = family.fit(graph, size_wh, count, options)

    preprocessing = _adapt(made.usual(size_wh), picture)
    if says is not None and own:
        preprocessing = _replace(preprocessing, says.preprocessing, "the file's metadata")
    if "input_size" in given:
        given["size_wh"] = given.pop("input_size")
    preprocessing = _replace(preprocessing, given, "the configuration")
    _check_input(preprocessing, picture)
    names, source = _class_names(made, class_names, says)
    notes = [reason, f"class names: {source}", made.note]
    return Recognised(made, preprocessing, names, "; ".join(filter(None, notes)), options)


def _by_outputs(
    graph: GraphInfo, size_wh: tuple[int, int], count: int | None, options: Mapping[str, object]
) -> tuple[type[Family], str]:
    """Return the one family whose form the outputs have beyond doubt, and why."""
    fitting: list[type[Family]] = []
    certain: list[tuple[type[Family], str]] = []
    for family in FAMILIES.values():
        known = {key: value for key, value in options.items() if key in family.options}
        try:
            family.fit(graph, size_wh, count, known)
        except ModelError:
            continue
        fitting.append(family)
        why = family.evidence(graph, size_wh)
        if why is not None:
            certain.append((family, why))
    if len(certain) == 1:
        family, why = certain[0]
        return family, f"recognised as {family.kind!r}: {why}"
    raise _not_recognised(graph, [family for family, _ in certain] or fitting)


def _not_recognised(graph: GraphInfo, possible: Sequence[type[Family]]) -> ModelError:
    shapes = [f"{family.kind!r} ({family.form})" for family in possible]
    could = f"It could be {' or '.join(shapes)}. " if shapes else "None of the decoders fits. "
    return ModelError(
        "this graph is not recognised with certainty as a detector or segmenter. "
        f"{could}Seen: {graph.summary()}. If it is one, name its decoder (`decoder:` of the infer "
        f"stage, --set infer.decoder=NAME); choices: {', '.join(FAMILIES)}"
    )


def _picture_input(graph: GraphInfo) -> TensorInfo:
    """Return the one input, which must take colour pictures."""
    if len(graph.inputs) == 1:
        shape = graph.inputs[0].shape
        if len(shape) in (3, 4) and 3 in (shape[-3], shape[-1]):
            if graph.inputs[0].dtype in _CHOICES["dtype"]:
                return graph.inputs[0]
            raise ModelError(
                f"the graph's input must be {' or '.join(_CHOICES['dtype'])}, got "
                f"{graph.inputs[0].dtype}. Seen: {graph.summary()}"
            )
    raise ModelError(
        "the graph must have one input for colour pictures, [b, 3, h, w] or [b, h, w, 3]. "
        f"Seen: {graph.summary()}"
    )


def _layout(picture: TensorInfo) -> str:
    return "nchw" if picture.shape[-3] == 3 else "nhwc"


def _fixed_wh(picture: TensorInfo) -> tuple[int | None, int | None]:
    if _layout(picture) == "nchw":
        return picture.shape[-1], picture.shape[-2]
    return picture.shape[-2], picture.shape[-3]


def _size_wh(
    graph: GraphInfo, picture: TensorInfo, given: Mapping[str, object], says: Stated | None
) -> tuple[int, int]:
    """Return the input's size: the user's, the graph's, the metadata's; in this order."""
    fixed = _fixed_wh(picture)
    if "input_size" in given:
        width, height = _pair(given["input_size"])
        if any(f not in (None, g) for f, g in zip(fixed, (width, height), strict=True)):
            shown = " x ".join("any" if side is None else str(side) for side in fixed)
            raise ModelError(
                f"input_size is {width} x {height}, but the graph takes {shown} only "
                "(width x height)"
            )
        return width, height
    if fixed[0] is not None and fixed[1] is not None:
        return fixed[0], fixed[1]
    if says is not None and says.size_wh is not None:
        return says.size_wh
    raise ModelError(
        "the graph leaves its input size open: give it (`input_size: [width, height]` of the infer "
        f"stage), and the decoder if it is not recognised then ({', '.join(FAMILIES)}). "
        f"Seen: {graph.summary()}"
    )


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) for v in value):
        width, height = value
        if width > 0 and height > 0:
            return width, height
    raise ModelError(
        f"input_size must be two positive whole numbers (width, height), got {value!r}"
    )


def _options(value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ModelError(f"the decoder's options must be a mapping, got {value!r}")
    return {str(key): entry for key, entry in value.items()}


def _adapt(usual: Preprocessing, picture: TensorInfo) -> Preprocessing:
    """Return the family's preprocessing in the layout and dtype that the graph takes."""
    adapted = dataclasses.replace(
        usual,
        layout="nchw" if _layout(picture) == "nchw" else "nhwc",
        dtype=picture.dtype,  # type: ignore[arg-type]  # one of _CHOICES["dtype"], see _picture_input
    )
    if picture.dtype == "uint8":  # such graphs normalise on their own
        return dataclasses.replace(adapted, mean=(0.0,) * 3, scale=(1.0,) * 3)
    return adapted


def _replace(base: Preprocessing, changes: Mapping[str, object], whose: str) -> Preprocessing:
    """Return `base` with checked changes."""
    values: dict[str, object] = {}
    for key, value in changes.items():
        if key == "size_wh":
            values[key] = _pair(value)
        elif key in ("mean", "scale"):
            triple = [value] * 3 if isinstance(value, int | float) else value
            if (
                not isinstance(triple, Sequence)
                or len(triple) != 3
                or not all(isinstance(v, int | float) for v in triple)
            ):
                raise ModelError(f"{key} in {whose} must be one number or three, got {value!r}")
            values[key] = tuple(float(v) for v in triple)
        elif key == "pad_value":
            if not isinstance(value, int) or not 0 <= value <= 255:
                raise ModelError(f"pad_value in {whose} must be 0..255, got {value!r}")
            values[key] = value
        elif key in _CHOICES:
            if value not in _CHOICES[key]:
                known = ", ".join(_CHOICES[key])
                raise ModelError(f"{key} in {whose} must be one of {known}, got {value!r}")
            values[key] = value
        else:
            raise ModelError(f"{whose} has unknown preprocessing {key!r}")
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]  # each was checked above


def _check_input(preprocessing: Preprocessing, picture: TensorInfo) -> None:
    """Refuse a tensor that the graph would refuse later, with less said."""
    sizes = zip(_fixed_wh(picture), preprocessing.size_wh, strict=True)
    if (
        preprocessing.dtype != picture.dtype
        or preprocessing.layout != _layout(picture)
        or any(fixed not in (None, size) for fixed, size in sizes)
    ):
        shape = ",".join("?" if size is None else str(size) for size in picture.shape)
        width, height = preprocessing.size_wh
        raise ModelError(
            f"preprocessing makes {preprocessing.dtype} {preprocessing.layout} of "
            f"{width}x{height}, but the graph takes {picture.dtype}[{shape}] at input "
            f"{picture.name!r}"
        )


def _known_names(asked: Sequence[str] | None, says: Stated | None) -> int | None:
    if asked is not None:
        return len(asked)
    return None if says is None or says.class_names is None else len(says.class_names)


def _class_names(
    made: Family, asked: Sequence[str] | None, says: Stated | None
) -> tuple[tuple[str, ...], str]:
    """Return as many names as the graph scores classes, and where they come from."""
    if asked is not None:
        if len(asked) != made.class_count:
            raise ModelError(
                f"{len(asked)} class names are given, but the graph scores "
                f"{made.class_count} classes"
            )
        return tuple(asked), "as given"
    if says is not None and says.class_names is not None:
        if len(says.class_names) != made.class_count:
            raise ModelError(
                f"the file's metadata names {len(says.class_names)} classes, but its graph scores "
                f"{made.class_count}: give class_names"
            )
        return says.class_names, says.by
    if made.names is not None:
        return made.names, "from the form of the outputs"
    source, names = table_for(made.class_count)
    return names, source
