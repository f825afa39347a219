"""Sources outside the project: a Hugging Face hub, and the standard library of the running Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from components.data_sources.docstrings import read_docstrings
from tests.support.local_hub import local_hub
from tests.support.project import SOURCE


def test_the_docstrings_of_the_standard_library_are_public_with_signature_and_place() -> None:
    by_name = {item.where.partition(" ")[0]: item for item in read_docstrings()}
    dedent = by_name["textwrap.dedent"]
    assert dedent.value["input"] == "def textwrap.dedent(text):"
    assert dedent.value["output"].startswith("Remove any common leading whitespace")
    assert dedent.where.startswith("textwrap.dedent (textwrap.py line ")
    assert by_name["json.encoder.JSONEncoder.encode"].value["instruction"].endswith("function.")
    assert len(by_name) > 3000
    private = [name for name in by_name if any(part.startswith("_") for part in name.split("."))]
    assert not private and not any(name.startswith(("test.", "idlelib.", "site-packages.")) for name in by_name)


READ_FROM_HUB = """
from components.core.settings.ingest import DatasetSource
from components.core.stage import stage
from components.data_sources.hub import read_dataset
with stage('ingest', hub=True):
    for item in read_dataset('d', DatasetSource(name='owner/data', revision='v1', split='train[1:]')):
        print(item.where, item.value['output'])
"""


def read_from_hub(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Read the dataset owner/data in a process of its own, because `datasets` reads its environment on import."""
    return subprocess.run(
        [sys.executable, "-c", READ_FROM_HUB],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_hub_dataset_is_read_at_its_revision(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {word}", "output": word} for word in ("one", "two", "three")]
    files = {
        "data/train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: data/train.jsonl\n---\n",
    }
    with local_hub("datasets", "owner/data", files) as endpoint:
        ended = read_from_hub(tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"owner/data train[1:] row {row} {word}" for row, word in ((1, "two"), (2, "three"))
    ]


def test_an_unreachable_hub_ends_the_stage_with_the_exit_code_for_trying_again(tmp_path: Path) -> None:
    # in offline mode the library reports an unreachable hub at once, without half a minute of retries
    ended = read_from_hub(tmp_path, HF_HUB_OFFLINE="1")
    assert ended.returncode == 75, ended.stderr
    assert "ingest.datasets.d.name: owner/data: the hub does not answer" in ended.stderr
    assert "Traceback" not in ended.stderr
