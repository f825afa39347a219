"""Benchmarks in the gate: a challenger that may be worse than a margin allows is refused; mistakes are told early."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from components.benchmarks.figures import check_figures
from components.benchmarks.tasks import load_tasks
from components.core.errors import UserError
from components.core.params import check_settings, read_params
from components.core.settings.benchmark import BenchmarkSettings
from components.core.settings.gate import GateSettings
from components.data import tables
from components.promotion.benchmarks import (
    BenchmarkDifference,
    Benchmarked,
    compare_benchmarks,
    make_benchmarked,
)
from components.promotion.gate import Decision, decide
from components.promotion.proportions import lower_bound, upper_bound

PROJECT = Path(__file__).parents[2]


def benchmarked(
    values: Sequence[float | None],
    *,
    task: str = "quiz",
    metric: str = "acc",
    weights: Sequence[float] | None = None,
    higher_is_better: bool = True,
) -> Benchmarked:
    """The benchmarks of a checkpoint with these values of documents 0, 1, ...; None is a document without a value."""
    rows = [
        {"task": task, "document": number, "digest": "", "metric": metric, "value": value}
        | {"weight": weights[number] if weights else 1.0, "higher_is_better": higher_is_better}
        for number, value in enumerate(values)
        if value is not None
    ]
    conditions: dict[str, Any] = dict.fromkeys(("version", "config", "template", "data"), "") | {"fewshot": 0}
    result = {"checkpoint": "", "harness": "1", "batch_size": 8, "limit": None, "apply_chat_template": False}
    result |= {"tasks": {task: conditions}, "groups": {}}
    return make_benchmarked(result, pa.Table.from_pylist(rows, schema=tables.BENCHMARKS))


def compared(champion: Benchmarked, challenger: Benchmarked, figure: str, margin: float) -> BenchmarkDifference:
    settings = GateSettings.model_validate({"benchmarks": {figure: margin}})
    return compare_benchmarks(champion, challenger, settings)[figure]


def test_of_right_and_wrong_answers_the_interval_is_tangos() -> None:
    # PropCIs::scoreci.mp of R, for 48 and 41 of 549 at 90 %: -1.57 to 4.14 percentage points
    assert (lower_bound(48, 41, 549, 0.95), upper_bound(48, 41, 549, 0.95)) == pytest.approx(
        (-0.0157, 0.0414), abs=5e-5
    )
    champion = benchmarked([1.0] * 60 + [0.0] * 40)
    challenger = benchmarked([1.0] * 50 + [0.0] * 10 + [1.0] * 4 + [0.0] * 36)  # loses 10, gains 4
    difference = compared(champion, challenger, "quiz/acc", 0.2)
    assert difference.difference == -0.06
    assert difference.lower_bound == pytest.approx(lower_bound(4, 10, 100, 0.95), abs=1e-6)
    assert (difference.documents, difference.passes) == (100, True)
    assert str(difference).endswith("100 documents: not worse by more than 0.2")
    refused = compared(champion, challenger, "quiz/acc", 0.1)
    assert not refused.passes
    assert str(refused).endswith("100 documents: may be worse by more than 0.1")


def test_the_same_answers_to_a_few_documents_are_no_proof() -> None:
    same = benchmarked([1.0, 0.0] * 12)
    z = stats.norm.ppf(0.95)
    assert compared(same, same, "quiz/acc", 0.0).lower_bound == pytest.approx(-(z**2) / (24 + z**2), abs=1e-6)
    assert not compared(same, same, "quiz/acc", 0.1).passes
    assert compared(same, same, "quiz/acc", 0.11).passes


@pytest.mark.parametrize(("gained", "lost"), [(24, 0), (0, 24), (0, 0), (23, 1), (12, 12), (1, 0)])
def test_the_bounds_are_shares_in_order_and_mirrored(gained: int, lost: int) -> None:
    low, high = lower_bound(gained, lost, 24, 0.975), upper_bound(gained, lost, 24, 0.975)
    assert -1 <= low <= (gained - lost) / 24 <= high <= 1
    assert lower_bound(gained, lost, 24, 0.999) <= low
    if lost == 0 and gained < 24:
        assert low < gained / 24


def test_a_perplexity_is_compared_by_its_nats_per_word_and_lower_is_better() -> None:
    options: dict[str, Any] = {"metric": "word_perplexity", "weights": [10, 20, 30, 40], "higher_is_better": False}
    champion = benchmarked([2.0, 2.5, 3.0, 2.0], **options)
    worse = benchmarked([2.1, 2.7, 3.1, 2.2], **options)
    difference = compared(champion, worse, "quiz/word_perplexity", 0.1)
    assert difference.difference == pytest.approx(-(0.1 * 10 + 0.2 * 20 + 0.1 * 30 + 0.2 * 40) / 100)
    assert not difference.passes
    assert compared(worse, champion, "quiz/word_perplexity", 0.0).passes


def test_a_document_that_only_the_champion_has_a_value_for_refuses() -> None:
    champion = benchmarked([0.5, 0.6, 0.7])
    difference = compared(champion, benchmarked([0.5, None, 0.7]), "quiz/acc", 1.0)
    assert (difference.lost, difference.passes) == (1, False)
    assert str(difference) == "no value for 1 documents that the champion has one for: refused"
    assert not compared(champion, benchmarked([]), "quiz/acc", 1.0).passes


def test_a_group_is_all_documents_of_its_tasks_and_other_conditions_are_not_comparable() -> None:
    one, other = benchmarked([1.0, 0.0, 1.0], task="a"), benchmarked([1.0, 1.0], task="b")
    both = Benchmarked(
        "",
        {**one.conditions, **other.conditions},
        {"ab": ["a", "b"]},
        pa.concat_tables([one.documents, other.documents]),
    )
    assert compared(both, both, "ab/acc", 1.0).documents == 5
    assert both.is_comparable(both, ["ab/acc"])
    changed = replace(both, conditions={**both.conditions, "b": "other prompts"})
    assert not both.is_comparable(changed, ["ab/acc"])
    assert both.is_comparable(changed, ["a/acc"])
    assert not both.is_comparable(one, ["ab/acc"])


def test_a_better_loss_is_not_promoted_against_a_benchmark_and_the_decision_says_so() -> None:
    rows = [{"id": name, "source": "a", "tokens": 9, "complexity": 0.5} for name in "abcd"]

    def evaluated(loss: float) -> pa.Table:
        losses = [{**row, "nll_conditional": loss, "nll_unconditional": loss} for row in rows]
        return pa.Table.from_pylist(losses, schema=tables.EVALUATIONS)

    champion, challenger = benchmarked([1.0] * 20 + [0.0] * 4), benchmarked([1.0] * 12 + [0.0] * 12)
    settings = GateSettings.model_validate({"benchmarks": {"quiz/acc": 0.1}})
    decision = decide(
        evaluated(1.0),
        evaluated(2.0),
        settings,
        champion_version="1",
        benchmarks=compare_benchmarks(champion, challenger, settings),
    )
    assert decision.verdict == (
        "kept: +1.0000, interval 1.0000 to 1.0000, 4 records; refused by quiz/acc; champion: version 1"
    )
    (line,) = decision.benchmark_lines
    assert line.startswith("quiz/acc: -0.3333 (at least -0.")
    assert decision.result["benchmarks"]["quiz/acc"]["documents"] == 24
    assert Decision.from_json(json.loads(json.dumps(asdict(decision)))) == decision
    better = compare_benchmarks(challenger, champion, settings)
    assert decide(evaluated(1.0), evaluated(2.0), settings, champion_version="1", benchmarks=better).promoted


@pytest.mark.parametrize(("documents", "gains", "loses"), [(24, 0.1, 0.2), (200, 0.03, 0.05), (200, 0.1, 0.2)])
def test_of_models_worse_by_the_margin_5_percent_pass_or_fewer(documents: int, gains: float, loses: float) -> None:
    """Over all outcomes with their probabilities: a document is gained, lost, or the same."""
    passes = 0.0
    for gained in range(documents + 1):
        of_gained = stats.binom.pmf(gained, documents, gains)
        lost = np.arange(documents - gained + 1)
        shares = of_gained * stats.binom.pmf(lost, documents - gained, loses / (1 - gains))
        for count, share in zip(lost, shares, strict=True):
            if share > 1e-6 and lower_bound(gained, int(count), documents, 0.95) >= gains - loses - 1e-9:
                passes += share
    print(f"{documents} documents: {passes:.3f}")
    assert 0.02 < passes < 0.052


def test_a_figure_that_no_task_has_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PROJECT / "conf/benchmarks", tmp_path / "conf/benchmarks")
    monkeypatch.chdir(tmp_path)
    loaded = load_tasks(BenchmarkSettings(tasks=["local"], checkpoints=["1"]))
    check_figures(loaded, ["general_choice/acc", "short_answers/exact_match/first-line", "plain_text/bits_per_byte"])
    with pytest.raises(UserError) as error:
        check_figures(loaded, ["general_choise/acc", "general_choice/f1", "short_answers/exact_match"])
    assert str(error.value).splitlines() == [
        "params.yaml: gate.benchmarks: general_choise/acc: benchmark.tasks runs no task general_choise; "
        "near: general_choice",
        "params.yaml: gate.benchmarks: general_choice/f1: general_choice has no such metric that is a mean over "
        "documents; there are: acc, acc_norm",
        "params.yaml: gate.benchmarks: short_answers/exact_match: short_answers has no such metric that is a mean over "
        "documents; there are: exact_match/first-line",
    ]


@pytest.mark.parametrize(
    ("benchmark", "gate", "mistake"),
    [
        ({}, {"benchmarks": {"quiz/acc": 0.1}}, "gate.benchmarks: quiz/acc: benchmark.tasks names no task"),
        (
            {"tasks": ["local"], "checkpoints": ["base", "1"]},
            {"benchmarks": {"quiz/acc": 0.1}},
            "gate.benchmarks: quiz/acc: benchmark.checkpoints must name '3', which may be registered",
        ),
        (
            {"tasks": ["local"], "checkpoints": ["3"]},
            {"benchmarks": {"quiz/acc": 0.1}, "register": "best"},
            "gate.benchmarks: quiz/acc: benchmark.checkpoints must name '1', which may be registered",
        ),
        (
            {"tasks": ["local"], "checkpoints": ["3"]},
            {"benchmarks": {"quiz": 0.1}},
            "'quiz' is no figure: name the task and its metric, such as general_choice/acc",
        ),
        ({"tasks": ["local"], "checkpoints": ["3"]}, {"benchmarks": {"quiz/acc": -0.1}}, "gate.benchmarks.quiz/acc: "),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    benchmark: dict[str, Any], gate: dict[str, Any], mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    params: dict[str, Any] = dict(read_params())
    params["benchmark"], params["gate"] = params["benchmark"] | benchmark, params["gate"] | gate
    with pytest.raises(UserError, match=r"^params.yaml: ") as error:
        check_settings(params)
    (line,) = str(error.value).splitlines()
    assert mistake in line
