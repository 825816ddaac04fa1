"""Accuracy of a detector on labelled pictures, by COCO's measures.

    python -m benchmarks.accuracy --model NAME|FILE.onnx --data DIR [--set KEY=VALUE ...]

Takes every model that `run` takes and sends the pictures through the same preprocess, infer and nms
stages. Scores from 0.001 and 100 detections a picture count, as is usual for these measures; other
settings are those of a run. DIR has YOLO's layout (images/, labels/), COCO's (instances*.json), or
mask files (images/, masks/); with these masks are measured as well as boxes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.detector import Detector
from exporters.accuracy.classes import ClassMatch, match_classes
from exporters.accuracy.coco import Accuracy, Truth, measure
from exporters.accuracy.labelled import Labelled
from exporters.accuracy.layouts import read_labelled
from pipeline.detections import Detections
from pipeline.errors import RackfocusError, SourceError
from stages.sources.images import read_picture

NMS: Final[dict[str, object]] = {"score_threshold": 0.001, "max_detections": 100}
"""What COCO's measures expect of the nms stage: the whole curve, and its limit."""

_EVERY_S: Final = 10.0
"""How often progress is told."""


class Evaluation:
    """One pass of a detector over labelled pictures, with what was left out of the measure."""

    def __init__(self, detector: Detector, data: Labelled, match: ClassMatch) -> None:
        self._detector = detector
        self._data = data
        self._match = match
        self.objects_left_out = 0
        """Objects of classes that the model does not know."""
        self.detections_left_out = 0
        """Detections of classes that the data does not have."""

    def run(self) -> Accuracy:
        """Return the accuracy.

        Raises:
            SourceError: a picture cannot be read, or is not the one that its labels are for.
        """
        return measure(self._pairs(), self._data.class_names)

    def _pairs(self) -> Iterator[tuple[Truth, Detections]]:
        told = time.perf_counter()
        for done, picture in enumerate(self._data.pictures):
            if time.perf_counter() - told > _EVERY_S:
                told = time.perf_counter()
                print(f"{done} of {len(self._data.pictures)} pictures", file=sys.stderr)
            image = read_picture(picture.path)
            if image is None:
                raise SourceError(f"{picture.path} cannot be read as a picture")
            truth = picture.truth((image.shape[1], image.shape[0]))
            known = self._match.known(truth)
            found, left_out = self._match.translate(self._detector(image))
            self.objects_left_out += int((~truth.crowd).sum() - (~known.crowd).sum())
            self.detections_left_out += left_out
            yield known, found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code: 0 done, 1 a label or picture is broken, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        result = evaluate(
            options.model,
            options.data,
            names=options.names,
            assignments=options.assignments,
            device=options.device,
            common_only=options.common_classes,
        )
        _print(lines(result, with_classes=options.classes))
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except RackfocusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print(texts: Iterator[str]) -> None:
    try:
        for text in texts:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME|FILE.onnx", help="a model that `run` takes")
    add("--data", required=True, type=Path, metavar="DIR", help="labelled pictures; or COCO's JSON")
    add("--names", metavar="FILE|coco", help="class names, where DIR has none")
    add("--device", metavar="auto|cpu|cuda[:n]", help="where the model runs")
    add(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of preprocess, infer or nms, e.g. nms.iou_threshold=0.6; may repeat",
    )
    add(
        "--common-classes",
        action="store_true",
        help="measure only classes that model and data have",
    )
    add("--classes", action="store_true", help="print a line for each class")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser


