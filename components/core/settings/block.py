"""What the blocks of params.yaml share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


Share = Annotated[float, Field(ge=0, le=1)]


PositiveInt = Annotated[int, Field(gt=0)]


class Block(BaseModel):
    """Closed, strict and immutable; numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
