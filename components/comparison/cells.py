"""The cells of a comparison: one arm with one seed, one budget and one share of noise, and its parameters.

Cells whose data and base model come from the same parameters are a *pool*: what is the same for all of them is computed
once, in a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from components.comparison.arms import SEED_OFFSETS
from components.comparison.settings import FILE, Budget, Comparison
from components.core.errors import UserError
from components.core.params import check_settings
from components.core.settings.pipeline import Settings

# blocks that no stage before `score` reads: cells of one pool may differ in them
OWN_BLOCKS = ("experiment", "score", "select", "finetune", "register", "gate", "seal", "iterations")


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm, trained once."""

    arm: str
    budget: Budget
    noise: float
    seed: int
    params: Mapping[str, Any]
    """The whole of the cell's params.yaml."""
    settings: Settings

    @property
    def name(self) -> str:
        """Such as `iterit-k50-n30-s1`; n is the noise in per cent."""
        return f"{self.arm}-k{self.budget:g}-n{self.noise * 100:g}-s{self.seed}"

    @property
    def pool(self) -> str:
        """Such as `n30-1f0c2a`: the same for cells that choose from the same pool."""
        shared = {name: block for name, block in self.params.items() if name not in OWN_BLOCKS}
        return f"n{self.noise * 100:g}-{digest_of_params(shared)[:6]}"


def digest_of_params(params: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of parameters as plain data."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def make_cells(comparison: Comparison, params: Mapping[str, Any], file: str = str(FILE)) -> list[Cell]:
    """All cells; those of one pool follow each other, and within it those of one seed.

    `params` is params.yaml as plain data. Raises UserError for parameters that do not exist or do not fit together.
    """
    check_settings(dict(params))
    common = set_params(params, comparison.set_, f"{file}: set")
    check_settings(common, f"{file}: set")
    for budget in comparison.budgets:
        check_settings(set_params(common, {"select.ratio": budget}, file), f"{file}: budgets")
    mistakes: list[str] = []
    cells: list[Cell] = []
    for noise in comparison.noise:
        for budget in comparison.budgets:
            for seed in comparison.seeds:
                for arm in comparison.arms:
                    try:
                        cells.append(_cell(comparison, common, arm, budget, noise, seed, file))
                    except UserError as error:
                        mistakes += error.mistakes
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))  # each seed and budget makes the same one
    return cells


def _cell(
    comparison: Comparison, common: Mapping[str, Any], arm: str, budget: Budget, noise: float, seed: int, file: str
) -> Cell:
    origin = f"{file}: define.{arm}" if arm in comparison.define else f"{file}: arm {arm}"
    params = set_params(common, comparison.changes_of(arm), origin)
    of_cell = {
        "select.ratio": budget,
        "select.seed": seed + SEED_OFFSETS.get(arm, 0),
        "finetune.seed": seed,
        "noise.share": noise,
        "seal.commit": False,
    }
    params = set_params(params, of_cell, origin)
    return Cell(arm, budget, noise, seed, params, check_settings(params, origin))


def set_params(params: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """A copy of the parameters with the changes, by dotted key. Raises UserError where a key leads through a value."""
    changed = deepcopy(dict(params))
    for key, value in changes.items():
        *blocks, last = key.split(".")
        block: Any = changed
        for number, name in enumerate(blocks, 1):
            if block.get(name) is None:
                block[name] = {}
            block = block[name]
            if not isinstance(block, dict):
                raise UserError(f"{origin}: {key}: {'.'.join(blocks[:number])} is not a block of params.yaml")
        block[last] = deepcopy(value)
    return changed


def pools_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells by their pool, in order."""
    pools: dict[str, list[Cell]] = {}
    for cell in cells:
        pools.setdefault(cell.pool, []).append(cell)
    return pools


def score_blocks(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each different block `score`: with each of them, the pool is scored once."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(digest_of_params(cell.params["score"]), cell)
    return list(first.values())


def scored_by(cell: Cell) -> str | None:
    """What the pool's first scores depend on: the same for cells whose pool one model scores alike; None without."""
    settings = cell.settings.score
    if settings.model == "none":
        return None
    model = "proxy" if settings.model == "proxy" else "base"
    return f"{model}-{digest_of_params(settings.model_dump(exclude={'model', 'batch_tokens', 'processes'}))[:6]}"
