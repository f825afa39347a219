"""The audit names what trained a checkpoint, and finds what was swapped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from components.audit.compare import compare_checkpoints
from components.audit.describe import describe_checkpoint, sealed
from components.audit.find import Checkpoint, find_checkpoint
from components.audit.index import INDEX
from components.audit.snapshots import Snapshot
from components.audit.trace import UNKNOWN, ids_of_file, ids_with_text, trace_record
from components.audit.verify import verify_checkpoint
from components.core.errors import UserError
from components.data import tables
from components.provenance.digests import folder_digest
from components.provenance.statements import digest_in, statement_of, write_bundle
from flows.seal import tag_version
from tests.support.finished_pipeline import RECORDS, REJECTED, commit, dvc
from tests.support.project import WHEN, call

WHO = {f"GIT_{role}_{what}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def project(finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(finished_pipeline, folder)
    monkeypatch.chdir(folder)
    return folder


def seal(folder: Path, message: str, *, bundle: bool = True) -> str:
    """Commit everything that git takes: as a run's end does, or by hand after `dvc repro`."""
    if bundle:
        write_bundle()
    for command in (
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, env={**WHEN, "PATH": "/usr/bin:/bin"})
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def swap_second_pick() -> None:
    """Say that the fourth record was the second pick of iteration 2."""
    selection = Path("data/iterations/2/selection.parquet")
    rows = tables.read(selection, tables.SELECTION).to_pylist()
    rows = [{**row, "id": RECORDS[3].id if row["rank"] == 2 else row["id"]} for row in rows]
    tables.write(selection, pa.Table.from_pylist(rows, schema=tables.SELECTION), tables.SELECTION)


def audit_command(folder: Path, *arguments: str, expect: int = 0) -> str:
    return call(folder, sys.executable, "-m", "flows.cli", "audit", *arguments, expect=expect, PYTHONPATH=str(ROOT))


ROOT = Path(__file__).parents[2]


def test_a_statement_is_in_toto_s_with_slsa_s_predicate_and_says_nothing_of_time_and_place(project: Path) -> None:
    text = Path("provenance/finetune@2.json").read_text(encoding="utf-8")
    statement = json.loads(text)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {one["name"]: digest_in(one) for one in statement["subject"]}
    assert subjects["models/2"] == folder_digest(Path("models/2"))
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["stage"] == "finetune@2"
    assert definition["externalParameters"]["params"]["finetune"]["learning_rate"] == 5e-5
    assert definition["internalParameters"]["seeds"] == {"finetune": 42}
    read = {one["name"]: one.get("digest", one.get("uri")) for one in definition["resolvedDependencies"]}
    assert read["models/1"]["iteritFolder"] == folder_digest(Path("models/1"))
    assert read["torch"].startswith("pkg:pypi/torch@2.")
    assert str(project) not in text
    before = Path("provenance/finetune@2.json").read_bytes()
    with statement_of("finetune@2"):
        pass
    assert Path("provenance/finetune@2.json").read_bytes() == before


def test_a_checkpoint_s_chain_names_its_records_parameters_and_metrics(project: Path) -> None:
    for reference in ("models/2", folder_digest(Path("models/2"))[:12]):
        found = describe_checkpoint(find_checkpoint(reference))
        assert [step["iteration"] for step in found["iterations"]] == ["1", "2"]
        assert found["base_model"]["digest"] == folder_digest(Path("models/base"))
        last = found["iterations"][-1]
        assert [pick["id"] for pick in last["picks"]] == [record.id for record in RECORDS[:2]]
        assert [pick["rank"] for pick in last["picks"]] == [1, 2]
        assert last["sources"] == {"texts": 2}
        assert last["metrics"]["loss"] == 2.0
        assert last["params"]["select"]["diversity_decay"] == 0.1
    assert describe_checkpoint(find_checkpoint("models/base"))["iterations"] == []
    with pytest.raises(UserError, match="no checkpoint of this project's history"):
        find_checkpoint("0" * 64)
    with pytest.raises(UserError, match="neither a folder"):
        find_checkpoint("nonsense")


def test_a_record_s_whereabouts_are_told_with_the_reason(project: Path) -> None:
    used, unused, held = (trace_record(RECORDS[place].id) for place in (0, 3, 5))
    assert [(one["iteration"], one["rank"], one["directly"]) for one in used["trained"]] == [
        ("1", 1, True),
        ("2", 1, True),
    ]
    assert used["last_clean"] is None
    assert unused["trained"] == []
    assert unused["last_clean"]["checkpoint"] == folder_digest(Path("models/2"))
    assert {one["why"] for one in held["not_used"]} == {"in the holdout"}
    assert {one["why"] for one in trace_record(REJECTED)["not_used"]} == {
        "rejected: too_long: 9 characters (a.json row 1)"
    }
    assert "not in that run's sources" in trace_record("0" * 32)["not_used"][0]["why"]
    assert ids_with_text("three it is") == [RECORDS[2].id]
    Path("person.json").write_text(json.dumps([{"instruction": "Say one.", "output": "one, one it is."}]))
    assert ids_of_file(Path("person.json")) == [RECORDS[0].id]


