"""The images source on files of every kind it promises."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.stage import End, RunContext
from stages.sources.images import ImagesConfig, ImagesSource
from tests.contracts.check_source import check_source, read_all
from tests.helpers.media import numbered, read_number


def write(path, image, **options):
    flags = [value for pair in options.items() for value in pair]
    good, data = cv2.imencode(path.suffix, image, flags)
    assert good
    path.write_bytes(data.tobytes())


def read_images(path, **options):
    source = ImagesSource(ImagesConfig(path=path, **options), "shots")
    context = RunContext()
    info = source.open(context)
    frames, outcome = read_all(source)
    source.close()
    return info, frames, outcome, source.counters, context.notes


@pytest.fixture
def folder(tmp_path):
    for k in (10, 2, 1, 0):
        write(tmp_path / f"img{k}.png", numbered(k, (96, 64)))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_it_keeps_the_contract_of_a_source(folder):
    check_source(lambda: ImagesSource(ImagesConfig(path=str(folder)), "shots"))


def test_a_directory_comes_in_natural_order(folder):
    info, frames, outcome, _, _ = read_images(str(folder), fps="30000/1001")
    assert [read_number(f.image) for f in frames] == [0, 1, 2, 10]
    assert [f.time.pts for f in frames] == [0, 1, 2, 3]
    assert info.time_base == Fraction(1001, 30000)
    assert info.rate_hz == Fraction(30000, 1001)
    assert (info.frame_count, info.size_wh) == (4, (96, 64))
    assert [f.meta["path"] for f in frames] == [str(folder / f"img{k}.png") for k in (0, 1, 2, 10)]
    assert outcome == End()


def test_a_pattern_and_a_list(folder):
    _, frames, _, _, _ = read_images(str(folder / "img1*.png"))
    assert [read_number(f.image) for f in frames] == [1, 10]
    order = tuple(str(folder / f"img{k}.png") for k in (2, 0, 1))
    _, frames, _, _, _ = read_images(order)
    assert [read_number(f.image) for f in frames] == [2, 0, 1], "a list keeps its order"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
def test_every_format(tmp_path, suffix):
    write(tmp_path / f"7{suffix}", numbered(7, (96, 64)))
    _, frames, _, _, _ = read_images(str(tmp_path))
    assert read_number(frames[0].image) == 7


def test_depth_alpha_and_gray_become_8_bit_bgr(tmp_path):
    picture = numbered(5, (96, 64))
    write(tmp_path / "1.png", picture.astype(np.uint16) * 257)
    write(tmp_path / "2.png", np.dstack([picture, np.full((64, 96), 7, np.uint8)]))
    write(tmp_path / "3.png", cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    _, frames, _, _, _ = read_images(str(tmp_path))
    assert np.abs(frames[0].image.astype(int) - picture).max() <= 1
    assert np.array_equal(frames[1].image, picture)
    assert [read_number(f.image) for f in frames] == [5, 5, 5]
    assert all(f.image.dtype == np.uint8 and f.image.shape == (64, 96, 3) for f in frames)


def test_exif_orientation_is_applied(tmp_path):
    import struct

    write(tmp_path / "a.jpg", np.rot90(numbered(9, (96, 64))))
    data = (tmp_path / "a.jpg").read_bytes()
    # One IFD entry: tag 0x0112 (orientation), SHORT, 1 value: 6 = turn 90 degrees clockwise.
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    (tmp_path / "a.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    )
    info, frames, _, _, _ = read_images(str(tmp_path))
    assert info.size_wh == (96, 64)
    assert read_number(frames[0].image) == 9


def test_an_unreadable_picture_is_counted_and_keeps_its_place(folder):
    (folder / "img1.png").write_bytes(b"\x89PNG broken")
    (folder / "img2.png").write_bytes(b"")
    _, frames, _, counters, notes = read_images(str(folder))
    assert [read_number(f.image) for f in frames] == [0, 10]
    assert [f.time.pts for f in frames] == [0, 3]
    assert [f.id.seq for f in frames] == [0, 1]
    assert counters["corrupt"] == 2
    assert any("img1.png cannot be read" in note for note in notes)


def test_sizes_may_change(tmp_path):
    for k, size in enumerate([(96, 64), (64, 96), (128, 128)]):
        write(tmp_path / f"{k}.png", numbered(k, size))
    _, frames, _, _, _ = read_images(str(tmp_path))
    assert [f.size_wh for f in frames] == [(96, 64), (64, 96), (128, 128)]


def test_names_that_are_not_ascii(tmp_path):
    write(tmp_path / "Straße 거리.png", numbered(3, (96, 64)))
    assert len(read_images(str(tmp_path))[1]) == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda d: str(d), "no pictures there; looked for files ending in"),
        (lambda d: str(d / "*.png"), "no pictures there; looked for files that match"),
        (lambda d: str(d / "nowhere"), "no pictures there"),
        (lambda d: (str(d / "a.png"),), "1 of 1 listed pictures are not there"),
        (lambda d: (), "list at least one"),
    ],
)
def test_nothing_there_is_an_error_that_says_what_was_looked_for(tmp_path, make, text):
    with pytest.raises(SourceError, match=text):
        read_images(make(tmp_path))


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(SourceError, match="not one of its 1 files can be read"):
        read_images(str(tmp_path))
