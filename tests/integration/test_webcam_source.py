"""The webcam source's reading logic on OpenCV's capture of a video file, and on one that blocks."""

import threading
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import SourceError
from pipeline.frame import Frame
from pipeline.stage import Lost, RunContext, Timeout
from stages.sources.webcam import WebcamConfig, WebcamSource, cameras_there
from tests.contracts.check_source import check_source, read_all
from tests.helpers.media import make_video, read_number


class Paced:
    """OpenCV's capture of a file, slowed to a camera's pace, with a camera's properties."""

    def __init__(self, path, *, pause_s=0.005):
        self.capture = cv2.VideoCapture(str(path))
        self.pause_s = pause_s
        self.released = False

    def read(self):
        time.sleep(self.pause_s)
        return self.capture.read()

    def release(self):
        self.released = True
        self.capture.release()

    def __getattr__(self, name):
        return getattr(self.capture, name)


class Frozen:
    """A camera that is there and gives `count` pictures, then blocks until it is let go."""

    def __init__(self, count=0):
        self.count = count
        self.let_go = threading.Event()

    def isOpened(self):
        return True

    def get(self, key):
        return 0.0

    def set(self, key, value):
        return False

    def read(self):
        if self.count:
            self.count -= 1
            return True, np.zeros((48, 64, 3), np.uint8)
        self.let_go.wait(20)
        return False, None

    def release(self):
        self.let_go.set()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("cam") / "cam.avi", codec="mjpeg", pix_fmt="yuvj420p")


def camera(capture, **options):
    return WebcamSource(WebcamConfig(**options), "desk", capture=lambda _: capture)


def test_it_keeps_the_contract_of_a_source(clip):
    options = WebcamConfig(read_timeout_s=0.2)
    check_source(
        lambda: WebcamSource(options, "desk", capture=lambda _: Paced(clip, pause_s=0.02)), limit=5
    )


def test_pictures_come_in_order_with_their_times_and_numbers(clip):
    capture = Paced(clip)
    source = camera(capture, read_timeout_s=0.2)
    context = RunContext()
    info = source.open(context)
    assert (info.live, info.size_wh, info.rate_hz) == (True, (320, 240), Fraction(25))
    assert info.time_base == Fraction(1, 1_000_000)
    assert any("320x240 at 25 fps (MJPG)" in note for note in context.notes)
    frames, outcome = read_all(source)
    assert isinstance(outcome, Lost)
    assert "no picture for 0.2 s" in outcome.reason
    # seq counts what the camera gave, so the numbers in the pictures equal it, gaps included.
    assert [read_number(f.image) for f in frames] == [f.id.seq for f in frames]
    assert len(frames) + source.counters["skipped"] == 50
    assert frames[0].time.pts == 0
    for frame in frames:
        elapsed_us = (frame.time.captured_ns - frames[0].time.captured_ns) // 1000
        assert abs(frame.time.pts - elapsed_us) <= len(frames)
    source.close()
    assert capture.released


def test_a_slow_reader_gets_the_freshest_picture_and_the_skipped_are_counted(clip):
    source = camera(Paced(clip, pause_s=0.002), read_timeout_s=0.2)
    source.open(RunContext())
    time.sleep(0.15)
    frame = source.read(1.0)
    assert isinstance(frame, Frame)
    assert frame.id.seq > 0
    assert source.counters["skipped"] >= frame.id.seq
    source.close()


def test_a_blocked_read_ends_soon_after_interrupt():
    frozen = Frozen(count=1)
    source = camera(frozen)
    source.open(RunContext())
    assert isinstance(source.read(1.0), Frame)
    assert isinstance(source.read(0.05), Timeout)
    timer = threading.Timer(0.1, source.interrupt)
    timer.start()
    began = time.monotonic()
    assert isinstance(source.read(30.0), Timeout)
    assert isinstance(source.read(30.0), Timeout), "later reads return at once"
    assert time.monotonic() - began < 1.0
    timer.join()
    frozen.let_go.set()  # as the driver does after its select timeout
    source.close()


def test_a_blocked_open_ends_soon_after_interrupt():
    frozen = Frozen()
    source = camera(frozen, open_timeout_s=30)
    timers = [threading.Timer(0.1, source.interrupt), threading.Timer(0.3, frozen.let_go.set)]
    for timer in timers:
        timer.start()
    began = time.monotonic()
    with pytest.raises(SourceError, match="stopped while it was being opened"):
        source.open(RunContext())
    assert time.monotonic() - began < 1.0
    for timer in timers:
        timer.join()


def test_a_camera_that_gives_nothing_is_an_error_within_the_deadline():
    frozen = Frozen()
    source = camera(frozen, open_timeout_s=0.1)
    timer = threading.Timer(0.2, frozen.let_go.set)
    timer.start()
    with pytest.raises(SourceError, match=r"no picture within 0\.1 s"):
        source.open(RunContext())
    timer.join()


def test_a_driver_that_raises_ends_in_lost_and_not_in_silence(clip, recwarn):
    class Failing(Paced):
        def read(self):
            good, image = super().read()
            if self.capture.get(cv2.CAP_PROP_POS_FRAMES) > 3:
                raise cv2.error("driver failed")
            return good, image

    source = camera(Failing(clip))
    source.open(RunContext())
    _, outcome = read_all(source)
    assert isinstance(outcome, Lost)
    assert "driver failed" in outcome.reason
    source.close()


def test_a_camera_that_is_not_there_names_those_that_are():
    source = WebcamSource(WebcamConfig(device="73"), "desk")
    with pytest.raises(SourceError, match="camera 73: there is no such camera; ") as caught:
        source.open(RunContext())
    assert cameras_there() in str(caught.value)
    assert "/dev/video" in str(caught.value)


@pytest.mark.parametrize("device", ["front", "-1", "video0", "http://x"])
def test_a_device_is_a_number_or_a_path(device):
    with pytest.raises(ValidationError, match="expected a number or a path"):
        WebcamConfig(device=device)
    assert WebcamConfig(device=2).device == "2"
