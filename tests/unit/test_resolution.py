"""What the holdout can show is known before the training: from the last comparison, or from the chain's tables."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from components.core.files import write_json
from components.core.params import load_settings
from components.core.settings.gate import GateSettings
from components.data import tables
from components.evaluation.statistics import Interval
from components.promotion.gate import decide
from components.promotion.resolution import Resolution, foresee, records_to_show, resolution
from flows.resolution import say_what_the_holdout_can_show, too_small_after_all

PROJECT = Path(__file__).parents[2]
LOSSES = np.random.default_rng(1).lognormal(0.8, 0.5, 24)
DEVIATIONS = np.random.default_rng(2).normal(0, 0.1, 24)


def evaluated(losses: Any) -> pa.Table:
    rows = [
        {"id": str(index), "source": "a", "tokens": 10, "nll_conditional": loss, "nll_unconditional": loss}
        for index, loss in enumerate(losses)
    ]
    return pa.Table.from_pylist([{**row, "complexity": 0.5} for row in rows], schema=tables.EVALUATIONS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project after `dedupe`, whose holdout has 24 records."""
    write_json(tmp_path / "metrics/dedupe.json", {"holdout": 24})
    return tmp_path


def foreseen(folder: Path, **values: Any) -> Resolution | None:
    settings = GateSettings.model_validate(values)
    return foresee(settings, ["1", "2"], folder / "metrics", folder / "data/evaluations")


def known(folder: Path, **values: Any) -> Resolution:
    found = foreseen(folder, **values)
    assert found is not None
    return found


def put_table(folder: Path, key: str, losses: Any) -> None:
    tables.write(folder / f"data/evaluations/{key}.parquet", evaluated(losses), tables.EVALUATIONS)


def test_before_any_comparison_only_the_number_of_records_is_known(folder: Path) -> None:
    assert foreseen(folder, margin=0.01) is None
    put_table(folder, "base", LOSSES)
    assert foreseen(folder, margin=0.01) is None
    write_json(folder / "metrics/dedupe.json", {"holdout": 1})
    one = known(folder)
    assert one.is_too_small
    assert str(one).startswith("1 holdout record can show no difference, so that no champion is replaced: dedupe.")


def test_a_holdout_too_small_for_the_margin_is_known_by_the_gates_last_comparison(folder: Path) -> None:
    decision = decide(evaluated(LOSSES + DEVIATIONS), evaluated(LOSSES), GateSettings(), champion_version="1")
    write_json(folder / "metrics/register.json", {"gate": decision.result})
    put_table(folder, "base", LOSSES + 9)  # the gate's own comparison goes first
    put_table(folder, "2", LOSSES)
    error = stats.sem(DEVIATIONS)
    least = (stats.t.ppf(0.95, 23) + stats.t.ppf(0.8, 23)) * error
    small, large = known(folder, margin=least / 2), known(folder, margin=1.01 * least)
    assert small.least == pytest.approx(1.5 * least, rel=1e-4)
    assert small.is_too_small
    assert str(small) == (
        f"24 holdout records cannot show gate.margin {least / 2:g}: only a model better by {1.5 * least:.2g} nats "
        "passes in 80 of 100 cases, by the spread of the last comparison with a champion; about 92 records can: "
        "dedupe.holdout_share and dedupe.max_holdout make it larger"
    )
    assert not large.is_too_small
    assert not known(folder).is_too_small  # without a margin there is none to show
    # four times the records show half the difference, or a little less: t has more degrees of freedom
    write_json(folder / "metrics/dedupe.json", {"holdout": 96})
    assert known(folder).least == pytest.approx(least / 2, rel=0.04)


def test_without_a_comparison_the_last_iteration_and_the_base_model_tell(folder: Path) -> None:
    put_table(folder, "base", LOSSES)
    put_table(folder, "1", LOSSES + DEVIATIONS)
    write_json(folder / "metrics/register.json", {"gate": {"promoted": True, "differences": {}}})
    assert str(known(folder)).endswith("by the spread of iteration 1 against the base model")
    put_table(folder, "2", LOSSES + 3 * DEVIATIONS)
    assert str(known(folder)).endswith("by the spread of iteration 2 against the base model")


def test_the_run_says_it_as_a_warning_where_it_is_too_small_and_again_at_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(PROJECT / "params.yaml")
    monkeypatch.chdir(folder)
    logger = logging.getLogger("run")
    caplog.set_level(logging.INFO)
    assert not say_what_the_holdout_can_show(settings, logger)
    put_table(folder, "base", LOSSES)
    put_table(folder, "1", LOSSES + DEVIATIONS)
    too_small = settings.model_copy(update={"gate": GateSettings(margin=0.001)})
    assert say_what_the_holdout_can_show(settings, logger)
    assert say_what_the_holdout_can_show(too_small, logger)
    assert [(record.levelname, record.message[:24]) for record in caplog.records] == [
        ("INFO", "gate: 24 holdout records"),
        ("WARNING", "gate: 24 holdout records"),
    ]
    kept = decide(evaluated(LOSSES + DEVIATIONS), evaluated(LOSSES), too_small.gate, champion_version="1")
    promoted = decide(evaluated(LOSSES - 1), evaluated(LOSSES), too_small.gate, champion_version="1")
    assert (too_small_after_all(too_small, kept) or "").startswith("24 holdout records cannot show gate.margin 0.001")
    assert too_small_after_all(too_small, promoted) is None
    assert too_small_after_all(settings, kept) is None


def test_the_number_of_records_is_the_smallest_that_shows_the_margin() -> None:
    spread = Interval(0.0, 0.05, 24)
    for margin in (0.2, 0.05, 0.01):
        settings = GateSettings(margin=margin)
        enough = records_to_show(margin, spread, 0.95)
        assert not resolution("loss", spread, enough, settings, "").is_too_small
        assert resolution("loss", spread, enough, settings, "").least <= 2 * margin
        assert resolution("loss", spread, enough - 1, settings, "").least > 2 * margin
        assert enough == pytest.approx(((1.645 + 0.842) * 0.05 * math.sqrt(24) / margin) ** 2, rel=0.2, abs=3)


def test_a_model_better_by_margin_and_resolution_passes_in_80_percent() -> None:
    """The statement itself, simulated with losses that differ by normal noise."""
    random, settings = np.random.default_rng(5), GateSettings(margin=0.05)
    spread = Interval(0.0, 0.1 / math.sqrt(24), 24)
    better_by = resolution("loss", spread, 24, settings, "").least
    challengers = (LOSSES + random.normal(0, 0.1, 24) - better_by for _ in range(400))
    passed = [decide(evaluated(one), evaluated(LOSSES), settings).promoted for one in challengers]
    assert 0.75 < sum(passed) / len(passed) < 0.85
