"""Detectors written a second time: plain ONNX Runtime and NumPy, after each model's documents.

Nothing here imports the project. Every row is decoded before any is dropped, suppression is the
textbook loop. Boxes go back through the size that the picture really was resized to: the published
demos divide by the ratio before rounding, which puts boxes of a 768x432 picture, cut to 233 rows
where the ratio says 234, up to 1.8 px too high.
"""

from __future__ import annotations

import cv2
import numpy as np


class Reference:
    """One model file, with its documented way from a BGR picture to boxes."""

    def __init__(self, path, kind):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.kind = kind
        self.entry = self.session.get_inputs()[0]

    def detect(self, image, score_threshold, iou_threshold):
        """Return (n, 6) float64: x1, y1, x2, y2 in picture pixels, clipped; score; class."""
        rows, suppressed = getattr(self, "_" + self.kind)(image)
        rows = np.asarray(rows, np.float64).reshape(-1, 6)
        rows = rows[rows[:, 4] >= score_threshold]
        height, width = image.shape[:2]
        if not suppressed:
            rows = nms_per_class(rows, iou_threshold)
        rows[:, [0, 2]] = np.clip(rows[:, [0, 2]], 0, width)
        rows[:, [1, 3]] = np.clip(rows[:, [1, 3]], 0, height)
        return rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]

    def _run(self, tensor):
        return self.session.run(None, {self.entry.name: np.ascontiguousarray(tensor)})

    def _yolox(self, image):
        size = self.entry.shape[2]
        ratio = min(size / image.shape[0], size / image.shape[1])
        padded = np.full((size, size, 3), 114, np.uint8)
        small = cv2.resize(image, (int(image.shape[1] * ratio), int(image.shape[0] * ratio)))
        padded[: small.shape[0], : small.shape[1]] = small
        back = real_scale(image, small)
        out = self._run(padded.transpose(2, 0, 1)[None].astype(np.float32))[0][0]
        rows, at = [], 0
        for stride in (8, 16, 32):
            for y in range(size // stride):
                for x in range(size // stride):
                    p = out[at]
                    at += 1
                    cx, cy = (p[0] + x) * stride, (p[1] + y) * stride
                    w, h = np.exp(p[2]) * stride, np.exp(p[3]) * stride
                    k = int(np.argmax(p[5:]))
                    box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) / back
                    rows.append([*box, p[4] * p[5 + k], k])
        assert at == len(out)
        return rows, False

    def _yolov8(self, image):
        size = self.entry.shape[2]
        height, width = image.shape[:2]
        gain = min(size / height, size / width)
        new_w, new_h = round(width * gain), round(height * gain)
        dw, dh = (size - new_w) / 2, (size - new_h) / 2
        small = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
        top, bottom = round(dh - 0.1), round(dh + 0.1)
        left, right = round(dw - 0.1), round(dw + 0.1)
        padded = cv2.copyMakeBorder(
            small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114)
        )
        tensor = padded[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        out = self._run(tensor)[0][0][:84].T
        x, y, w, h = out[:, :4].T
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        boxes = (boxes - [left, top, left, top]) / real_scale(image, small)
        return np.column_stack([boxes, out[:, 4:].max(1), out[:, 4:].argmax(1)]), False

    def _picodet(self, image):
        size = self.entry.shape[2]
        small = cv2.resize(image, (size, size))[:, :, ::-1].astype(np.float32)
        small = (small - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
        outs = self._run(small.transpose(2, 0, 1)[None].astype(np.float32))
        boxes = _distances(outs, size, (8, 16, 32, 64), lambda i, s: (i + 0.5) * s)
        boxes[:, [0, 2]] *= image.shape[1] / size
        boxes[:, [1, 3]] *= image.shape[0] / size
        return boxes, False

    def _nanodet(self, image):
        size = self.entry.shape[2]
        ratio = min(size / image.shape[0], size / image.shape[1])
        padded = np.zeros((size, size, 3), np.float32)
        small = cv2.resize(image, (int(image.shape[1] * ratio), int(image.shape[0] * ratio)))
        padded[: small.shape[0], : small.shape[1]] = small
        padded = (padded - [103.53, 116.28, 123.675]) / [57.375, 57.12, 58.395]
        outs = self._run(padded.transpose(2, 0, 1)[None].astype(np.float32))
        boxes = _distances(outs, size, (8, 16, 32), lambda i, s: i * s + (s - 1) / 2)
        boxes[:, :4] /= real_scale(image, small)
        return boxes, False

    def _fastestv2(self, image):
        anchors = [12.64, 19.39, 37.88, 51.48, 55.71, 138.31]
        anchors += [126.91, 78.23, 131.57, 214.55, 279.92, 258.87]
        anchors = np.array(anchors).reshape(2, 3, 2)
        size = self.entry.shape[2]
        tensor = cv2.resize(image, (size, size)).transpose(2, 0, 1)[None].astype(np.float32) / 255
        out = self._run(tensor)[0]
        rows, at = [], 0
        across, down = image.shape[1] / size, image.shape[0] / size
        for level, stride in enumerate((16, 32)):
            for y in range(size // stride):
                for x in range(size // stride):
                    p = out[at]
                    at += 1
                    k = int(np.argmax(p[15:]))
                    for a in range(3):
                        q = p[4 * a : 4 * a + 4]
                        cx, cy = (q[0] * 2 - 0.5 + x) * stride, (q[1] * 2 - 0.5 + y) * stride
                        w, h = (q[2:] * 2) ** 2 * anchors[level, a]
                        box = [
                            (cx - w / 2) * across,
                            (cy - h / 2) * down,
                            (cx + w / 2) * across,
                            (cy + h / 2) * down,
                        ]
                        rows.append([*box, p[12 + a] * p[15 + k], k])
        return rows, False

    def _tflite_ssd(self, image):
        picture = cv2.resize(image, (300, 300))[:, :, ::-1]
        boxes, classes, scores, count = self._run(picture[None])
        rows = []
        for i in range(int(count[0])):
            top, left, bottom, right = boxes[0, i]
            height, width = image.shape[:2]
            box = [left * width, top * height, right * width, bottom * height]
            rows.append([*box, scores[0, i], classes[0, i]])
        return rows, True

    def _ultraface(self, image):
        picture = cv2.resize(image, (320, 240))[:, :, ::-1].astype(np.float32)
        scores, boxes = self._run(((picture - 127) / 128).transpose(2, 0, 1)[None])
        height, width = image.shape[:2]
        boxes = boxes[0] * [width, height, width, height]
        return np.column_stack([boxes, scores[0, :, 1], np.zeros(len(boxes))]), False


def real_scale(image, resized):
    """Return resized over original size: x, y, x, y."""
    across = resized.shape[1] / image.shape[1]
    down = resized.shape[0] / image.shape[0]
    return np.array([across, down, across, down])


def _distances(outs, size, strides, centre):
    """Decode class and box tables of NanoDet's form, told apart by their shapes."""
    tables = {o.reshape(-1, o.shape[-1]).shape: o.reshape(-1, o.shape[-1]) for o in outs}
    rows = []
    for stride in strides:
        side = int(np.ceil(size / stride))
        classes, logits = tables[side * side, 80], tables[side * side, 32]
        for i in range(side * side):
            y, x = divmod(i, side)
            z = np.exp(logits[i].reshape(4, 8).astype(np.float64))
            left, top, right, bottom = (z / z.sum(1, keepdims=True)) @ np.arange(8) * stride
            cx, cy = centre(x, stride), centre(y, stride)
            k = int(classes[i].argmax())
            rows.append([cx - left, cy - top, cx + right, cy + bottom, classes[i, k], k])
    return np.array(rows)


def iou(a, b):
    """Return the intersection over union of two boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area_a + area_b - w * h)


def nms_per_class(rows, iou_threshold):
    """Return the rows that greedy suppression keeps, class by class; equal scores by index."""
    kept, by_class = [], {}
    for row in rows[np.argsort(-rows[:, 4], kind="stable")]:
        # Lists of floats: NumPy's scalars take ten times as long to compare.
        box, rivals = row[:4].tolist(), by_class.setdefault(row[5], [])
        if all(iou(box, rival) <= iou_threshold for rival in rivals):
            rivals.append(box)
            kept.append(row)
    return np.array(kept).reshape(-1, 6)


def count_matches(expected, found, least_iou, most_score_gap):
    """Return how many boxes pair up one to one: same class, enough overlap, near enough scores."""
    pairs = sorted(
        (
            (-iou(e, f), i, j)
            for i, e in enumerate(expected)
            for j, f in enumerate(found)
            if e[5] == f[5] and abs(e[4] - f[4]) <= most_score_gap and iou(e, f) >= least_iou
        ),
    )
    left, right = set(), set()
    for _, i, j in pairs:
        if i not in left and j not in right:
            left.add(i)
            right.add(j)
    return len(left)
