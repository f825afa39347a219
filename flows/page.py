"""report.html: the page of the run in this folder, made at the end of `iterit run` and by `iterit report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import UserError
from components.core.files import atomic_write, read_json
from components.core.settings.pipeline import Settings
from components.promotion.registered import Registered, read_registered
from components.tracking.artifacts import log_file
from flows.seal import RESULT, sealed_tag

if TYPE_CHECKING:
    from flows.recording import Logger

PAGE = Path("report.html")


def write_page(settings: Settings, path: Path = PAGE) -> Path:
    """Write the page of the run; what is not in this folder is named in it."""
    from components.pages.run.page import run_page  # Altair takes a second

    registered = _known_version()
    text = run_page(settings, registered, sealed_tag(registered) if registered else None)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def publish_page(settings: Settings, logger: Logger) -> None:
    """Write the page and add it to the MLflow run of the registered version. What fails is a warning."""
    try:
        write_page(settings)
        if registered := _known_version():
            log_file(registered.run_id, PAGE)
    except UserError as error:
        logger.warning("%s: %s; `iterit report` makes it later", PAGE, error)


def _known_version() -> Registered | None:
    return read_registered(str(read_json(RESULT)["checkpoint"])) if RESULT.is_file() else None
