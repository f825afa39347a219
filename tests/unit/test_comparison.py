"""A comparison: what compare.yaml may say, its cells, and how sure its answer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from components.comparison.answer import BETTER, NOT_BETTER, WORSE, Answer, Finished, make_answer
from components.comparison.arms import ARMS
from components.comparison.cells import Cell, make_cells, pools_of, score_blocks, scored_by
from components.comparison.facts import CellFacts, Picks, PoolFacts, Scoring
from components.comparison.measures import HOLDOUT_LOSS
from components.comparison.plan import Probe, Sized, Timing, cell_work, make_plan
from components.comparison.settings import Comparison, read_comparison
from components.comparison.table import Seconds, to_markdown
from components.comparison.uncertainty import adjust, difference, estimate
from components.core.errors import UserError
from components.core.files import json_text
from components.core.params import check_block, read_params
from components.data import tables
from components.evaluation.statistics import difference_interval
from components.model.throughput import ModelSize
from components.pages.comparison.page import Origin, comparison_page
from tests.support.html import assert_self_contained

PROJECT = Path(__file__).parents[2]
PLAIN: dict[str, Any] = {"name": "tried", "arms": ["random-fresh", "iterit"], "seeds": [1, 2, 3], "budgets": [20]}


def comparison(**changes: Any) -> Comparison:
    return check_block(Comparison, {**PLAIN, **changes}, "compare.yaml")


def cells(**changes: Any) -> list[Cell]:
    return make_cells(comparison(**changes), read_params(PROJECT / "params.yaml"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"arms": ["random-fresh", "iterrit"]}, "compare.yaml: arms: no arm 'iterrit'; there are: random"),
        ({"arms": ["iterit"]}, "compare.yaml: baseline: 'random-fresh' is not among the arms: iterit"),
        ({"arms": ["random-fresh", "iterit", "iterit"]}, "compare.yaml: arms: iterit is there more than once"),
        ({"seeds": [1]}, "compare.yaml: seeds: 1 is too few"),
        ({"seeds": [1, 1]}, "compare.yaml: seeds: 1 is there more than once"),
        ({"budgets": []}, "compare.yaml: budgets: list should have at least 1 item"),
        ({"budgets": [1.5]}, "compare.yaml: budgets: select.ratio: 1.5 is neither a share (0 to 1]"),
        ({"noise": [1.5]}, "compare.yaml: noise.0: 1.5: input should be less than or equal to 1"),
        ({"name": "a/b"}, "compare.yaml: name: a name is made of letters"),
        ({"budget": 1}, "compare.yaml: budget: unknown key; known here: name, arms, define"),
        ({"define": {"ifd": {}}}, "compare.yaml: define.ifd: the arm exists already"),
        ({"define": {"mine": {}}}, "compare.yaml: define.mine: not among the arms"),
        ({"set": {"select.rato": 1}}, "compare.yaml: set: select.rato: unknown key; known here: strategy"),
        ({"set": {"select.ratio.x": 1}}, "compare.yaml: set: select.ratio.x: select.ratio is not a block"),
        (
            {"arms": ["random-fresh", "mine"], "define": {"mine": {"select.strategy": "best"}}},
            "compare.yaml: define.mine: select.strategy: 'best': input should be",
        ),
        ({"arms": ["random-fresh", "superfiltering"]}, "compare.yaml: arm superfiltering: score.model: proxy: needs a"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as mistake:
        cells(**changes)
    assert len(mistake.value.mistakes) == 1
    assert mistake.value.mistakes[0].startswith(line)


def test_a_file_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^compare.yaml: not found"):
        read_comparison()


def test_every_arm_that_needs_no_more_than_the_default_project_can_be_compared() -> None:
    needing = {"superfiltering", "rds+"}  # a proxy model, a target
    assert {cell.arm for cell in cells(arms=[arm for arm in ARMS if arm not in needing])} == {*ARMS} - needing


def test_cells_are_the_whole_grid_and_share_a_pool_for_each_noise() -> None:
    made = cells(budgets=[20, 0.5], noise=[0.0, 0.3])
    assert len({cell.name for cell in made}) == len(made) == 2 * 3 * 2 * 2
    assert "iterit-k0.5-n30-s2" in {cell.name for cell in made}
    assert [name.partition("-")[0] for name in pools_of(made)] == ["n0", "n30"]


def test_a_pool_is_scored_once_by_each_model_that_scores() -> None:
    arms = ["random-fresh", "iterit", "ifd", "iterit-static", "longest"]
    made = cells(arms=arms)
    assert [cell.arm for cell in score_blocks(made)] == ["random-fresh", "iterit", "iterit-static"]
    assert len({scored_by(cell) for cell in made}) == 2  # none, and the base model for iterit, ifd and iterit-static


def test_full_is_another_order_than_the_baseline() -> None:
    made = {cell.arm: cell for cell in cells(arms=["random-fresh", "full"])}
    assert made["full"].settings.select.strategy == "random-fresh"
    assert made["full"].settings.select.seed != made["random-fresh"].settings.select.seed


def test_with_one_seed_the_difference_is_that_of_the_records() -> None:
    random = np.random.default_rng(1)
    first, second, weights = random.normal(2, 1, (1, 50)), random.normal(2, 1, (1, 50)), random.integers(1, 90, 50)
    found = difference(first, second, weights.astype(float))
    expected = difference_interval((first[0], weights), (second[0], weights))
    assert found.mean == pytest.approx(expected.mean)
    assert found.half_width == pytest.approx(expected.half_width(0.95))


def test_without_spread_between_records_the_difference_is_a_t_test_of_the_seeds() -> None:
    means = np.array([0.3, 0.1, 0.5])
    found = difference(np.repeat(means[:, None], 40, axis=1), np.zeros((1, 40)), np.ones(40))
    expected = stats.ttest_1samp(means, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.mean - found.half_width == pytest.approx(expected.confidence_interval().low)


@pytest.mark.parametrize("of_seeds", [0.0, 1.0, 4.0])
def test_the_interval_holds_the_truth_as_often_as_it_says(of_seeds: float) -> None:
    """`of_seeds`: spread between seeds, in standard errors over the records."""
    random, seeds, records, trials = np.random.default_rng(7), 3, 60, 400
    held = 0
    for _ in range(trials):
        chance = random.normal(0, of_seeds / records**0.5, (seeds, 1)) + random.normal(0, 1, (1, records))
        found = estimate(chance + random.normal(0, 0.7, (seeds, records)), np.ones(records))
        held += abs(found.mean) <= found.half_width
    assert held / trials >= 0.92  # with 400 trials, an interval of 95 % is above it in 99 of 100 cases


def test_holm_is_that_of_the_definition() -> None:
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.6, 0.7]) == [1.0, 1.0]
    assert adjust([]) == []


def measured(values: Mapping[str, float]) -> pa.Table:
    rows = [(HOLDOUT_LOSS, key, value, 10.0, False) for key, value in values.items()]
    return pa.table(dict(zip(tables.MEASURES.names, zip(*rows, strict=True), strict=True)), schema=tables.MEASURES)


def answered(shifts: Mapping[str, float], **changes: Any) -> tuple[Answer, list[Cell]]:
    """An answer in which each arm's loss differs from the base model's by its shift, and by chance."""
    asked = comparison(arms=[*shifts], **changes)
    made = make_cells(asked, read_params(PROJECT / "params.yaml"))
    random, ids = np.random.default_rng(3), [f"r{number}" for number in range(100)]
    hardness = random.normal(2, 1, len(ids))
    picks = [Picks(20, {"cut": 4}, 160, 320), Picks(20, {}, 60, 120), Picks(20, {}, 60, 120)]
    finished = [
        Finished(
            cell,
            CellFacts(picks, 40, 60, 9000, 10**12, 10**13),
            measured(dict(zip(ids, hardness + shifts[cell.arm] + random.normal(0, 0.1, len(ids)), strict=True))),
        )
        for cell in made
    ]
    pools = {name: PoolFacts(160, 100, {"cut": 48}) for name in pools_of(made)}
    base = {name: measured(dict(zip(ids, hardness, strict=True))) for name in pools}
    return make_answer(asked, finished, pools, base), made


def test_the_answer_knows_better_from_worse_and_from_chance() -> None:
    answer, _ = answered({"random-fresh": -0.1, "iterit": -0.2, "ifd": 0.1, "full": -0.1})
    (measure,) = answer.groups[0].measures
    verdicts = {arm: one.against_baseline.verdict for arm, one in measure.arms.items() if one.against_baseline}
    assert verdicts == {"iterit": BETTER, "ifd": WORSE, "full": NOT_BETTER}
    found = measure.arms["iterit"].against_baseline
    assert found is not None
    assert found.low < -0.1 < found.high
    assert found.visible is not None  # three seeds are few
    assert measure.arms["random-fresh"].against_baseline is None
    assert measure.arms["random-fresh"].against_base.verdict == BETTER
    # 160 records of the pool once for both arms that are scored, 120 later ones in each of their cells; two passes
    assert answer.forward_passes == 2 * (160 + 120 * 12)


def test_a_difference_that_holm_does_not_let_stand_is_not_better() -> None:
    shifts = {"random-fresh": 0.0, "iterit": -0.02, "ifd": 0.0, "longest": 0.0, "random": 0.0, "full": 0.0}
    answer, _ = answered(shifts)
    (measure,) = answer.groups[0].measures
    for one in measure.arms.values():
        if (found := one.against_baseline) and found.adjusted_p_value >= 0.05:
            assert found.verdict == NOT_BETTER
    adjusted = sorted(one.against_baseline.adjusted_p_value for one in measure.arms.values() if one.against_baseline)
    assert all(low <= high for low, high in pairwise(adjusted))


def test_four_seeds_say_nothing_of_what_could_not_be_seen() -> None:
    answer, _ = answered({"random-fresh": 0.0, "iterit": 0.0}, seeds=[1, 2, 3, 4])
    found = answer.groups[0].measures[0].arms["iterit"].against_baseline
    assert found is not None
    assert found.visible is None


def test_the_tables_and_the_page_have_every_arm_and_verdict() -> None:
    answer, made = answered({"random-fresh": -0.1, "iterit": -0.2, "ifd": 0.1}, noise=[0.3])
    seconds = [{arm: Seconds(3.0, 5.0) for arm in answer.groups[0].facts}]
    text = to_markdown(answer, seconds)
    assert "30 % noise, budget 20, holdout loss, against random-fresh: better: iterit; worse: ifd." in text
    assert "**better**" in text
    assert "6.7%" in text  # 4 of 60 picks
    page = comparison_page(answer, seconds, Origin("name: <script>", "0" * 40, len(made)))
    seen = assert_self_contained(page)
    for word in ("iterit", "not better", "Noise among the picks", "forward passes", "dvc exp branch"):
        assert word in seen.text
    assert json_text({"answer": answer.name})


def test_the_plan_counts_what_is_shared_once_and_divides_by_the_workers() -> None:
    made = cells(arms=["random-fresh", "iterit", "ifd"])
    texts = Scoring(ModelSize(100, 10), {f"r{number}": (30, 20) for number in range(160)})
    sized = Sized(PoolFacts(160, 24, {}), texts)
    (pool,) = pools_of(made)
    works = {cell.arm: cell_work(cell, sized, trains=True) for cell in made}
    assert (works["iterit"].scored, works["iterit"].trained, works["iterit"].measured) == (2 * 60, 3 * 20, 24)
    assert works["random-fresh"].scored == 0
    timing = Timing(2.0, 0.001)
    probe = Probe(dict.fromkeys(("score", "select", "finetune", "evaluate"), timing), 5.0, 10, 100)
    one, two = (make_plan({pool: made}, {pool: sized}, probe, workers, trains=True) for workers in (1, 2))
    assert one.passes == 2 * (160 + 6 * 120)
    assert one.measuring_passes == 2 * (24 + 9 * 24)
    assert (one.bytes, two.bytes) == (110, 120)
    cell = replace(probe, between=0.0)
    assert two.seconds < one.seconds < 2 * two.seconds + 10
    assert make_plan({pool: made}, {pool: sized}, cell, 1, trains=True).seconds == pytest.approx(one.seconds - 5 * 10)
