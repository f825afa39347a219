"""Experiments that DVC runs in a folder of their own (--temp, --queue): they must work on the project's own data.

DVC copies to that folder what git tracks. What lies in a source beside that is not there, and where the list of a
source's files is up to date without it, no stage of the pipeline would notice.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path

from components.core.errors import UserError
from components.core.paths import PARAMS, SCRATCH, project_folder

CHECKED = SCRATCH / "same-sources"  # in an experiment's folder: that its sources are the project's


def check_experiment() -> None:
    """Raises UserError when a source has other files in this experiment's folder than in the project.

    Looks once in a folder, and nowhere but in that of an experiment.
    """
    project = project_folder()
    if project == Path() or CHECKED.exists():
        return
    from components.core.params import load_settings  # not for each stage of every run

    for name, source in load_settings().ingest.files.items():
        if Path(source.path).is_absolute():
            continue
        if differing := next(_differing(project, Path(source.path)), None):
            raise UserError(
                f"{PARAMS}: ingest.files.{name}.path: {source.path}: this experiment would train on other data than "
                f"the project holds ({differing} differs): DVC copies to it only what git tracks; name each such file "
                f"in --copy-paths (--copy-paths {differing}), commit them or `dvc add` them, name the source by an "
                "absolute path, or run without --temp and --queue"
            )
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.touch()


def _differing(project: Path, source: Path) -> Iterator[Path]:
    """The files of a source, in order, that are not the same here as in the project."""
    for path in sorted({*_files(Path(), source), *_files(project, source)}):
        here, there = path, project / path
        if not (here.is_file() and there.is_file() and filecmp.cmp(here, there)):
            yield path


def _files(folder: Path, source: Path) -> Iterator[Path]:
    """The files of a source that are not hidden, as paths in the project."""
    if not (folder / source).is_dir():
        yield source
    for place, folders, names in os.walk(folder / source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(place) / name).relative_to(folder) for name in names if not name.startswith("."))
