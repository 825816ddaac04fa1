"""How well a detector finds the shapes of scenes it has not seen: COCO's measures.

Runs the file through the project's own preprocessing, decoder and suppression, so the figures are
those of the program and not of a training script.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.detections import Detections
from pipeline.frame import Frame
from pipeline.stage import RunContext
from stages.infer import InferConfig, InferStage
from stages.model import load_model
from stages.nms import NmsConfig, NmsStage
from stages.preprocess import PreprocessConfig, PreprocessStage
from stages.sources.scenes import CLASS_NAMES
from stages.sources.synthetic import SyntheticConfig, SyntheticSource


@dataclass(frozen=True, slots=True)
class Accuracy:
    """COCO's average precision, 0..1."""

    map50_95: float
    """Mean over IoU thresholds 0.50 to 0.95 in steps of 0.05, over the classes."""
    ap50: float
    ap75: float
    by_class: dict[str, float]
    """mAP50-95 of each class."""
    by_size: dict[str, float]
    """mAP50-95 of objects under 32x32, up to 96x96 and over 96x96 pixels, where there are any."""
    frames: int
    objects: int


def unseen_frames(
    seeds: Iterable[int], frames_per_seed: int, config: SyntheticConfig
) -> Iterator[Frame]:
    """Yield frames of the scenes `seeds`, drawn as `config` says, 4 s apart."""
    apart = int(4 * config.fps)
    for seed in seeds:
        for index in range(frames_per_seed):
            update = {"seed": seed, "start": index * apart, "frames": 1}
            source = SyntheticSource(config.model_copy(update=update), f"seed{seed}")
            source.open(RunContext())
            frame = source.read(1.0)
            source.close()
            if isinstance(frame, Frame):
                yield frame


class OnnxDetector:
    """One picture at a time through a model file, by the project's stages."""

    def __init__(self, model: Path, score_threshold: float = 0.01) -> None:
        settings = InferConfig(model=str(model), device="cpu")
        loaded = load_model(settings, lambda _: None)
        self._preprocess = PreprocessStage(PreprocessConfig(), "preprocess", loaded)
        self._infer = InferStage(settings, "infer", loaded)
        # The low threshold is what COCO's measure expects: it judges the whole curve.
        self._nms = NmsStage(NmsConfig(score_threshold=score_threshold), "nms", loaded)
        for stage in (self._preprocess, self._infer, self._nms):
            stage.open(RunContext())

    def __call__(self, frame: Frame) -> Detections:
        """Return what is found in the frame."""
        (done,) = self._nms.process(self._infer.process(self._preprocess.process([frame])))
        return done.detections or Detections.empty(CLASS_NAMES)

    def close(self) -> None:
        """Release the session."""
        for stage in (self._nms, self._infer, self._preprocess):
            stage.close()


def measure(pairs: Iterable[tuple[Detections, Detections]]) -> Accuracy:
    """Return the accuracy over (truth, found) of each frame, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    count = 0
    for count, (truth, found) in enumerate(pairs, start=1):
        for row in range(len(truth)):
            box, area = _xywh(truth.xyxy[row])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": count,
                    "category_id": int(truth.class_id[row]) + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
        for row in range(len(found)):
            box, _ = _xywh(found.xyxy[row])
            results.append(
                {
                    "image_id": count,
                    "category_id": int(found.class_id[row]) + 1,
                    "bbox": box,
                    "score": float(found.score[row]),
                }
            )
    if not annotations:
        raise ValueError("no objects in the truth: nothing to measure")
    if not results:
        return Accuracy(0.0, 0.0, 0.0, {}, {}, count, len(annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": k + 1} for k in range(count)],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASS_NAMES)],
            "annotations": annotations,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # precision: (thresholds, recalls, classes, areas, most detections); -1 where no truth is.
    precision = judge.eval["precision"][:, :, :, 0, -1]
    by_class = {
        name: float(np.mean(values[values > -1]))
        for k, name in enumerate(CLASS_NAMES)
        if (values := precision[:, :, k]).max() > -1
    }
    stats = judge.stats
    return Accuracy(
        float(stats[0]),
        float(stats[1]),
        float(stats[2]),
        by_class,
        {
            name: float(stats[3 + k])
            for k, name in enumerate(("small", "medium", "large"))
            if stats[3 + k] >= 0
        },
        count,
        len(annotations),
    )


def _xywh(box: np.ndarray) -> tuple[list[float], float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
