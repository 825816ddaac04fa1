"""The command `python -m models.train NAME`: train a model of ours and export it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "weights"


def main(arguments: list[str] | None = None) -> int:
    """Train what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    shapes = names.add_parser("shapes", help="the detector of synthetic:shapes")
    shapes.add_argument("--out", type=Path, default=WEIGHTS / "shapes.onnx", help="file to write")
    shapes.add_argument(
        "--work", type=Path, default=Path("runs/shapes"), help="folder for checkpoint and log"
    )
    shapes.add_argument("--steps", type=int, help="length of the schedule")
    shapes.add_argument(
        "--minutes",
        type=float,
        default=27.0,
        help="hurry the schedule to end by then; 0: as long as the steps take (default: 27)",
    )
    shapes.add_argument("--pictures", type=int, help="how many to draw; fewer for a trial")
    shapes.add_argument("--seed", type=int, default=0, help="of pictures, weights and order")
    shapes.add_argument("--threads", type=int, default=2, help="cores for torch")
    options = parser.parse_args(arguments)

    from models.train.shapes import Recipe, train
    from models.train.shapes_export import export_shapes

    recipe = Recipe(
        steps=options.steps or Recipe().steps,
        pictures=options.pictures or Recipe().pictures,
        minutes=options.minutes or None,
        seed=options.seed,
        threads=options.threads,
    )
    network = train(recipe, options.work)
    parity = export_shapes(network, options.out)
    print(f"wrote {options.out}: {options.out.stat().st_size / 1e6:.2f} MB, {parity}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
