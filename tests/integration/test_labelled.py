"""Folders of labelled pictures: all layouts, and what is wrong with broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from exporters.accuracy.layouts import read_labelled
from pipeline.errors import SourceError, UsageError
from stages.decoders.names import COCO_80
from stages.sources.scenes import CLASS_NAMES

ROOT = Path(__file__).parents[2]


def write_picture(path, size_wh=(64, 48), seed=0):
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    cv2.imwrite(str(path), noise)


@pytest.fixture
def yolo(tmp_path):
    """Three pictures, two of them labelled."""
    for name in ("2.png", "10.png", "sub/3.png"):
        write_picture(tmp_path / "images" / name)
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    (tmp_path / "labels" / "10.txt").write_text("0 0.5 0.5 0.5 0.25\n\n1 0.25 0.5 0.5 1.0\n")
    (tmp_path / "labels" / "sub" / "3.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "labels" / "99.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    """Two pictures; category ids with gaps and not in order."""
    write_picture(tmp_path / "val" / "a.png", (64, 48))
    write_picture(tmp_path / "val" / "b.png", (32, 32))
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 3, "file_name": "b.png", "width": 32, "height": 32},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 4, "bbox": [8, 4, 16, 20], "area": 99.5, "iscrowd": 0},
            {"image_id": 7, "category_id": 90, "bbox": [0, 0, 64, 48], "area": 100, "iscrowd": 1},
        ],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(json.dumps(content))
    return path, content


def test_yolo_boxes_are_centre_and_size_in_shares_of_the_picture(yolo):
    data = read_labelled(yolo)
    assert (data.layout, data.class_names, data.names_from) == (
        "yolo",
        ("cat", "dog"),
        "classes.txt",
    )
    assert [p.name for p in data.pictures] == ["2.png", "10.png", "sub/3.png"]
    truth = data.pictures[1].truth((64, 48))
    np.testing.assert_allclose(truth.xyxy, [[16, 18, 48, 30], [0, 0, 32, 48]])
    assert truth.class_id.tolist() == [0, 1]
    np.testing.assert_allclose(truth.area, [32 * 12, 32 * 48])
    assert not truth.crowd.any()
    assert len(data.pictures[0].truth((64, 48))) == 0
    assert data.present() == {0, 1}
    assert data.notes == (
        "1 of 3 pictures have no label file: taken as empty",
        "1 label files have no picture: left out",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "expected CLASS CX CY WIDTH HEIGHT"),
        ("0 0.5 0.5 0.5 0.5 0.9", "expected CLASS CX CY WIDTH HEIGHT"),
        ("cat 0.5 0.5 0.5 0.5", "expected CLASS CX CY WIDTH HEIGHT"),
        ("0.5 0.5 0.5 0.5 0.5", "expected CLASS CX CY WIDTH HEIGHT"),
        ("-1 0.5 0.5 0.5 0.5", "expected CLASS CX CY WIDTH HEIGHT"),
        ("0 32 24 10 10", "shares of its size"),
        ("0 0.9 0.5 0.5 0.5", "must lie in the picture"),
        ("0 0.5 0.5 0 0.5", "must lie in the picture"),
        ("0 nan 0.5 0.5 0.5", "must lie in the picture"),
    ],
)
def test_a_broken_label_is_named_by_file_and_line(yolo, line, message):
    (yolo / "labels" / "10.txt").write_text(f"0 0.5 0.5 0.5 0.25\n{line}\n")
    with pytest.raises(SourceError, match=message) as caught:
        read_labelled(yolo)
    assert f"{yolo / 'labels' / '10.txt'}:2: " in str(caught.value)


def test_class_names_come_from_a_file_or_are_asked_for(yolo):
    (yolo / "classes.txt").unlink()
    with pytest.raises(UsageError, match="nothing says what its 2 classes are called"):
        read_labelled(yolo)
    assert read_labelled(yolo, "coco").class_names == COCO_80
    (yolo / "data.yaml").write_text("names:\n  0: lion\n  1: bear\n")
    assert read_labelled(yolo).class_names == ("lion", "bear")
    (yolo / "other.yaml").write_text("names: [one, two, three]\n")
    assert read_labelled(yolo, str(yolo / "other.yaml")).class_names == ("one", "two", "three")
    (yolo / "other.yaml").write_text("names: {0: one, 2: two}\n")
    with pytest.raises(UsageError, match="a map from 0, 1"):
        read_labelled(yolo, str(yolo / "other.yaml"))
    (yolo / "classes.txt").write_text("cat\n")
    with pytest.raises(UsageError, match=r"classes.txt and data.yaml; say which"):
        read_labelled(yolo)
    with pytest.raises(SourceError, match=r"10.txt: class 1, but classes.txt has 1 names"):
        read_labelled(yolo, str(yolo / "classes.txt"))
    (yolo / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(UsageError, match="once each; 'cat'"):
        read_labelled(yolo, str(yolo / "classes.txt"))


def test_many_ids_below_eighty_are_cocos(yolo):
    (yolo / "classes.txt").unlink()
    label = yolo / "labels" / "10.txt"
    label.write_text("".join(f"{k} 0.5 0.5 0.5 0.5\n" for k in range(20, 60)))
    data = read_labelled(yolo)
    assert (data.class_names, data.names_from[:4]) == (COCO_80, "COCO")
    label.write_text("".join(f"{k} 0.5 0.5 0.5 0.5\n" for k in range(41, 81)))
    with pytest.raises(UsageError, match="--names"):
        read_labelled(yolo)


def test_the_hash_sees_every_picture_label_and_name(yolo):
    seen = {read_labelled(yolo).sha256()}
    assert read_labelled(yolo).sha256() in seen
    for change in (
        lambda: write_picture(yolo / "images" / "2.png", seed=1),
        lambda: (yolo / "labels" / "10.txt").write_text("0 0.5 0.5 0.5 0.5\n"),
        lambda: (yolo / "labels" / "2.txt").write_text(""),
        lambda: (yolo / "classes.txt").write_text("cat\nfox\n"),
        lambda: (yolo / "images" / "2.png").rename(yolo / "images" / "20.png"),
    ):
        change()
        seen.add(read_labelled(yolo).sha256())
    assert len(seen) == 6


def test_coco_boxes_are_corner_and_size_in_pixels(coco):
    path, _ = coco
    data = read_labelled(path.parent.parent)
    assert (data.layout, data.class_names) == ("coco", ("dog", "cat"))
    assert [p.path for p in data.pictures] == [
        path.parent.parent / "val" / name for name in ("a.png", "b.png")
    ]
    truth = data.pictures[0].truth((64, 48))
    np.testing.assert_allclose(truth.xyxy, [[8, 4, 24, 24], [0, 0, 64, 48]])
    assert truth.class_id.tolist() == [1, 0]
    assert truth.area.tolist() == [99.5, 100]
    assert truth.crowd.tolist() == [False, True]
    assert data.present() == {1}
    assert len(data.pictures[1].truth((32, 32))) == 0
    assert read_labelled(path).sha256() == data.sha256()


@pytest.fixture
def masks(tmp_path):
    """Two pictures of 64 x 48, one with two objects in its mask file."""
    import cv2

    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "images" / name)
    (tmp_path / "masks").mkdir()
    numbers = np.zeros((48, 64), np.uint8)
    cv2.imwrite(str(tmp_path / "masks" / "b.png"), numbers)
    numbers[10:20, 5:35] = 1
    numbers[12, 8] = 0
    numbers[40:48, 60:64] = 2
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), numbers)
    return tmp_path


def test_masks_give_boxes_areas_and_outlines_of_one_class(masks):
    data = read_labelled(masks)
    assert (data.layout, data.class_names, data.present()) == ("masks", ("object",), {0})
    truth = data.pictures[0].truth((64, 48))
    np.testing.assert_array_equal(truth.xyxy, [[5, 10, 35, 20], [60, 40, 64, 48]])
    assert truth.area.tolist() == [299, 32]
    assert truth.masks.shape == (2, 48, 64)
    assert truth.masks.sum(axis=(1, 2)).tolist() == [299, 32]
    assert len(data.pictures[1].truth((64, 48))) == 0
    with pytest.raises(SourceError, match="its labels are for 64x48"):
        data.pictures[0].truth((48, 64))


def test_the_class_of_masks_may_be_named(masks):
    before = read_labelled(masks).sha256()
    (masks / "classes.txt").write_text("person\n")
    data = read_labelled(masks)
    assert (data.class_names, data.names_from) == (("person",), "classes.txt")
    assert data.sha256() != before
    (masks / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"classes\.txt: 2 class names, but masks/ has"):
        read_labelled(masks)
    (masks / "masks" / "b.png").write_bytes(b"broken")
    (masks / "classes.txt").write_text("cat\n")
    with pytest.raises(SourceError, match=r"masks/b\.png cannot be read"):
        read_labelled(masks)


def test_a_picture_of_another_size_than_its_labels_is_refused(coco):
    path, _ = coco
    with pytest.raises(SourceError, match=r"is 48x64, but its labels are for 64x48"):
        read_labelled(path).pictures[0].truth((48, 64))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c["images"].append(dict(c["images"][0])),
            SourceError,
            "two pictures have the id",
        ),
        (lambda c: c["images"][0].update(file_name="c.png"), UsageError, "1 of its 2 pictures are"),
        (lambda c: c["annotations"][0].update(image_id=5), SourceError, "KeyError: 5"),
        (lambda c: c["annotations"][0].update(category_id=5), SourceError, "KeyError: 5"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), SourceError, "not enough values"),
        (lambda c: c.pop("categories"), SourceError, "is not COCO's instances form"),
        (lambda c: c["categories"][0].update(name="cat"), UsageError, "once each; 'cat'"),
    ],
)
def test_a_broken_coco_file_is_refused(coco, change, error, message):
    path, content = coco
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        read_labelled(path)


def test_a_folder_that_is_neither_says_what_was_looked_for(tmp_path, coco):
    with pytest.raises(UsageError, match="there is no such folder"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="neither the folders images/ and labels/"):
        read_labelled(tmp_path / "val")
    with pytest.raises(UsageError, match="names its classes itself"):
        read_labelled(coco[0], "coco")
    (tmp_path / "instances_train.json").write_text("{}")
    with pytest.raises(UsageError, match=r"instances_val.json.*give --data the one"):
        read_labelled(tmp_path)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_measures_the_shipped_model_on_its_own_scenes(tmp_path):
    """Labels as YOLO writes them, made from the truth of drawn scenes."""
    import cv2

    from benchmarks.shapes_accuracy import shapes_accuracy, true_shapes, unseen_frames
    from stages.sources.synthetic import SyntheticConfig

    frames = list(unseen_frames(range(700, 703), 2, SyntheticConfig()))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for index, frame in enumerate(frames):
        height, width = frame.image.shape[:2]
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), frame.image)
        truth = true_shapes(frame)
        rows = (truth.xyxy / [width, height, width, height]).tolist()
        (tmp_path / "labels" / f"{index}.txt").write_text(
            "".join(
                f"{k} {(a + c) / 2:.9f} {(b + d) / 2:.9f} {c - a:.9f} {d - b:.9f}\n"
                for k, (a, b, c, d) in zip(truth.class_id, rows, strict=True)
            )
        )
    (tmp_path / "classes.txt").write_text("\n".join(CLASS_NAMES))
    given = ("--model", "shapes", "--data", tmp_path, "--set", "nms.score_threshold=0.01")
    code, out, _ = command(*given, "--classes", "--json", tmp_path / "a.json", "--device", "cpu")
    assert code == 0
    result = json.loads((tmp_path / "a.json").read_text())
    expected = shapes_accuracy("shapes", frames)
    # The labels are rounded to a billionth of the picture.
    assert result["accuracy"]["map50_95"] == pytest.approx(expected.map50_95, abs=1e-6)
    assert result["accuracy"]["objects_by_class"] == expected.objects_by_class
    assert result["settings"]["nms"]["score_threshold"] == 0.01
    assert result["settings"]["nms"]["max_detections"] == 100
    assert f"mAP50-95 {expected.map50_95:.4f}  mAP50 {expected.map50:.4f}" in out
    assert "6 pictures" in out
    assert all(f"\n{name}" in out for name in CLASS_NAMES)
    assert result["model"]["sha256"] in out
    assert result["data"]["sha256"] in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--set", "overlay.masks=true"), "only options of preprocess, infer, nms have effect"),
        (("--set", "nms.iou_treshold=0.6"), "did you mean 'iou_threshold'"),
        (("--set", "nms.iou_threshold=7"), "iou_threshold"),
        (("--model", "shaped"), "nor a model of that name"),
        (("--device", "cuda:99"), "cuda:99"),
        ((), "2 of the 2 classes with objects are unknown to the model: cat, dog"),
        (("--data", "nowhere"), "there is no such folder"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_message(yolo, extra, message):
    code, out, err = command("--model", "shapes", "--data", yolo, *extra)
    assert (code, out) == (2, "")
    assert message in err


def test_a_picture_that_cannot_be_read_ends_the_measure(yolo):
    (yolo / "classes.txt").write_text("circle\nstar\n")
    (yolo / "images" / "10.png").write_bytes(b"no picture")
    code, _, err = command("--model", "shapes", "--data", yolo)
    assert code == 1
    assert "10.png cannot be read as a picture" in err
