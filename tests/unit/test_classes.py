"""A model's classes and those of labelled pictures are matched by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from exporters.accuracy.classes import match_classes
from exporters.accuracy.coco import Truth
from exporters.accuracy.labelled import Labelled, LabelledPicture
from pipeline.detections import Detections, Mask
from pipeline.errors import UsageError
from stages.decoders.names import COCO_80, COCO_90, COCO_91, VOC_20


def labelled(names, class_id):
    picture = LabelledPicture(
        Path("a.jpg"),
        "a.jpg",
        None,
        np.tile([0.0, 0, 1, 1], (len(class_id), 1)),
        np.array(class_id, np.int64),
        None,
        np.zeros(len(class_id), bool),
        None,
    )
    return Labelled("yolo", Path(), tuple(names), "names", (picture,), None)


@pytest.mark.parametrize("names", [COCO_80, COCO_90, COCO_91], ids=["80", "90", "91"])
def test_all_numberings_of_coco_find_their_classes(names):
    match = match_classes(names, labelled(COCO_80, range(80)))
    assert (match.renamed, match.unknown) == ({}, ())
    for name, index in zip(names, match.to_data, strict=True):
        assert index == (COCO_80.index(name) if name in COCO_80 else -1)
    assert len(match.foreign(names)) == len(names) - 80


def test_pascals_names_are_cocos_in_another_spelling():
    shared = [COCO_80.index(n) for n in ("airplane", "motorcycle", "couch", "tv", "dining table")]
    match = match_classes(VOC_20, labelled(COCO_80, shared))
    assert match.renamed == {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert (match.to_data >= 0).all()


def test_a_name_that_is_there_letter_for_letter_is_not_an_alias():
    match = match_classes(("sofa", "couch"), labelled(("couch", "sofa"), [0, 1]))
    assert match.to_data.tolist() == [1, 0]
    # A class has one name: what comes second is another.
    both = match_classes(("television", "tvmonitor", "tv"), labelled(("tv",), [0]))
    assert both.to_data.tolist() == [-1, -1, 0]
    # Two classes of the data could be meant: none is taken.
    ambiguous = match_classes(("TV-monitor", "x"), labelled(("t.v.", "tv", "x"), [2]))
    assert ambiguous.to_data.tolist() == [-1, 2]


def test_classes_with_objects_that_the_model_lacks_are_an_error_that_lists_them():
    data = labelled(("cat", "dog", "emu"), [0, 1, 1])
    with pytest.raises(UsageError, match="1 of the 2 classes with objects are unknown") as caught:
        match_classes(("cat", "cow"), data)
    assert "unknown to the model: dog; it knows: cat, cow; --common-classes" in str(caught.value)
    assert match_classes(("cat", "cow"), data, common_only=True).unknown == ("dog",)
    with pytest.raises(UsageError, match="2 of the 2 classes"):
        match_classes(("face",), data, common_only=True)


def test_what_only_one_side_has_is_left_out_and_counted():
    match = match_classes(
        ("cow", "Dog", "cat"), labelled(("cat", "dog", "emu"), [0, 2]), common_only=True
    )
    found = Detections(
        np.tile(np.float32([0, 0, 9, 9]), (4, 1)),
        np.float32([0.9, 0.8, 0.7, 0.6]),
        np.array([2, 0, 1, 0]),
        ("cow", "Dog", "cat"),
        masks=tuple(Mask(x, 0, np.ones((1, 1), bool)) for x in range(4)),
    )
    kept, left_out = match.translate(found)
    assert left_out == 2
    assert [kept.name_of(i) for i in range(len(kept))] == ["cat", "dog"]
    assert kept.score.tolist() == pytest.approx([0.9, 0.7])
    assert [mask.x for mask in kept.masks] == [0, 2]
    truth = Truth.of_boxes([[0, 0, 1, 1], [0, 0, 2, 2]], np.array([2, 0]))
    truth = replace(truth, masks=np.array([[[False]], [[True]]]))
    assert match.known(truth).class_id.tolist() == [0]
    assert match.known(truth).masks.tolist() == [[[True]]]
    assert match.foreign(("cow", "Dog", "cat")) == ["cow"]
