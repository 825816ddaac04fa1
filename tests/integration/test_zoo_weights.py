"""The table of exportable models agrees with torchvision's own weight enums."""

from __future__ import annotations

import pytest

from exporters.zoo import ZOO

pytestmark = pytest.mark.needs_torch

NAMES = {
    "ssd300": "ssd300_vgg16",
    "ssdlite320": "ssdlite320_mobilenet_v3_large",
    "retinanet": "retinanet_resnet50_fpn",
    "fcos": "fcos_resnet50_fpn",
    "fasterrcnn-mobilenet": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
    "maskrcnn": "maskrcnn_resnet50_fpn",
    "keypointrcnn": "keypointrcnn_resnet50_fpn",
    "fcn": "fcn_resnet50",
    "deeplabv3": "deeplabv3_resnet50",
    "deeplabv3-mobilenet": "deeplabv3_mobilenet_v3_large",
    "lraspp": "lraspp_mobilenet_v3_large",
}


def test_every_model_of_torchvision_is_compared():
    ours = {name for name in ZOO if not name.startswith("yolox-")}
    # Not torchvision's: a backbone of theirs under a head of theirs, without published weights.
    assert ours - set(NAMES) == {"maskrcnn-mobilenet"}


@pytest.mark.parametrize("name", NAMES)
def test_address_and_classes_are_those_of_the_published_weights(name):
    from torchvision.models import get_model_weights

    entry = ZOO[name]
    published = {weights.url: weights for weights in get_model_weights(NAMES[name])}
    assert entry.official is not None
    categories = published[entry.official.url].meta["categories"]
    # "N/A" are numbers that COCO left out; a background goes by several names, or is left out.
    theirs = categories[1:]
    ours = entry.class_names[len(entry.class_names) - len(theirs) :]
    assert len(entry.class_names) - len(theirs) in (0, 1)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other or (other == "N/A" and mine.startswith("unused"))