def test_earlier_runs_are_found_although_the_workspace_has_moved_on(project: Path, small_model: Path) -> None:
    first = folder_digest(Path("models/2"))
    sealed = seal(project, "first")
    swap_second_pick()
    (project / "models/2/README.md").write_text("another one")
    commit(project)
    second = folder_digest(Path("models/2"))
    assert find_checkpoint(first).snapshot.ref == sealed
    assert [pick["id"] for pick in describe_checkpoint(find_checkpoint(first))["iterations"][1]["picks"]] == [
        record.id for record in RECORDS[:2]
    ]
    trained = trace_record(RECORDS[3].id)["trained"]
    assert [(one["checkpoint"], one["recorded_in"]) for one in trained] == [(second, "workspace")]
    before = trace_record(RECORDS[1].id)
    INDEX.unlink()
    assert trace_record(RECORDS[1].id) == before
    difference = compare_checkpoints(find_checkpoint(first), find_checkpoint(second))
    assert difference["overlap"][1] == {"iteration": "2", "common": 1, "jaccard": 0.333333}
    checks = list(verify_checkpoint(find_checkpoint(first)))
    assert all(check.holds for check in checks), [str(check) for check in checks if not check.holds]


def test_a_checkpoint_names_every_sealed_run_that_it_was_part_of(project: Path) -> None:
    def tag(version: str, checkpoint: str) -> dict[str, str]:
        facts = {"model": "iterit", "version": version, "checkpoint": checkpoint, "run_id": f"run {version}"}
        name = tag_version(facts, f"flow {version}", "t <t@example.org>")
        return {"tag": name, "checkpoint": checkpoint, "mlflow_run": f"run {version}"}

    seal(project, "first")
    first = tag("1", folder_digest(Path("models/2")))
    (project / "models/2/README.md").write_text("another one")
    commit(project)
    seal(project, "second")
    second = tag("2", folder_digest(Path("models/2")))
    subprocess.run(["git", "tag", "--annotate", "--message", "1", "iterit/own"], check=True, env={**os.environ, **WHO})

    def runs(reference: str) -> list[dict[str, str]]:
        keys = ("tag", "checkpoint", "mlflow_run", "registered")
        return [{key: one[key] for key in keys} for one in sealed(find_checkpoint(reference).digest)]

    kept = {"registered": False}
    assert runs("models/1") == [{**first, **kept}, {**second, **kept}]
    assert runs("models/2") == [{**second, "registered": True}]
    assert runs(first["checkpoint"]) == [{**first, "registered": True}]


def test_tables_of_an_earlier_run_come_from_the_remote_when_the_cache_is_gone(project: Path, tmp_path: Path) -> None:
    swap_second_pick()
    commit(project)
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(project, "push", "--quiet")
    sealed = seal(project, "first")
    digest = folder_digest(Path("models/2"))
    shutil.rmtree(".dvc/cache")
    for path in ("models/2", "data/iterations/2"):
        shutil.rmtree(path)
    checkpoint = find_checkpoint(digest)
    assert checkpoint.digest == digest
    shutil.move(tmp_path / "store", tmp_path / "away")
    lost = trace_record(RECORDS[3].id)
    assert [one["why"] for one in lost["not_used"] if one["iteration"] == "2"] == [UNKNOWN] * 2
    assert lost["last_clean"]["iteration"] == "1"
    shutil.move(tmp_path / "away", tmp_path / "store")
    known = trace_record(RECORDS[3].id)
    assert [(one["checkpoint"], one["recorded_in"]) for one in known["trained"]] == [(digest, sealed)]
    assert known["last_clean"]["iteration"] == "1"
    told = describe_checkpoint(Checkpoint(digest, Snapshot(sealed), "2"))
    assert [pick["id"] for pick in told["iterations"][1]["picks"]] == [RECORDS[0].id, RECORDS[3].id]


def test_a_commit_by_hand_is_told_by_the_cache_or_the_remote_and_said_to_be_lost_without(
    project: Path, tmp_path: Path
) -> None:
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(project, "push", "--quiet")
    committed = seal(project, "first", bundle=False)
    digest = folder_digest(Path("models/2"))
    shutil.rmtree("provenance")
    found = find_checkpoint(digest)
    assert (found.digest, found.snapshot.ref) == (digest, committed)
    shutil.rmtree(".dvc/cache")
    assert find_checkpoint(digest).snapshot.ref == committed
    shutil.move(tmp_path / "store", tmp_path / "away")
    assert trace_record(RECORDS[1].id)["lost"] == [committed]
    assert f"commit {committed[:12]}: its statements are neither" in audit_command(project, "record", RECORDS[1].id)
    shutil.move(tmp_path / "away", tmp_path / "store")
    known = trace_record(RECORDS[1].id)
    assert not known["lost"]
    assert [one["recorded_in"] for one in known["trained"]] == [committed] * 2


