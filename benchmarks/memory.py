"""Does memory stay flat? Runs the program for some minutes and follows its resident memory.

    python -m benchmarks.memory [--minutes 10] [--source SOURCE] [--model MODEL] [--limit 5]

Runs `run.py` as users do (720p synthetic scene, the shipped model, an mp4 and a JSONL file unless
told otherwise), samples the process's resident memory every second, and compares the second half
of the run with the end of its first minute. Exit 1 when it has grown by more than the limit, in
percent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def sample(command: list[str], seconds: float) -> list[tuple[float, float]]:
    """Run `command` for at most `seconds`; return (seconds since start, resident MB) every
    second."""
    found: list[tuple[float, float]] = []
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    watched = psutil.Process(process.pid)
    while process.poll() is None and (passed := time.monotonic() - started) < seconds:
        found.append((passed, watched.memory_info().rss / 1e6))
        time.sleep(1)
    if process.poll() is None:
        process.terminate()
    if process.wait(60) not in (0, 130):
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return found


def main() -> int:
    """Run, print a line a minute and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--source", default="synthetic:shapes?size=1280x720")
    parser.add_argument("--model", default=None)
    parser.add_argument("--limit", type=float, default=5, help="growth allowed, percent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", "run", args.source, "--quiet"]
        command += ["-o", f"{folder}/out.mp4", "-o", f"{folder}/out.jsonl"]
        if args.model:
            command += ["--model", args.model]
        samples = sample(command, args.minutes * 60)
    minute = min(60.0, args.minutes * 60 / 4)
    print(f"{'minute':>7} {'resident MB':>12}")
    for index in range(int(samples[-1][0] // 60) + 1):
        part = [mb for passed, mb in samples if index * 60 <= passed < index * 60 + 60]
        print(f"{index + 1:>7} {part[-1]:>12.1f}")
    first = [mb for passed, mb in samples if passed <= minute][-1]
    second_half = [mb for passed, mb in samples if passed >= samples[-1][0] / 2]
    growth = (max(second_half) / first - 1) * 100
    print(
        f"after {minute:.0f} s: {first:.1f} MB; second half: {min(second_half):.1f} to "
        f"{max(second_half):.1f} MB ({growth:+.1f} %, limit {args.limit:+g} %)"
    )
    return 0 if growth <= args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
