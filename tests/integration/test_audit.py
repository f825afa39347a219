"""The audit names what trained a checkpoint, and detects what was swapped since."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.audit.compare import Overlap, compare_checkpoints
from components.audit.describe import describe_checkpoint
from components.audit.find import Checkpoint, find_checkpoint, workspace_checkpoint
from components.audit.index import INDEX
from components.audit.sealed import SealedRun, sealed_runs
from components.audit.snapshots import WORKSPACE, Snapshot
from components.audit.trace import UNKNOWN, ids_of_file, ids_with_text, trace_record
from components.audit.verify import verify_checkpoint
from components.core.errors import UserError
from components.core.files import read_json, write_json
from components.data import tables
from components.promotion.gate import Decision
from components.promotion.registered import Registered
from components.provenance.digests import digest_set, file_digest, folder_digest
from components.provenance.lockfile import read_lock
from components.provenance.statements import digest_in, statement_of, write_bundle
from flows.seal import tag_version
from tests.support.finished_pipeline import RECORDS, REJECTED, commit, dvc
from tests.support.project import WHEN, call

ROOT = Path(__file__).parents[2]
WHO = {f"GIT_{role}_{what}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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


def edit_statement(stage: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the digests in a stage's statement; recommit() then makes dvc.lock agree."""
    file = Path(f"provenance/{stage}.json")
    statement = read_json(file)
    for described in (*statement["subject"], *statement["predicate"]["buildDefinition"]["resolvedDependencies"]):
        edit(described)
    file.unlink()  # it may be a link into DVC's cache
    write_json(file, statement)


def recommit(folder: Path) -> None:
    """Make dvc.lock name the files as they are now."""
    dvc(folder, "commit", "--quiet", "--force", *read_lock())


def to_old_form(described: dict[str, Any]) -> None:
    """As statements were before they had dirHash: a folder's digest under sha256."""
    digests = described.get("digest", {})
    if "iteritFolder" in digests:
        described["digest"] = {"sha256": digests["iteritFolder"]}


def test_a_statement_has_in_toto_s_form_and_slsa_s_predicate_and_no_time_or_place(project: Path) -> None:
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
        description = describe_checkpoint(find_checkpoint(reference))
        assert [step.iteration for step in description.iterations] == ["1", "2"]
        assert description.base_model.digest == folder_digest(Path("models/base"))
        last = description.iterations[-1]
        assert [pick.id for pick in last.picks] == [record.id for record in RECORDS[:2]]
        assert [pick.rank for pick in last.picks] == [1, 2]
        assert last.sources == {"texts": 2}
        assert last.candidates == file_digest(Path("data/iterations/1/candidates.parquet"))
        assert last.metrics
        assert last.metrics["loss"] == 2.0
        assert last.params["select"]["diversity_decay"] == 0.1
    assert describe_checkpoint(find_checkpoint("models/base")).iterations == []
    with pytest.raises(UserError, match="no checkpoint of this project's history"):
        find_checkpoint("0" * 64)
    with pytest.raises(UserError, match="neither a folder"):
        find_checkpoint("nonsense")


def test_a_record_is_traced_with_the_reason_why_it_was_not_used(project: Path) -> None:
    used, unused, held = (trace_record(RECORDS[place].id) for place in (0, 3, 5))
    assert [(one.iteration, one.rank, one.directly) for one in used.trained] == [("1", 1, True), ("2", 1, True)]
    assert used.last_clean is None
    assert unused.trained == []
    assert unused.last_clean
    assert unused.last_clean.checkpoint == folder_digest(Path("models/2"))
    assert {one.why for one in held.not_used} == {"in the holdout"}
    assert {one.why for one in trace_record(REJECTED).not_used} == {"rejected: too_long: 9 characters (a.json row 1)"}
    assert "not in that run's sources" in trace_record("0" * 32).not_used[0].why
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
    assert [pick.id for pick in describe_checkpoint(find_checkpoint(first)).iterations[1].picks] == [
        record.id for record in RECORDS[:2]
    ]
    trained = trace_record(RECORDS[3].id).trained
    assert [(one.checkpoint, one.recorded_in) for one in trained] == [(second, WORKSPACE)]
    before = trace_record(RECORDS[1].id)
    INDEX.unlink()
    assert trace_record(RECORDS[1].id) == before
    comparison = compare_checkpoints(find_checkpoint(first), find_checkpoint(second))
    assert comparison.overlap[1] == Overlap("2", common=1, jaccard=0.333333)
    assert comparison.records.only_first == []  # iteration 1 has it in both chains
    assert comparison.records.only_second == [RECORDS[3].id]
    assert comparison.params == {}
    checks = list(verify_checkpoint(find_checkpoint(first)).checks)
    assert all(check.holds for check in checks), [str(check) for check in checks if not check.holds]


