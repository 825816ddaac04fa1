"""The infer stage: tensors in, the graph's raw outputs out. It knows nothing of boxes.

One thread calls the stage; the runtime's own workers belong to the session. The stage owns the
loaded model: it opens it again if it was closed, and closes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import ByteSize, Field, ValidationInfo, field_validator

from pipeline.config import StageConfig
from pipeline.frame import Inferred, Prepared
from pipeline.stage import Batching, RunContext, Stage

if TYPE_CHECKING:
    from stages.model import LoadedModel

Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class InferConfig(StageConfig):
    """Which model, on what, and what to believe instead of what the file says about itself."""

    model: str | None = Field(
        None,
        description="A model file (.onnx), the name of a model that is shipped, or of a network.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="auto, cpu, cuda or cuda:N. One that is asked for and missing is an error.",
    )
    backend: Literal["auto", "onnx", "openvino", "torch"] = Field(
        "auto",
        description="What runs the model: onnx is ONNX Runtime; openvino is OpenVINO on the CPU "
        "(an extra); torch (an extra) runs the networks that export knows, without a file, and "
        "files exported from them. auto takes what is there, ONNX Runtime first, never torch.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="For the backend torch: official, random, or a file. Default: official, or "
        "those that an exported file states.",
    )
    provider: Literal["auto", "cuda", "tensorrt"] = Field(
        "auto",
        description="What ONNX Runtime uses on a GPU. tensorrt builds an engine for minutes, once, "
        "and is an error where it is missing.",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="What is computed in, for backends that can choose: openvino, torch (fp16 on "
        "CUDA only), and onnx with provider tensorrt. Results differ from fp32.",
    )
    gpu_memory_bytes: ByteSize | None = Field(
        None,
        ge=1 << 20,
        description="The most that ONNX Runtime's arena may take of a GPU: a number, or text such "
        "as 2GiB. Default: no limit.",
    )
    allow_fallback: bool = Field(
        default=False,
        description="Go on with another device, provider or precision when the one that was asked "
        "for is missing; the report says so.",
    )
    threads: Positive | None = Field(
        None,
        le=256,
        description="Threads for one run on the CPU. Default: half of the cores for a model file "
        "below 10 MB, all of them for a larger one.",
    )
    batch: Positive = Field(
        1,
        description="Frames in one run, for graphs that leave their batch open. Smaller batches "
        "are filled up, so results do not depend on timing.",
    )
    batch_wait_s: float = Field(
        0.0, ge=0, le=10, description="How long to wait for a full batch, seconds."
    )
    decoder: str | None = Field(
        None, description="What the outputs mean, where the file does not say it."
    )
    class_names: tuple[str, ...] | str | None = Field(
        None, description="Names of the classes: a list, or a text file with one name a line."
    )
    input_size: tuple[Positive, Positive] | None = Field(
        None, description="Width and height of the model's input, for graphs that leave it open."
    )
    fit: Literal["letterbox", "letterbox_top_left", "stretch"] | None = Field(
        None, description="How the picture is fitted into the model's input."
    )
    pad_value: int | None = Field(None, ge=0, le=255, description="Gray of the padding.")
    pixel_order: Literal["bgr", "rgb"] | None = Field(None, description="Order of the colours.")
    mean: tuple[Finite, Finite, Finite] | None = Field(
        None, description="Subtracted from each channel, 0..255 scale, in pixel_order."
    )
    scale: tuple[Finite, Finite, Finite] | None = Field(
        None, description="Multiplied with each channel after that; 1/255 gives 0..1."
    )
    options: dict[str, object] = Field(
        default_factory=dict, description="Options of the decoder, such as anchors or strides."
    )

    @field_validator("weights")
    @classmethod
    def _only_with_torch(cls, value: str | None, info: ValidationInfo) -> str | None:
        # Without "backend" that one is wrong itself, and told so.
        if value is not None and info.data.get("backend", "torch") != "torch":
            raise ValueError("this is for the backend torch; remove it, or add --backend torch")
        return value

    @field_validator("provider", "gpu_memory_bytes")
    @classmethod
    def _not_with_torch(cls, value: object, info: ValidationInfo) -> object:
        if value not in (None, "auto") and info.data.get("backend") == "torch":
            raise ValueError("this is for ONNX Runtime; remove it, or add --backend onnx")
        return value


class InferStage(Stage[Prepared, Inferred]):
    """Runs the model on one frame or a batch of them, and gives each frame its own outputs."""

    accepts = Prepared
    produces = Inferred

    def __init__(self, config: InferConfig, name: str, model: LoadedModel) -> None:
        self.name = name
        self.counters = {}
        self.batching = Batching(config.batch, config.batch_wait_s if config.batch > 1 else 0.0)
        self._model = model
        self._open = False

    def open(self, context: RunContext) -> None:
        """Open the model where it is closed, and run it once, so that no frame waits for set-up.

        Raises:
            ModelError: the model cannot be opened or run; DeviceError, its kind, for the device.
        """
        self._model.open()
        self._open = True
        try:
            self._model.run([self._model.blank()] * self.batching.max_size)
        except BaseException:
            self.close()
            raise
        backend = self._model.backend.describe()
        if backend["fallback"]:
            context.note(
                f"{self.name}: {backend['requested']} was asked for, running on "
                f"{backend['device']}: {backend['reason']}"
            )

    def process(self, items: Sequence[Prepared]) -> Sequence[Inferred]:
        """Return one `Inferred` for each item, in order. Input tensors are not modified.

        Raises:
            ModelError: a tensor does not fit the graph (the text shows both), or the run failed.
            RuntimeError: the stage is not open.
        """
        if not self._open:
            raise RuntimeError(f"{self.name} is not open: call open() before process()")
        tensors = [item.tensor for item in items]
        # Always the same shape: another batch size may be computed in another order, and then the
        # last digits of a frame's boxes would depend on how fast its neighbours came.
        padding = [np.zeros_like(tensors[0])] * (self.batching.max_size - len(tensors))
        outputs = self._model.run(tensors + padding)
        return [
            Inferred(item.frame, output, item.letterbox)
            for item, output in zip(items, outputs, strict=False)
        ]

    def close(self) -> None:
        """Close the model. Idempotent."""
        self._open = False
        self._model.close()
