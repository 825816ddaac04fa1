"""The models that `export` knows: one table, nothing heavy behind it until one is built.

An entry says everything that stands in the exported file and is never guessed later. To add a model
add an entry; its builder is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from exporters.download import is_cached
from exporters.entry import Entry as Entry
from exporters.entry import Published
from pipeline.errors import UsageError
from pipeline.problems import did_you_mean
from stages.decoders.decoder import Preprocessing
from stages.decoders.names import COCO_80, COCO_90, COCO_91, VOC_21
from stages.model_files import KnownModel

_YOLOX_SHA256: Final = {
    "nano": "cd28f55fbbc1829f99d9ac9b38a16d259a22889739c8728ea877610201feff7b",
    "tiny": "9de513de589ac98bb92d3bca53b5af7b9acfa9b0bacb831f7999d0f7afaee8f0",
    "s": "f55ded7181e1b0c13285c56e7790b8f0e8f8db590fe4edb37f0b7f345c913a30",
    "m": "60076992b32da82951c90cfa7bd6ab70eba9eda243e08b940a396f60ac2d19b6",
    "l": "1e6b7fa6240375370b2a8a8eab9066b3cdd43fd1d0bfa8d2027fd3a51def2917",
}


def _yolox(size: str, side: int, parameters: int, **arguments: float | bool) -> Entry:
    return Entry(
        name=f"yolox-{size}",
        decoder="yolox",
        builder="models.yolo:published",
        arguments=arguments,
        preprocessing=Preprocessing(
            (side, side), fit="letterbox_top_left", pad_value=114, pixel_order="bgr"
        ),
        class_names=COCO_80,
        parameters=parameters,
        outputs=("output",),
        official=Published(
            "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
            f"yolox_{size}.pth",
            _YOLOX_SHA256[size],
            "Apache-2.0",
        ),
        lively={
            "*.obj_preds.*": (-2.5, 1.0),
            "*.cls_preds.*": (-2.5, 1.0),
            "*.reg_preds.*": (0.5, 0.2),
        },
    )


def _torchvision(file: str) -> Published:
    # The digits in the file's name are the first eight of its sha256 (torch.hub's rule).
    digits = file.removesuffix(".pth").rpartition("-")[2]
    return Published(f"https://download.pytorch.org/models/{file}", digits, "BSD-3-Clause")


def _normalised(
    size_wh: tuple[int, int],
    fit: Literal["letterbox_top_left", "stretch"],
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225),
) -> Preprocessing:
    """Return RGB with torchvision's mean and deviation, which are on the scale 0..1."""
    return Preprocessing(
        size_wh,
        fit=fit,
        # torchvision pads after normalising, with zeros: the mean, of which this is the nearest.
        pad_value=round(sum(mean) / 3 * 255),
        pixel_order="rgb",
        mean=(mean[0] * 255, mean[1] * 255, mean[2] * 255),
        scale=(1 / (255 * deviation[0]), 1 / (255 * deviation[1]), 1 / (255 * deviation[2])),
    )


def _rcnn(
    name: str,
    file: str | None,
    size_wh: tuple[int, int],
    parameters: int,
    *,
    task: str = "detect",
    outputs: tuple[str, ...] = (),
    class_names: tuple[str, ...] = COCO_91,
    lively: Mapping[str, tuple[float, float]] | None = None,
    lead: float = 8.0,
    frozen_eps: float = 1e-5,
) -> Entry:
    return Entry(
        name=name,
        decoder="rcnn",
        builder=f"models.torchvision_raw:{name.replace('-', '_')}",
        preprocessing=_normalised(size_wh, "letterbox_top_left"),
        class_names=class_names,
        parameters=parameters,
        official=None if file is None else _torchvision(file),
        task=task,
        outputs=("boxes", "labels", "scores", *outputs),
        exporter="legacy",
        dynamic_batch=False,
        lively={"*.box_predictor.cls_score": (0.0, 2.0), **(lively or {})},
        lively_lead=lead,
        frozen_eps=frozen_eps,
    )


def _semantic(name: str, file: str, parameters: int, last: str) -> Entry:
    return Entry(
        name=name,
        decoder="segmentation",
        builder=f"models.torchvision_raw:{name.replace('-', '_')}",
        preprocessing=_normalised(_WIDE, "letterbox_top_left"),
        class_names=VOC_21,
        parameters=parameters,
        official=_torchvision(file),
        task="semantic",
        outputs=("out",),
        dynamic_size=True,
        lively={last: (0.0, 1.0)},
        unused=("aux_classifier.*",),
    )


_ANCHORS: Final = {"normalised": False, "background": True}
# torchvision's sigmoid heads have no column for the background; the first is a class never used.
_SIGMOID: Final = {"normalised": False, "background": False}
_WIDE: Final = (640, 384)
"""For the large networks: near 16:9, whole cells of stride 128. Detectors are published for 1333 x
800, four times that, which takes seconds a picture on a CPU; segmenters for a shorter side of 520,
which for square pictures is as many pixels."""
_EPS: Final = 0.0
"""torchvision sets it so for weights that are older than its epsilon (`overwrite_eps`)."""
_MASKS: Final = {"*.mask_predictor.mask_fcn_logits": (0.0, 1.0)}