def test_a_checkpoint_names_every_sealed_run_that_it_was_part_of(project: Path) -> None:
    def tag(version: str, checkpoint: str) -> SealedRun:
        gate = Decision(True, "there was no champion", {}, None, None, False)
        registered = Registered("iterit", checkpoint, version, "latest", True, gate, f"run {version}", "")
        name = tag_version(registered, f"flow {version}", "t <t@example.org>")
        lock = file_digest(Path("dvc.lock"))
        return SealedRun(name, checkpoint, lock, f"run {version}", f"flow {version}", registered=False)

    seal(project, "first")
    first = tag("1", folder_digest(Path("models/2")))
    (project / "models/2/README.md").write_text("another one")
    commit(project)
    seal(project, "second")
    second = tag("2", folder_digest(Path("models/2")))
    subprocess.run(["git", "tag", "--annotate", "--message", "1", "iterit/own"], check=True, env={**os.environ, **WHO})

    assert sealed_runs(folder_digest(Path("models/1"))) == [first, second]
    assert sealed_runs(folder_digest(Path("models/2"))) == [replace(second, registered=True)]
    assert sealed_runs(first.checkpoint) == [replace(first, registered=True)]


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
    assert [one.why for one in lost.not_used if one.iteration == "2"] == [UNKNOWN] * 2
    assert lost.last_clean
    assert lost.last_clean.iteration == "1"
    shutil.move(tmp_path / "away", tmp_path / "store")
    known = trace_record(RECORDS[3].id)
    assert [(one.checkpoint, one.recorded_in) for one in known.trained] == [(digest, sealed)]
    assert known.last_clean
    assert known.last_clean.iteration == "1"
    description = describe_checkpoint(Checkpoint(digest, Snapshot(sealed), "2"))
    assert [pick.id for pick in description.iterations[1].picks] == [RECORDS[0].id, RECORDS[3].id]


