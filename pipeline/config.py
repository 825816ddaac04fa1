"""The bases of config classes: unknown keys are errors, values do not change after loading."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """A section of the configuration. Every field has a description: `list` and the docs print
    it."""

    # An address in a message would show its password.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )


class StageConfig(Config):
    """What every stage of a chain can be told."""

    queue: bool | None = Field(
        None,
        description="Whether the stage has a queue and so a thread of its own; without one it runs "
        "in the thread before it. By default the light stages have none where the cores are fewer "
        "than the threads.",
    )
