"""`seal`: how the flow keeps the results of a successful run."""

from __future__ import annotations

from pydantic import Field

from components.core.settings.block import Block


class SealSettings(Block):
    commit: bool = True
    """Commit dvc.lock, params.yaml, metrics, plots and the statements after a successful run of the flow."""
    author: str = Field(default="iterit <iterit@localhost>", pattern=r"^[^<>\x00-\x1f\x7f]+ <[^<>\x00-\x20\x7f]+>$")
    """Author of the commit and the tag."""
    tag: bool = True
    """Tag the commit with the registered version."""
    push: bool = True
    """Run `dvc push` when a default remote is configured."""
