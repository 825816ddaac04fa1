"""The command `python -m models.train NAME`: train a model of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import RackfocusError, UsageError

WEIGHTS = Path(__file__).parent.parent / "weights"


def main(arguments: list[str] | None = None) -> int:
    """Train what the command line says; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        (_shapes if options.name == "shapes" else _instances)(options)
    except RackfocusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from {options.work}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    shapes = names.add_parser("shapes", help="the detector of synthetic:shapes, exported")
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
    _shared(shapes)

    instances = names.add_parser(
        "instances",
        help="Mask R-CNN (maskrcnn-mobilenet) from random weights on your pictures with masks",
    )
    add = instances.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="images/ and masks/: the mask of images/a.jpg is masks/a.png, 0 where there is "
        "nothing, another number for each object",
    )
    add("--pictures", type=int, metavar="N", help="only the first N by name")
    add("--class-name", default="object", metavar="NAME", help="what the objects are (object)")
    add(
        "--out",
        type=Path,
        default=Path("runs/instances/weights.pt"),
        help="weights to write, for `run.py export maskrcnn-mobilenet --weights FILE`",
    )
    add("--work", type=Path, default=Path("runs/instances"), help="folder for checkpoint and log")
    add("--steps", type=int, help="length of the schedule")
    add("--batch", type=int, help="pictures a step")
    add("--no-flips", action="store_true", help="never mirror a picture")
    _shared(instances)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and order")
    parser.add_argument("--threads", type=int, default=2, help="cores for torch")


def _shapes(options: argparse.Namespace) -> None:
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


def _instances(options: argparse.Namespace) -> None:
    for name in ("pictures", "steps", "batch", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: expected 1 or more")
    from models.train.instances_data import InstancesData, find_pairs

    pairs = find_pairs(options.data, options.pictures)

    from models.train.instances import MODEL, PREPROCESSING, Recipe, train
    from models.train.instances_result import evaluate, write

    data = InstancesData(pairs, PREPROCESSING)
    print(f"{data.count_objects()} objects in {len(data)} pictures of {options.data}")
    recipe = Recipe(
        steps=options.steps or Recipe().steps,
        batch_size=options.batch or Recipe().batch_size,
        flips=not options.no_flips,
        seed=options.seed,
        threads=options.threads,
    )
    network = train(recipe, data, options.work)
    print(evaluate(network, data).line())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(network, options.out, options.class_name)
    print(
        f"wrote {options.out}: {options.out.stat().st_size / 1e6:.1f} MB; "
        f"python run.py export {MODEL} --weights {options.out} --frames {options.data / 'images'}"
    )


if __name__ == "__main__":
    sys.exit(main())
