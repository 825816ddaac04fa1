"""What suppression costs: `python -m benchmarks.nms [--json FILE]`.

CPU milliseconds on one core, median and 95th percentile, at 100, 1,000 and 10,000 candidates in
three scenes (around 50 objects, scattered, none overlapping), beside torchvision's batched_nms and
the textbook's loop over boxes. The best 300 are asked for, as the nms stage does by default; the
others have no such limit and always do the whole work.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages import suppression

COUNTS: Final = (100, 1000, 10_000)
SCENES: Final = ("clusters", "scattered", "disjoint")
CLASSES: Final = 80
LIMIT: Final = 301
IOU: Final = 0.45
REPEATS: Final = 15
# The loop takes seconds at 10,000: it is measured once there.
SLOW_FROM: Final = 10_000

Scene = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def scene(kind: str, count: int, seed: int = 0) -> Scene:
    """Return boxes, scores and classes of one scene in about 640x640 pixels."""
    generator = np.random.default_rng(seed)
    class_id = generator.integers(0, CLASSES, count)
    if kind == "clusters":
        which = generator.integers(0, 50, count)
        centre = generator.uniform(50, 590, (50, 2))[which] + generator.normal(0, 4, (count, 2))
        size = generator.uniform(30, 200, (50, 2))[which]
        size = size * generator.uniform(0.8, 1.2, (count, 2))
        class_id = generator.integers(0, CLASSES, 50)[which]
    elif kind == "scattered":
        centre = generator.uniform(0, 640, (count, 2))
        size = generator.uniform(10, 100, (count, 2))
    else:
        cell = np.arange(count)
        centre = np.stack([cell % 100, cell // 100], 1) * 10.0
        size = np.full((count, 2), 8.0)
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
    score = ((generator.permutation(count) + 1) / (count + 1)).astype(np.float32)
    return xyxy, score, class_id


def plain_loop(
    xyxy: NDArray[np.float32], score: NDArray[np.float32], class_id: NDArray[np.int64]
) -> list[int]:
    """Return what the textbook's loop keeps."""
    left = [int(i) for i in np.argsort(-score, kind="stable")]
    area = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        rest = np.array(left, np.int64)
        low = np.maximum(xyxy[best, :2], xyxy[rest, :2])
        high = np.minimum(xyxy[best, 2:], xyxy[rest, 2:])
        shared = np.prod((high - low).clip(0), axis=1)
        over = shared > IOU * (area[best] + area[rest] - shared)
        left = [
            i
            for i, far in zip(left, ~(over & (class_id[rest] == class_id[best])), strict=True)
            if far
        ]
    return kept


def cpu_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return median and 95th percentile of this thread's CPU time, milliseconds."""
    work()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append((time.thread_time() - start) * 1e3)
    return float(np.median(times)), float(np.percentile(times, 95))


def torchvision_nms() -> Callable[[Scene], Callable[[], object]] | None:
    """Return a maker of torchvision's call on one core, or None where it is not installed."""
    try:
        import torch
        from torchvision.ops import batched_nms
    except ImportError:
        return None
    torch.set_num_threads(1)

    def make(candidates: Scene) -> Callable[[], object]:
        tensors = [torch.from_numpy(array) for array in candidates]
        return lambda: batched_nms(*tensors, IOU)

    return make


def measure() -> list[dict[str, object]]:
    """Return one row for each scene and count; times in CPU milliseconds."""
    reference = torchvision_nms()
    rows: list[dict[str, object]] = []
    for kind in SCENES:
        for count in COUNTS:
            candidates = scene(kind, count)
            xyxy, score, class_id = candidates
            row: dict[str, object] = {"scene": kind, "candidates": count}
            ours = {
                "hard": lambda: suppression.hard(xyxy, score, class_id, IOU, LIMIT),  # noqa: B023 - called at once
                "agnostic": lambda: suppression.hard(xyxy, score, None, IOU, LIMIT),  # noqa: B023 - called at once
                "merge": lambda: suppression.merge(xyxy, score, class_id, IOU, LIMIT),  # noqa: B023 - called at once
                "soft": lambda: suppression.soft(
                    xyxy,  # noqa: B023 - called at once
                    score,  # noqa: B023 - called at once
                    class_id,  # noqa: B023 - called at once
                    iou_threshold=IOU,
                    score_threshold=0.3,
                    limit=LIMIT,
                ),
            }
            for name, work in ours.items():
                row[f"{name}_ms"], row[f"{name}_p95_ms"] = cpu_ms(work, REPEATS)
            if reference is not None:
                row["torchvision_ms"], _ = cpu_ms(reference(candidates), REPEATS)
            if count < SLOW_FROM or kind == "clusters":
                row["loop_ms"], _ = cpu_ms(
                    lambda: plain_loop(xyxy, score, class_id),  # noqa: B023 - called at once
                    3 if count < SLOW_FROM else 1,
                )
            rows.append(row)
    return rows


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description="What suppression costs, CPU milliseconds.")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rows = measure()
    columns = ("hard", "agnostic", "merge", "soft", "torchvision", "loop")
    print(f"{'scene':10} {'n':>6} " + " ".join(f"{c:>12}" for c in columns) + "   of torchvision")
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(f"{column}_ms")
            cells.append(f"{value:12.2f}" if isinstance(value, float) else f"{'-':>12}")
        hard, other = row["hard_ms"], row.get("torchvision_ms")
        ratio = (
            f"{hard / other:10.2f}x" if isinstance(hard, float) and isinstance(other, float) else ""
        )
        print(f"{row['scene']:10} {row['candidates']:6} " + " ".join(cells) + f"   {ratio}")
    print("CPU milliseconds on one core, median; best 300 asked for; torchvision and loop: all")
    if arguments.json:
        machine = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__}
        arguments.json.write_text(json.dumps({**machine, "rows": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