ZOO: Final[Mapping[str, Entry]] = {
    entry.name: entry
    for entry in (
        _yolox("nano", 416, 912_159, depth=0.33, width=0.25, depthwise=True),
        _yolox("tiny", 416, 5_055_855, depth=0.33, width=0.375),
        _yolox("s", 640, 8_968_255, depth=0.33, width=0.5),
        _yolox("m", 640, 25_326_495, depth=0.67, width=0.75),
        _yolox("l", 640, 54_208_895, depth=1.0, width=1.0),
        Entry(
            name="ssd300",
            decoder="ssd",
            options=_ANCHORS,
            builder="models.torchvision_raw:ssd300",
            preprocessing=_normalised(
                (300, 300), "stretch", (0.48235, 0.45882, 0.40784), (1 / 255,) * 3
            ),
            class_names=COCO_90,
            parameters=35_641_826,
            official=_torchvision("ssd300_vgg16_coco-b556d3b4.pth"),
            lively={"*classification_head.module_list.*": (0.0, 1.0)},
        ),
        Entry(
            name="ssdlite320",
            decoder="ssd",
            options=_ANCHORS,
            builder="models.torchvision_raw:ssdlite320",
            preprocessing=_normalised((320, 320), "stretch", (0.5,) * 3, (0.5,) * 3),
            class_names=COCO_90,
            parameters=3_440_060,
            official=_torchvision("ssdlite320_mobilenet_v3_large_coco-a79551df.pth"),
            lively={"*classification_head.module_list.*.1": (0.0, 1.2)},
        ),
        Entry(
            name="retinanet",
            decoder="ssd",
            options=_SIGMOID,
            builder="models.torchvision_raw:retinanet",
            preprocessing=_normalised(_WIDE, "letterbox_top_left"),
            class_names=COCO_91,
            parameters=34_014_999,
            official=_torchvision("retinanet_resnet50_fpn_coco-eeacb38b.pth"),
            lively={"*.classification_head.cls_logits": (-7.0, 1.0)},
            frozen_eps=_EPS,
        ),
        Entry(
            name="fcos",
            decoder="ssd",
            options=_SIGMOID,
            builder="models.torchvision_raw:fcos",
            preprocessing=_normalised(_WIDE, "letterbox_top_left"),
            class_names=COCO_91,
            parameters=32_269_600,
            official=_torchvision("fcos_resnet50_fpn_coco-99b0c9b7.pth"),
            lively={
                "*.classification_head.cls_logits": (-6.0, 1.0),
                "*.regression_head.bbox_ctrness": (0.0, 1.0),
                "*.regression_head.bbox_reg": (4.0, 1.0),
            },
        ),
        _rcnn(
            "fasterrcnn-mobilenet",
            "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
            (576, 320),
            19_386_354,
        ),
        _rcnn(
            "fasterrcnn",
            "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
            _WIDE,
            41_755_286,
            lead=11.0,
            frozen_eps=_EPS,
        ),
        _rcnn(
            "maskrcnn",
            "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
            _WIDE,
            44_401_393,
            task="segment",
            outputs=("masks",),
            lively=_MASKS,
            lead=11.0,
            frozen_eps=_EPS,
        ),
        _rcnn(
            "maskrcnn-mobilenet",
            None,
            (576, 320),
            22_056_861,
            task="segment",
            outputs=("masks",),
            lively=_MASKS,
        ),
        _rcnn(
            "keypointrcnn",
            "keypointrcnn_resnet50_fpn_coco-9f466800.pth",
            _WIDE,
            59_137_258,
            task="keypoints",
            outputs=("keypoints", "keypoint_scores"),
            class_names=(COCO_91[0], "person"),
            lively={"*.keypoint_predictor.kps_score_lowres": (0.0, 2.0)},
            lead=6.0,
            frozen_eps=_EPS,
        ),
        _semantic("fcn", "fcn_resnet50_coco-1167a1af.pth", 32_957_013, "inner.classifier.4"),
        _semantic(
            "deeplabv3", "deeplabv3_resnet50_coco-cd0a2569.pth", 39_638_869, "inner.classifier.4"
        ),
        _semantic(
            "deeplabv3-mobilenet",
            "deeplabv3_mobilenet_v3_large-fc3c493d.pth",
            11_025_477,
            "inner.classifier.4",
        ),
        _semantic(
            "lraspp",
            "lraspp_mobilenet_v3_large-d234d4ea.pth",
            3_221_538,
            "inner.classifier.*_classifier",
        ),
    )
}
"""Every model by its name."""


def find(name: str) -> Entry:
    """Return the entry of that name.

    Raises:
        UsageError: there is none; the text lists those there are.
    """
    if name not in ZOO:
        near = did_you_mean(name, ZOO)
        raise UsageError(f"no model '{name}' can be exported{near} (models: {', '.join(ZOO)})")
    return ZOO[name]


def describe() -> Iterator[KnownModel]:
    """Yield what is to be told of each model."""
    for entry in ZOO.values():
        official = entry.official
        yield KnownModel(
            name=entry.name,
            task=entry.task,
            input_wh=entry.preprocessing.size_wh,
            parameters=entry.parameters,
            licence=None if official is None else official.licence,
            weights_url=None if official is None else official.url,
            weights_here=official is not None and is_cached(official.url),
        )
