"""A stage that is killed after any rename, link, removal or fsync makes the same bytes when it is started again.

tests/support/kills.py does so after every single one, for a table; here the dear stages are killed after some of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kills import build_library, kill_everywhere

EVERY = {"evaluate@1": 3, "base_model": 5, "finetune@1": 9, "register": 9}  # a stage that is not here: every call


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize(
    "stage",
    [
        "manifest@incoming",
        "base_model",
        "ingest",
        "dedupe",
        "score@1",
        "select@1",
        "finetune@1",
        "evaluate@1",
        "report",
        "register",
    ],
)
def test_a_kill_anywhere_changes_nothing(after_a_run: Path, library: Path, stage: str) -> None:
    kills = list(kill_everywhere(after_a_run, stage, library, every=EVERY.get(stage, 1)))
    assert kills
    assert [kill for kill in kills if not kill.harmless] == []
