"""Folders of labelled pictures in three common layouts.

YOLO's: `images/` beside `labels/` with one text file a picture, a line for each object: class, then
centre and size of its box as shares of the picture. COCO's: `instances*.json`, pictures beside it.
Masks of one class: `images/` beside `masks/`, see `models.train.instances_data`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from exporters.accuracy.labelled import Labelled, LabelledPicture
from exporters.accuracy.mask_pictures import read_mask_pictures
from pipeline.errors import SourceError, UsageError
from pipeline.yamlfile import load_yaml
from stages.decoders.names import COCO_80
from stages.sources.images import SUFFIXES, natural_key

NAME_FILES: Final = ("classes.txt", "data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Where a YOLO folder may say what its classes are called."""

# Box edges are rounded to six digits or so when labels are written.
_ROUNDING: Final = 1e-3
# A folder without names is taken for COCO's 80 classes if so many of their ids occur and no other:
# public sets with other classes are far smaller or larger.
_SURELY_COCO: Final = 40


def read_labelled(data: Path, names: str | None = None) -> Labelled:
    """Return the pictures and labels of a folder.

    Args:
        data: a folder in one of the layouts, or COCO's JSON file.
        names: for YOLO's layout: a file with the class names, or "coco"; for masks: a file with one
            name. None: from the folder.

    Raises:
        UsageError: nothing there, no layout, or class names that are missing or not certain.
        SourceError: a label file is broken; the text starts with file and line.
    """
    if data.is_file():
        return _read_coco(data, data.parent, names)
    if not data.is_dir():
        raise UsageError(f"--data {data}: there is no such folder")
    found = sorted([*data.glob("instances*.json"), *data.glob("annotations/instances*.json")])
    if len(found) > 1:
        raise UsageError(
            f"--data {data}: {', '.join(f.name for f in found)}: give --data the one to use"
        )
    if found:
        return _read_coco(found[0], data, names)
    if (data / "images").is_dir() and (data / "labels").is_dir():
        return _read_yolo(data, names)
    if (data / "images").is_dir() and (data / "masks").is_dir():
        return _read_masks(data, names)
    raise UsageError(
        f"--data {data}: found neither the folders images/ and labels/ (YOLO's layout) nor "
        "instances*.json (COCO's) nor images/ and masks/"
    )


# YOLO's layout


def _read_yolo(data: Path, names: str | None) -> Labelled:
    images, labels = data / "images", data / "labels"
    paths = [p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not paths:
        raise UsageError(f"--data {data}: there are no pictures in {images}")
    pictures = []
    for path in sorted(paths, key=lambda p: (natural_key(p), str(p))):
        inner = path.relative_to(images)
        label_file = labels / inner.with_suffix(".txt")
        class_id, xyxy = _read_yolo_labels(label_file) if label_file.is_file() else ([], [])
        pictures.append(
            LabelledPicture(
                path,
                inner.as_posix(),
                label_file if label_file.is_file() else None,
                np.array(xyxy, np.float64).reshape(-1, 4),
                np.array(class_id, np.int64),
                None,
                np.zeros(len(class_id), bool),
                None,
            )
        )
    class_names, names_from = _yolo_names(data, names, pictures)
    for picture in pictures:
        beyond = picture.class_id[picture.class_id >= len(class_names)]
        if len(beyond):
            raise SourceError(
                f"{picture.label_file}: class {beyond[0]}, but {names_from} has "
                f"{len(class_names)} names, the last is class {len(class_names) - 1}"
            )
    used = {p.label_file for p in pictures}
    unused = sum(1 for f in labels.rglob("*.txt") if f not in used)
    bare = sum(1 for p in pictures if p.label_file is None)
    notes = []
    if bare:
        notes.append(f"{bare} of {len(pictures)} pictures have no label file: taken as empty")
    if unused:
        notes.append(f"{unused} label files have no picture: left out")
    return Labelled(
        "yolo", data, class_names, names_from, tuple(pictures), None, notes=tuple(notes)
    )


def _read_yolo_labels(path: Path) -> tuple[list[int], list[list[float]]]:
    class_ids, boxes = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        class_id, box = _yolo_line(line, f"{path}:{number}")
        class_ids.append(class_id)
        boxes.append(box)
    return class_ids, boxes


def _yolo_line(line: str, where: str) -> tuple[int, list[float]]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) != 5 or not values[0].is_integer() or values[0] < 0:
        raise SourceError(f"{where}: expected CLASS CX CY WIDTH HEIGHT, got {line[:60]!r}")
    class_id, cx, cy, width, height = values
    box = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    inside = all(-_ROUNDING <= v <= 1 + _ROUNDING for v in box)
    if not (all(map(math.isfinite, values)) and inside and width > 0 and height > 0):
        raise SourceError(
            f"{where}: a box must lie in the picture, in shares of its size, 0..1; "
            f"got {line[:60]!r}"
        )
    return int(class_id), box