def evaluate(
    model: str,
    data: Path,
    *,
    names: str | None = None,
    assignments: Sequence[str] = (),
    device: str | None = None,
    common_only: bool = False,
) -> dict[str, Any]:
    """Return what `--json` writes.

    Args:
        model: a shipped model's name, or a file.
        data: see `read_labelled`, and so `names`.
        assignments: KEY=VALUE of the stages preprocess, infer and nms.
        device: where the model runs; None for the default.
        common_only: see `match_classes`.

    Raises:
        RackfocusError: model, data or options cannot be used, or a file is broken.
    """
    labelled = read_labelled(data, names)
    with Detector(
        model,
        nms=NMS,
        assignments=assignments,
        device=device,
        note=lambda text: print(f"note: {text}", file=sys.stderr),
    ) as detector:
        match = match_classes(detector.class_names, labelled, common_only=common_only)
        evaluation = Evaluation(detector, labelled, match)
        started = time.perf_counter()
        accuracy = evaluation.run()
        seconds = time.perf_counter() - started
    return {
        "model": detector.model_facts,
        "backend": detector.backend_facts,
        "data": {
            "folder": str(labelled.folder.resolve()),
            "layout": labelled.layout,
            "sha256": labelled.sha256(),
            "pictures": len(labelled.pictures),
            "class_names_from": labelled.names_from,
            "notes": list(labelled.notes),
        },
        "settings": {"assignments": list(assignments), "nms": detector.nms.model_dump(mode="json")},
        "classes": {
            "measured": len(accuracy.by_class),
            "renamed": match.renamed,
            "not_in_model": list(match.unknown),
            "not_in_data": match.foreign(detector.class_names),
            "objects_left_out": evaluation.objects_left_out,
            "detections_left_out": evaluation.detections_left_out,
        },
        "accuracy": asdict(accuracy),
        "cut_by_max_detections": detector.cut,
        "seconds": round(seconds, 3),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "opencv-python", "pycocotools")},
        },
    }


def lines(result: dict[str, Any], *, with_classes: bool = False) -> Iterator[str]:
    """Yield what is printed of a result."""
    model, backend, data = result["model"], result["backend"], result["data"]
    nms, classes, accuracy = result["settings"]["nms"], result["classes"], result["accuracy"]
    yield (
        f"model {model['name']} ({model['decoder']}) on {backend['device']}, "
        f"sha256 {model['sha256']}"
    )
    yield f"data {data['folder']} ({data['layout']}), sha256 {data['sha256']}"
    yield (
        f"{data['pictures']} pictures, {accuracy['objects']} objects of {classes['measured']} "
        f"classes; class names: {data['class_names_from']}"
    )
    yield from (f"note: {note}" for note in data["notes"])
    if classes["renamed"]:
        pairs = (f"{ours} = {theirs}" for ours, theirs in classes["renamed"].items())
        yield f"class names of model and data: {', '.join(pairs)}"
    if classes["not_in_data"]:
        yield (
            f"{len(classes['not_in_data'])} classes of the model are not in the data: "
            f"{classes['detections_left_out']} detections left out"
        )
    if classes["not_in_model"]:
        yield (
            f"{len(classes['not_in_model'])} classes of the data are unknown to the model: "
            f"{classes['objects_left_out']} objects left out"
        )
    yield (
        f"score_threshold {nms['score_threshold']:g}, iou_threshold {nms['iou_threshold']:g}, "
        f"max_detections {nms['max_detections']} (reached in {result['cut_by_max_detections']} "
        f"pictures), {result['seconds']:.1f} s"
    )
    yield (
        f"mAP50-95 {accuracy['map50_95']:.4f}  mAP50 {accuracy['map50']:.4f}  "
        f"mAP75 {accuracy['map75']:.4f}"
    )
    if (masks := accuracy["masks"]) is not None:
        yield (
            f"masks: mAP50-95 {masks['map50_95']:.4f}  mAP50 {masks['map50']:.4f}  "
            f"mAP75 {masks['map75']:.4f}"
        )
    yield f"mAP50-95 by size: {_row(accuracy['by_size'])}"
    yield f"AR by most detections of a class: {_row(accuracy['recall'])}"
    yield f"AR by size: {_row(accuracy['recall_by_size'])}"
    if with_classes:
        width = max(len(name) for name in accuracy["by_class"])
        yield f"{'class':<{width}}  objects  mAP50-95   mAP50"
        for name, value in accuracy["by_class"].items():
            yield (
                f"{name:<{width}}  {accuracy['objects_by_class'][name]:>7}  {value:>8.4f}  "
                f"{accuracy['map50_by_class'][name]:.4f}"
            )


def _row(table: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in table.items())


if __name__ == "__main__":
    sys.exit(main())