def test_statements_of_a_commit_by_hand_come_from_cache_or_remote_and_are_lost_without(
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
    assert trace_record(RECORDS[1].id).lost == [committed]
    assert f"commit {committed[:12]}: its statements are neither" in audit_command(project, "record", RECORDS[1].id)
    shutil.move(tmp_path / "away", tmp_path / "store")
    known = trace_record(RECORDS[1].id)
    assert not known.lost
    assert [one.recorded_in for one in known.trained] == [committed] * 2


def test_a_commit_by_hand_is_not_described_by_the_bundle_of_an_earlier_run(project: Path) -> None:
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
def test_one_flipped_byte_is_detected(project: Path, path: str) -> None:
    assert all(check.holds for check in verify_checkpoint(find_checkpoint("models/2")).checks)
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
def test_a_flip_that_breaks_json_text_or_a_name_in_a_statement_is_detected(
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


def test_a_statement_left_from_a_removed_iteration_does_no_harm(project: Path) -> None:
    definition = {"externalParameters": {"stage": "score@9"}}
    left = {"subject": [], "predicate": {"buildDefinition": definition}}
    Path("provenance/score@9.json").write_text(json.dumps(left))
    assert " checks hold: iteration 2" in audit_command(project, "verify")


def test_a_deleted_statement_is_detected(project: Path) -> None:
    digest = folder_digest(Path("models/2"))
    Path("provenance/score@2.json").unlink()
    last = audit_command(project, "verify", digest, expect=1).splitlines()[-1]
    assert last.startswith("MISMATCH  provenance/score@2.json")
    assert last.endswith("found nothing")


def test_verify_compares_the_dir_hash_with_the_bytes(project: Path) -> None:
    computed = digest_set(Path("models/2"))["dirHash"]
    assert f"ok        models/2 (dirHash)  {computed[:16]}" in audit_command(project, "verify").splitlines()

    def edit(described: dict[str, Any]) -> None:
        if described["name"] == "models/2":
            described["digest"]["dirHash"] = "0" * 64

    edit_statement("finetune@2", edit)
    recommit(project)
    last = audit_command(project, "verify", expect=1).splitlines()[-1]
    assert last == f"MISMATCH  models/2 (dirHash)  recorded {'0' * 64}, found {computed}"


def test_verify_compares_the_dir_hash_that_a_stage_read_with_what_was_written(project: Path) -> None:
    def edit(described: dict[str, Any]) -> None:
        if described["name"] == "models/1":
            described["digest"]["dirHash"] = "0" * 64

    edit_statement("score@2", edit)
    recommit(project)
    last = audit_command(project, "verify", expect=1).splitlines()[-1]
    assert last.startswith("MISMATCH  models/1 as score@2 read it (dirHash)  recorded ")


@pytest.mark.parametrize("old", ["all of them", "some of them"])
def test_statements_of_the_old_form_are_found_described_and_verified(project: Path, old: str) -> None:
    digest, before = folder_digest(Path("models/2")), describe_checkpoint(workspace_checkpoint())
    for stage in read_lock():
        if old == "all of them" or stage in ("base_model", "finetune@1", "score@2"):
            edit_statement(stage, to_old_form)
    recommit(project)
    text = Path("provenance/finetune@1.json").read_text(encoding="utf-8")
    assert "dirHash" not in text
    assert "iteritFolder" not in text
    committed = seal(project, "old")
    for ref in (WORKSPACE, committed):
        if ref == committed:
            shutil.rmtree("provenance")
        checkpoint = find_checkpoint(digest[:12])
        assert (checkpoint.digest, checkpoint.snapshot.ref, checkpoint.iteration) == (digest, ref, "2")
        description = describe_checkpoint(checkpoint)
        assert replace(description, recorded_in=before.recorded_in) == before
        checks = list(verify_checkpoint(checkpoint).checks)
        assert all(check.holds for check in checks), [str(check) for check in checks if not check.holds]
        artifacts = {check.artifact for check in checks}
        assert {"models/base", "models/2", "models/1 as score@2 read it"} <= artifacts
        assert ("models/2 (dirHash)" in artifacts) == (old == "some of them")
    with (project / "models/1/config.json").open("a") as file:
        file.write("\n")
    shutil.rmtree(".dvc/cache")
    lost = [str(check) for check in verify_checkpoint(checkpoint).checks if not check.holds]
    assert lost[-1].startswith("MISMATCH  models/1  recorded ")
    assert lost[-1].endswith("found nothing")


def test_the_command_answers_in_text_and_json(project: Path) -> None:
    text = audit_command(project, "checkpoint", "models/2")
    assert f"   1  {RECORDS[0].id}  texts" in text
    description = json.loads(audit_command(project, "checkpoint", "models/1", "--format", "json"))
    assert description["checkpoint"] == folder_digest(Path("models/1"))
    assert description.keys() == {"checkpoint", "recorded_in", "sealed", "base_model", "iterations"}
    assert description["iterations"][0]["picks"][1] == {
        "rank": 2,
        "id": RECORDS[1].id,
        "source": "texts",
        "complexity": 0.3679,
        "diversity": 1.0,
        "score": 0.3679,
    }
    trace = json.loads(audit_command(project, "record", RECORDS[0].id, "--format", "json"))[0]
    assert trace.keys() == {"record", "trained", "not_used", "last_clean", "lost"}
    assert trace["trained"][0]["recorded_in"] == WORKSPACE
    assert "rank 1" in audit_command(project, "record", RECORDS[0].id)
    assert audit_command(project, "verify").splitlines()[-2].endswith(folder_digest(Path("models/2")))
    assert audit_command(project, "rebuild").startswith("2 checkpoints, ")
    assert json.loads(audit_command(project, "diff", "models/1", "models/2"))["params"] == {}
    line = "error: xyz: a record's id is 32 hex digits\n"
    assert audit_command(project, "record", "xyz", expect=2) == line


def test_the_page_holds_every_record_and_loads_nothing(project: Path) -> None:
    from html.parser import HTMLParser

    page = audit_command(project, "checkpoint", "models/2", "--format", "html")
    elements: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            elements.append((tag, dict(attrs)))

    Reader().feed(page)
    assert not [tag for tag, attributes in elements if "src" in attributes or tag == "link"]
    assert sum(tag == "tr" for tag, _ in elements) == 1 + 2 * 2
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
