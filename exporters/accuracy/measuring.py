"""COCO's measures of whatever answers like a model, on labelled pictures. One thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from exporters.accuracy.classes import match_classes
from exporters.accuracy.coco import Accuracy, measure
from exporters.accuracy.labelled import Labelled
from pipeline.detections import Detections
from pipeline.errors import SourceError
from pipeline.frame import Frame, FrameId, FrameTime, Inferred
from pipeline.stage import RunContext
from stages.fitting import Fitter
from stages.nms import NmsConfig, NmsStage
from stages.sources.images import read_picture

if TYPE_CHECKING:
    from stages.model import LoadedModel


def measure_answers(
    answer: Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]],
    model: LoadedModel,
    labelled: Labelled,
) -> Accuracy:
    """Return the measures over the classes that model and labels both have.

    Args:
        answer: takes a preprocessed picture without a batch axis; returns the outputs.
        model: whose preprocessing, decoder and class names are used.
        labelled: the pictures.

    Raises:
        SourceError: a picture cannot be read, or its labels are for another one.
        UsageError: model and labels have no class in common, or pycocotools is missing.
    """
    match = match_classes(model.class_names, labelled, common_only=True)
    fitter = Fitter(model.preprocessing)
    # What these measures expect: the whole curve, and its limit.
    nms = NmsStage(NmsConfig(score_threshold=0.001, max_detections=100), "nms", model)
    nms.open(RunContext())
    pairs = []
    for picture in labelled.pictures:
        image = read_picture(picture.path)
        if image is None:
            raise SourceError(f"{picture.path} cannot be read as a picture")
        tensor, letterbox = fitter.fit(image)
        frame = Frame(FrameId("labelled", 0, 0), FrameTime(0, None, Fraction(1)), image)
        (done,) = nms.process([Inferred(frame, answer(tensor), letterbox)])
        found = done.detections or Detections.empty(model.class_names)
        truth = picture.truth((image.shape[1], image.shape[0]))
        pairs.append((match.known(truth), match.translate(found)[0]))
    return measure(pairs, labelled.class_names)
