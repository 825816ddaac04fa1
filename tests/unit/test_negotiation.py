"""Choosing a camera's mode, against a camera that behaves like a USB 2 one."""

from fractions import Fraction

from stages.sources.negotiation import FOURCC, FPS, HEIGHT, MJPG, WIDTH, Mode, negotiate

YUYV = int.from_bytes(b"YUYV", "little")


class UsbCamera:
    """Knows rates by (format, size); takes the nearest size that the format has."""

    def __init__(self, modes, fourcc=YUYV):
        self.modes = modes
        self.fourcc = fourcc
        self.size = min(size for code, size in modes if code == fourcc)
        self.fps = modes[fourcc, self.size]

    def get(self, key):
        return {WIDTH: self.size[0], HEIGHT: self.size[1], FPS: self.fps, FOURCC: self.fourcc}[key]

    def set(self, key, value):
        if key == FOURCC:
            if not any(code == value for code, _ in self.modes):
                return False
            self.fourcc = int(value)
        sizes = [size for code, size in self.modes if code == self.fourcc]
        wanted = {WIDTH: (value, self.size[1]), HEIGHT: (self.size[0], value)}.get(key, self.size)
        self.size = min(sizes, key=lambda s: abs(s[0] - wanted[0]) + abs(s[1] - wanted[1]))
        best = self.modes[self.fourcc, self.size]
        self.fps = min(value, best) if key == FPS else best
        return True


HD, VGA = (1280, 720), (640, 480)
USB2 = {(YUYV, VGA): 30.0, (YUYV, HD): 10.0, (MJPG, VGA): 30.0, (MJPG, HD): 30.0}


def choose(modes, pixel_format="auto", size=HD, fps=30.0, **more):
    camera = UsbCamera(modes, **more)
    mode = negotiate(camera, width=size[0], height=size[1], fps=fps, pixel_format=pixel_format)
    assert camera.fourcc == int.from_bytes(mode.pixel_format.encode(), "little")
    return mode


def test_mjpg_is_taken_where_raw_is_slower():
    assert choose(USB2) == Mode(HD, Fraction(30), "MJPG")


def test_raw_is_kept_where_it_is_fast_enough():
    assert choose(USB2, size=VGA) == Mode(VGA, Fraction(30), "YUYV")


def test_mjpg_is_taken_for_a_larger_picture():
    modes = {(YUYV, VGA): 30.0, (MJPG, VGA): 30.0, (MJPG, HD): 30.0}
    assert choose(modes) == Mode(HD, Fraction(30), "MJPG")


def test_a_camera_without_mjpg_stays_raw():
    assert choose({(YUYV, VGA): 30.0}) == Mode(VGA, Fraction(30), "YUYV")


def test_the_user_can_decide():
    assert choose(USB2, "raw") == Mode(HD, Fraction(10), "YUYV")
    assert choose(USB2, "mjpg", size=VGA) == Mode(VGA, Fraction(30), "MJPG")


def test_rates_become_the_fractions_they_stand_for():
    modes = {(YUYV, VGA): 29.97002997, (MJPG, VGA): 29.97002997}
    assert choose(modes, size=VGA, fps=None).rate_hz == Fraction(30000, 1001)


def test_a_camera_that_tells_nothing_has_no_rate():
    assert choose({(YUYV, VGA): 0.0}, fps=None).rate_hz is None
