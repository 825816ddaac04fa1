"""Accuracy of a model on synthetic scenes it was not trained on.

    python -m benchmarks.shapes_accuracy [--model FILE] [--seeds 0-99] [--frames 5]

Prints mAP50-95 as pycocotools computes it. Training draws from seeds of 1,000,000 and up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from benchmarks.detector import Detector
from exporters.accuracy.coco import Accuracy, Truth, measure
from models.train.shapes_data import TRAIN_SEED
from pipeline.errors import RackfocusError, UsageError
from pipeline.frame import Frame
from pipeline.stage import RunContext
from stages.sources.scenes import CLASS_NAMES
from stages.sources.synthetic import SyntheticConfig, SyntheticSource, parse_uri

# COCO's measure judges the whole curve, so that nearly every score is asked for.
SCORE_THRESHOLD = 0.01


def seed_range(text: str) -> range:
    """Read "0-99" or "7"."""
    first, _, last = text.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds or seeds[-1] >= TRAIN_SEED:
        raise argparse.ArgumentTypeError(f"need FIRST-LAST below {TRAIN_SEED}, got {text!r}")
    return seeds


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


def true_shapes(frame: Frame) -> Truth:
    """Return what a synthetic frame really shows."""
    shapes = frame.meta["truth"].detections  # type: ignore[attr-defined] # meta
    return Truth.of_boxes(shapes.xyxy, shapes.class_id)


def shapes_accuracy(model: str, frames: Iterable[Frame]) -> Accuracy:
    """Return how well a model finds the shapes of synthetic frames.

    Raises:
        UsageError: the model has other classes than the scenes.
    """
    with Detector(model, nms={"score_threshold": SCORE_THRESHOLD}, device="cpu") as detector:
        if detector.class_names != CLASS_NAMES:
            raise UsageError(
                f"{model} finds {', '.join(detector.class_names[:5])} ...; the scenes show "
                f"{', '.join(CLASS_NAMES)}"
            )
        return measure(((true_shapes(f), detector(f.image)) for f in frames), CLASS_NAMES)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes_accuracy")
    parser.add_argument("--model", default="shapes", help="ONNX file, or a shipped model's name")
    parser.add_argument("--seeds", type=seed_range, default=range(100), help="FIRST-LAST")
    parser.add_argument("--frames", type=int, default=5, help="frames of each seed, 4 s apart")
    parser.add_argument("--scene", default="synthetic:shapes", help="size, count and so on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    try:
        accuracy = shapes_accuracy(
            options.model, unseen_frames(options.seeds, options.frames, parse_uri(options.scene))
        )
    except RackfocusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    took_s = time.perf_counter() - started
    if options.json:
        print(json.dumps(asdict(accuracy)))
        return 0
    print(f"{options.model}: {accuracy.objects} objects in {accuracy.frames} frames, ", end="")
    print(f"seeds {options.seeds[0]}-{options.seeds[-1]}, {took_s:.0f} s")
    print(f"mAP50-95 {accuracy.map50_95:.4f}  mAP50 {accuracy.map50:.4f}  ", end="")
    print(f"mAP75 {accuracy.map75:.4f}")
    for title, table in (("class", accuracy.by_class), ("size", accuracy.by_size)):
        print(f"by {title}: " + "  ".join(f"{name} {value:.4f}" for name, value in table.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
