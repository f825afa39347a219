"""compare.yaml: which arms are compared, on what, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from components.comparison.arms import ARMS
from components.core.params import check_block, read_params
from components.core.settings.block import NAME, Block, Share

FILE = Path("compare.yaml")
FEWEST_SEEDS = 2  # one says nothing about the spread between seeds

Budget = Annotated[float | int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Changes = dict[str, Any]


class Comparison(Block):
    """The content of compare.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    """The folder in comparisons/, and the beginning of the experiments' names."""
    arms: Annotated[list[str], Field(min_length=1)]
    """What is compared: names of docs/compare.md, or of `define`."""
    define: dict[Annotated[str, Field(pattern=NAME)], Changes] = Field(default_factory=dict)
    """Arms of one's own: the parameters that make them what they are, as KEY: VALUE with dotted keys."""
    baseline: str = "random-fresh"
    """The arm that the others are compared with."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [1, 2, 3])
    """Each arm is chosen and trained once with each, as select.seed and finetune.seed."""
    budgets: Annotated[list[Budget], Field(min_length=1)]
    """Values of select.ratio: records an iteration (50), or a share of the pool (0.05)."""
    noise: Annotated[list[Share], Field(min_length=1)] = Field(default_factory=lambda: [0.0])
    """Values of noise.share: the share of the pool that is spoiled on purpose."""
    train: bool = True
    """false: only the first iteration's picks are made and counted, which takes minutes."""
    set_: Changes = Field(default_factory=dict, alias="set")
    """Parameters that all arms have, over those of params.yaml, as KEY: VALUE with dotted keys."""

    @model_validator(mode="after")
    def names_are_known(self) -> Comparison:
        known = [*self.define, *ARMS]
        for arm in self.arms:
            if arm not in known:
                raise ValueError(f"arms: no arm {arm!r}; there are: {', '.join(known)}")
        if taken := [arm for arm in self.define if arm in ARMS]:
            raise ValueError(f"define.{taken[0]}: the arm exists already; choose another name")
        if unused := [arm for arm in self.define if arm not in self.arms]:
            raise ValueError(f"define.{unused[0]}: not among the arms; add it to `arms`, or leave it out")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline!r} is not among the arms: {', '.join(self.arms)}")
        for key in ("arms", "seeds", "budgets", "noise"):
            values = getattr(self, key)
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{key}: {twice[0]} is there more than once")
        if self.train and len(self.seeds) < FEWEST_SEEDS:
            raise ValueError(
                f"seeds: {len(self.seeds)} is too few: with fewer than {FEWEST_SEEDS} trainings of an arm, chance "
                "between them cannot be told from the arm"
            )
        return self

    def changes_of(self, arm: str) -> Changes:
        """The parameters of an arm, by dotted key."""
        return self.define.get(arm) or dict(ARMS[arm])


def read_comparison(file: Path = FILE) -> Comparison:
    """The checked file; raises UserError with one line per mistake."""
    return check_block(Comparison, read_params(file), str(file))
