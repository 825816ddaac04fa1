"""Accuracy of a model on synthetic scenes it was not trained on.

    python -m benchmarks.shapes_accuracy [--model FILE] [--seeds 0-99] [--frames 5]

Prints mAP50-95 as pycocotools computes it. Training draws from seeds of 1,000,000 and up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from models.train.shapes_accuracy import OnnxDetector, measure, unseen_frames
from models.train.shapes_data import TRAIN_SEED
from stages.sources.synthetic import SyntheticConfig, parse_uri

SHIPPED = Path(__file__).parent.parent / "models" / "weights" / "shapes.onnx"


def seed_range(text: str) -> range:
    """Read "0-99" or "7"."""
    first, _, last = text.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds or seeds[-1] >= TRAIN_SEED:
        raise argparse.ArgumentTypeError(f"need FIRST-LAST below {TRAIN_SEED}, got {text!r}")
    return seeds


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes_accuracy")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="ONNX file")
    parser.add_argument("--seeds", type=seed_range, default=range(100), help="FIRST-LAST")
    parser.add_argument("--frames", type=int, default=5, help="frames of each seed, 4 s apart")
    parser.add_argument("--scene", default="synthetic:shapes", help="size, count and so on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    config: SyntheticConfig = parse_uri(options.scene)
    detector = OnnxDetector(options.model)
    started = time.perf_counter()
    try:
        accuracy = measure(
            (frame.meta["truth"].detections, detector(frame))
            for frame in unseen_frames(options.seeds, options.frames, config)
        )
    finally:
        detector.close()
    took_s = time.perf_counter() - started
    if options.json:
        print(json.dumps(asdict(accuracy)))
        return 0
    print(f"{options.model.name}: {accuracy.objects} objects in {accuracy.frames} frames, ", end="")
    print(f"seeds {options.seeds[0]}-{options.seeds[-1]}, {took_s:.0f} s")
    print(f"mAP50-95 {accuracy.map50_95:.4f}  AP50 {accuracy.ap50:.4f}  AP75 {accuracy.ap75:.4f}")
    for title, table in (("class", accuracy.by_class), ("size", accuracy.by_size)):
        print(f"by {title}: " + "  ".join(f"{name} {value:.4f}" for name, value in table.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