def _yolo_names(
    data: Path, names: str | None, pictures: Sequence[LabelledPicture]
) -> tuple[tuple[str, ...], str]:
    if names == "coco":
        return COCO_80, "COCO"
    files = [Path(names)] if names else [data / n for n in NAME_FILES if (data / n).is_file()]
    if len(files) > 1:
        raise UsageError(
            f"--data {data}: class names are in {' and '.join(f.name for f in files)}; say which "
            "with --names FILE"
        )
    if files:
        return _names_in(files[0]), files[0].name
    used = {int(k) for p in pictures for k in p.class_id}
    if len(used) >= _SURELY_COCO and max(used) < len(COCO_80):
        return COCO_80, f"COCO ({len(used)} of its 80 ids occur, and no other)"
    raise UsageError(
        f"--data {data}: nothing says what its {len(used)} classes are called: put one of "
        f"{', '.join(NAME_FILES)} there (one name a line, or YAML with 'names'), or give "
        "benchmarks.accuracy --names FILE, or --names coco for COCO's 80"
    )


def _names_in(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UsageError(f"--names {path}: there is no such file")
    if path.suffix not in (".yaml", ".yml"):
        return _unique([line.strip() for line in _text(path).rstrip().splitlines()], path)
    content = load_yaml(path).value
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and list(names) == [str(k) for k in range(len(names))]:
        names = list(names.values())
    if not isinstance(names, list) or not names:
        raise UsageError(f"{path}: expected 'names': a list, or a map from 0, 1, ... to names")
    return _unique([str(name) for name in names], path)


def _unique(names: Sequence[str], path: Path) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice or not names:
        raise UsageError(
            f"{path}: class names must be there once each; {', '.join(map(repr, twice)) or 'none'}"
        )
    return tuple(names)


# COCO's layout


def _read_coco(path: Path, data: Path, names: str | None) -> Labelled:
    if names is not None:
        raise UsageError(f"--names has no effect: {path.name} names its classes itself")
    try:
        content = json.loads(_text(path))
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        class_names = _unique([str(c["name"]) for c in content["categories"]], path)
        order = {category: k for k, category in enumerate(categories)}
        rows: dict[int, list[tuple[int, list[float], float, bool]]] = {}
        for image in content["images"]:
            if int(image["id"]) in rows:
                raise SourceError(f"{path}: two pictures have the id {image['id']}")
            rows[int(image["id"])] = []
        for row in content["annotations"]:
            x, y, width, height = (float(value) for value in row["bbox"])
            rows[int(row["image_id"])].append(
                (
                    order[int(row["category_id"])],
                    [x, y, x + width, y + height],
                    float(row.get("area", width * height)),
                    bool(row.get("iscrowd", 0)),
                )
            )
        folders = _picture_folders(path, data)
        pictures = [
            _coco_picture(image, rows[int(image["id"])], folders, data)
            for image in content["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} is not COCO's instances form ({type(error).__name__}: {error})"
        ) from error
    missing = [p.name for p in pictures if not p.path.is_file()]
    if missing or not pictures:
        raise UsageError(
            f"{path}: {len(missing)} of its {len(pictures)} pictures are not there"
            + (f" (first: {missing[0]})" if missing else "")
            + f"; looked in {', '.join(map(str, folders))}"
        )
    return Labelled("coco", data, class_names, path.name, tuple(pictures), path)


def _picture_folders(path: Path, data: Path) -> list[Path]:
    """Return where pictures may lie: instances_val2017.json is of the pictures val2017/."""
    split = path.stem.removeprefix("instances").strip("_-")
    folders = [
        top / inner
        for top in dict.fromkeys((data, path.parent, path.parent.parent))
        for inner in ("images", split, f"images/{split}", "")
    ]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _coco_picture(
    image: dict[str, Any],
    rows: Sequence[tuple[int, list[float], float, bool]],
    folders: Sequence[Path],
    data: Path,
) -> LabelledPicture:
    name = str(image["file_name"])
    here = [folder / name for folder in folders if (folder / name).is_file()]
    return LabelledPicture(
        here[0] if here else data / name,
        name,
        None,
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[0] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], bool),
        (int(image["width"]), int(image["height"])),
    )


# A mask for each object


def _read_masks(data: Path, names: str | None) -> Labelled:
    files = [Path(names)] if names else [data / n for n in NAME_FILES if (data / n).is_file()]
    class_names: tuple[str, ...] = ("object",)
    names_from = "nothing (--names FILE gives one)"
    if files:
        class_names, names_from = _names_in(files[0]), files[0].name
    if len(class_names) != 1:
        raise UsageError(
            f"{files[0]}: {len(class_names)} class names, but masks/ has objects of one class"
        )
    return Labelled("masks", data, class_names, names_from, read_mask_pictures(data), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as text: {error}") from error
