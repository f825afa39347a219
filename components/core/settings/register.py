"""`register`: the registered model."""

from __future__ import annotations

from pydantic import Field, field_validator

from components.core.settings.block import NAME, Block

GATE_ALIASES = ("challenger", "champion", "previous_champion")  # the gate and `iterit promote` alone move these


class RegisterSettings(Block):
    """The registered model and the alias of its newest version; what MLflow would refuse is refused before a run."""

    name: str = Field(default="iterit", pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=200)
    """Name of the registered MLflow model."""
    alias: str = Field(default="latest_iterit", pattern=NAME, max_length=200)
    """Alias that the new version gets."""

    @field_validator("alias", mode="after")
    @classmethod
    def alias_is_free(cls, value: str) -> str:
        """MLflow reserves `latest` and v1, v2, ...; the gate reserves its own."""
        if value.lower() == "latest" or (value[:1] in "vV" and value[1:].isdigit()) or value in GATE_ALIASES:
            raise ValueError(f"{value!r} is reserved; choose another alias, such as latest_iterit")
        return value
