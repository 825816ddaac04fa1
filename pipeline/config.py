"""The base of every config class: unknown keys are errors, values do not change after loading."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A section of the configuration. Every field has a description: `list` and the docs print
    it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
