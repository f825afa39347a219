"""Finds the sealed runs of a checkpoint: the git tags that `iterit run` puts on a commit of its results."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from components.audit.index import commits_with, open_index
from components.audit.snapshots import git


@dataclass(frozen=True, slots=True)
class SealedRun:
    """A sealed run: its tag, what the tag's message names, and whether it registered the checkpoint in question."""

    tag: str
    checkpoint: str
    """Digest of the checkpoint that the run registered."""
    dvc_lock: str
    """SHA-256 of dvc.lock."""
    mlflow_run: str
    prefect_flow_run: str | None
    """None for a run outside Prefect."""
    registered: bool


def sealed_runs(digest: str) -> list[SealedRun]:
    """The sealed runs that made, kept or registered the checkpoint with this digest, oldest first."""
    place_of = {commit: place for place, commit in enumerate(commits_with(open_index(), digest))}
    try:
        listed = git("tag", "--list", "--format=%(refname:short) %(*objectname)", "iterit/*").splitlines()
    except subprocess.CalledProcessError:  # not a git repository
        return []
    tags = [line.split(" ") for line in listed]
    ordered = sorted((place_of[commit], tag) for tag, commit in tags if commit in place_of)
    return [run for _, tag in ordered if (run := _read_tag(tag, digest))]


def _read_tag(tag: str, digest: str) -> SealedRun | None:
    """None for a tag that `iterit run` did not make."""
    try:
        message = json.loads(git("tag", "--list", "--format=%(contents)", tag))
        return SealedRun(
            tag=tag,
            checkpoint=message["checkpoint"],
            dvc_lock=message["dvc_lock"],
            mlflow_run=message["mlflow_run"],
            prefect_flow_run=message["prefect_flow_run"],
            registered=message["checkpoint"] == digest,
        )
    except (KeyError, TypeError, json.JSONDecodeError):
        return None
