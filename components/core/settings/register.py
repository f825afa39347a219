"""`register`: the registered model."""

from __future__ import annotations

from pydantic import Field

from components.core.settings.block import NAME, Block


class RegisterSettings(Block):
    name: str = Field(default="iterit", min_length=1)
    """Name of the registered MLflow model."""
    alias: str = Field(default="latest_iterit", pattern=NAME)
    """Alias that the new version gets."""