def test_a_commit_by_hand_is_not_told_by_the_bundle_of_the_run_before(project: Path) -> None:
    sealed, before = seal(project, "first"), folder_digest(Path("models/2"))
    (project / "models/2/README.md").write_text("another one")
    commit(project)
    committed = seal(project, "by hand", bundle=False)
    shutil.rmtree("provenance")
    assert find_checkpoint(folder_digest(Path("models/2"))).snapshot.ref == committed
    assert find_checkpoint(before).snapshot.ref == sealed


@pytest.mark.parametrize(
    "path",
    [
        "data/iterations/1/subset.parquet",
        "data/iterations/1/scores.parquet",
        "models/1/model.safetensors",
        "models/base/config.json",
        "data/pool.parquet",
        "provenance/select@2.json",
    ],
)
def test_one_flipped_byte_is_found(project: Path, path: str) -> None:
    assert all(check.holds for check in verify_checkpoint(find_checkpoint("models/2")))
    digest = folder_digest(Path("models/2"))
    file = Path(path)
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    place = content.index(b'"') + 1 if path.endswith(".json") else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    output = audit_command(project, "verify", digest, expect=1)
    last = output.splitlines()[-1]
    assert last.startswith("MISMATCH")
    assert path.startswith(last.split()[1])
    assert "recorded" in last


@pytest.mark.parametrize(("place", "bit"), [(0, 1), (100, 128), (-3, 1), ("models/2", 1)])
def test_a_flip_that_leaves_no_json_no_text_or_another_name_is_found_as_well(
    project: Path, place: int | str, bit: int
) -> None:
    file = Path("provenance/finetune@2.json")
    content = bytearray(file.read_bytes())
    content[content.index(place.encode()) if isinstance(place, str) else place] ^= bit
    file.chmod(0o644)
    file.write_bytes(content)
    for reference in ((), ("models/2",)):
        last = audit_command(project, "verify", *reference, expect=1).splitlines()[-1]
        assert last.startswith(f"MISMATCH  {file}  recorded ")


def test_a_statement_left_by_an_iteration_that_is_no_more_does_no_harm(project: Path) -> None:
    definition = {"externalParameters": {"stage": "score@9"}}
    left = {"subject": [], "predicate": {"buildDefinition": definition}}
    Path("provenance/score@9.json").write_text(json.dumps(left))
    assert " digests hold: iteration 2" in audit_command(project, "verify")


def test_a_statement_that_is_gone_is_found(project: Path) -> None:
    digest = folder_digest(Path("models/2"))
    Path("provenance/score@2.json").unlink()
    last = audit_command(project, "verify", digest, expect=1).splitlines()[-1]
    assert last.startswith("MISMATCH  provenance/score@2.json")
    assert last.endswith("found nothing")


def test_the_command_answers_in_text_and_json(project: Path) -> None:
    text = audit_command(project, "checkpoint", "models/2")
    assert f"   1  {RECORDS[0].id}  texts" in text
    found = json.loads(audit_command(project, "checkpoint", "models/1", "--format", "json"))
    assert found["checkpoint"] == folder_digest(Path("models/1"))
    assert "rank 1" in audit_command(project, "record", RECORDS[0].id)
    assert audit_command(project, "verify").splitlines()[-1].endswith(folder_digest(Path("models/2")))
    assert audit_command(project, "rebuild").startswith("2 checkpoints, ")
    assert json.loads(audit_command(project, "diff", "models/1", "models/2"))["params"] == {}
    line = "error: xyz: a record's id is 32 hex digits\n"
    assert audit_command(project, "record", "xyz", expect=2) == line


def test_the_page_holds_every_record_and_nothing_from_elsewhere(project: Path) -> None:
    from html.parser import HTMLParser

    page = audit_command(project, "checkpoint", "models/2", "--format", "html")
    found: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Reader().feed(page)
    assert not [tag for tag, attributes in found if "src" in attributes or tag == "link"]
    assert sum(tag == "tr" for tag, _ in found) == 1 + 2 * 2
    assert all(record.id in page for record in RECORDS[:2])
    assert page.count("<svg") == 1 + 2 * 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; `apt-get install chromium` brings it")
def test_a_browser_draws_the_page_and_its_search_finds_a_record(project: Path, tmp_path: Path) -> None:
    page = audit_command(project, "checkpoint", "models/2", "--format", "html")
    typed = f"box.value = '{RECORDS[1].id.upper()} '; box.dispatchEvent(new Event('input'));"
    searched = tmp_path / "searched.html"
    searched.write_text(f"{page}<script>const box = document.getElementById('search'); {typed}</script>")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [str(CHROMIUM), *quiet, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", searched.as_uri()]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "2 of 4 records" in drawn  # a pick of both iterations
    rows = re.findall(r"<tr( hidden=\"\")?><td>\d</td><td class=\"n\">\d</td><td class=\"id\">([0-9a-f]{32})", drawn)
    assert {record for hidden, record in rows if not hidden} == {RECORDS[1].id}
    assert len(rows) == 4
