"""A detector as `run` would run it, one picture at a time: its preprocess, infer and nms stages.

Built by the same plan and checks as a run, so it takes every model that `run` takes, with the same
options. One thread calls one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, Final

from exporters.networks import ZooNetworks
from pipeline.detections import Detections
from pipeline.errors import ConfigError, UsageError
from pipeline.frame import U8, Frame, FrameId, FrameTime
from pipeline.problems import Problems
from pipeline.schema import load_config, parse_assignment
from pipeline.stage import RunContext
from stages.build import build, check_files
from stages.nms import CUT, NmsConfig
from stages.plan import Plan, make_plan

CHAIN: Final = ("preprocess", "infer", "nms")


class Detector:
    """Finds what is in a picture. Close it, or use it in a `with` block.

    Args:
        model: a shipped model's name, or a file.
        nms: options of the nms stage other than its defaults; `assignments` outrank them.
        assignments: KEY=VALUE as after `--set`.
        device: as after `--device`; None for the default.
        note: told how the model was recognised and what runs it.

    Raises:
        UsageError: the options cannot work; the text has all that is wrong.
        ModelError: the model cannot be read, recognised, or run on the device asked for.
    """

    def __init__(
        self,
        model: str,
        *,
        nms: dict[str, object] | None = None,
        assignments: Sequence[str] = (),
        device: str | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        plan = _plan(model, nms or {}, assignments, device)
        built = build(plan, RunContext(on_note=note), ZooNetworks)
        if built.model is None:
            raise UsageError("no model is given")
        self.class_names = built.model.class_names
        self.model_facts: dict[str, Any] = built.model.describe()
        self.backend_facts: dict[str, Any] = dict(built.model.backend.describe())
        (self.nms,) = [part.config for part in plan.stages if isinstance(part.config, NmsConfig)]
        self._stages = built.stages
        self._count = 0
        try:
            # Its own context: "max_detections cut" is no news where every score is asked for.
            for stage in self._stages:
                stage.open(RunContext())
        except BaseException:
            self.close()
            built.model.close()
            raise

    @property
    def cut(self) -> int:
        """Pictures in which max_detections cut something off."""
        return sum(stage.counters.get(CUT, 0) for stage in self._stages)

    def __call__(self, image: U8) -> Detections:
        """Return what is found in (h, w, 3) uint8 BGR; class ids are the model's."""
        frame = Frame(
            FrameId("pictures", 0, self._count), FrameTime(0, self._count, Fraction(1)), image
        )
        self._count += 1
        items: Sequence[Any] = [frame]
        for stage in self._stages:
            items = stage.process(items)
        (done,) = items
        return done.detections or Detections.empty(self.class_names)

    def close(self) -> None:
        """Release the model. Idempotent."""
        for stage in reversed(self._stages):
            stage.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _plan(
    model: str, nms: dict[str, object], assignments: Sequence[str], device: str | None
) -> Plan:
    problems = Problems()
    parsed = []
    for text in assignments:
        try:
            assignment = parse_assignment(text)
        except ConfigError as error:
            problems.add("", str(error))
            continue
        if assignment.keys[0] in CHAIN:
            parsed.append(assignment)
        else:
            problems.add(assignment.where, f"only options of {', '.join(CHAIN)} have effect here")
    flags: dict[str, tuple[object, str]] = {
        # A plan has both ends; here pictures are handed in and results taken out by hand.
        "sources": (["synthetic:shapes"], ""),
        "sinks": (["null"], ""),
        "stages": (["preprocess", "infer", {"nms": nms}], ""),
        "model": (model, "--model"),
    }
    if device is not None:
        flags["device"] = (device, "--device")
    config = load_config(None, flags, parsed, problems)
    plan = make_plan(config, problems) if config is not None else None
    if plan is not None:
        check_files(plan, problems, ZooNetworks)
    problems.raise_if_any()
    if plan is None:
        raise UsageError("the options cannot be used")
    return plan
