"""Stage `manifest@SOURCE`: lists the files of a local source with their digests, so that DVC notices every change.

DVC cannot read a list of dependencies from params.yaml, but it can unroll one stage per source: each of these stages
depends on the path of its source, and `ingest` depends on the manifests that they write.

    python -m components.manifest --source incoming --manifest data/sources/incoming.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from components.core.errors import UserError, printable
from components.core.params import load_settings
from components.core.paths import PARAMS, PIPELINE
from components.core.stage import stage
from components.data_sources.file_manifest import (
    FORMATS,
    check_source,
    is_readable_format,
    list_files,
    write_manifest,
)
from components.provenance.pipeline import output_places
from components.provenance.statements import statement_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.manifest", description="List the files of a source.")
    parser.add_argument("--source", required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    options = parser.parse_args()
    with stage("manifest", options.source) as running, statement_of(running.name):
        sources = load_settings().ingest.files
        if options.source not in sources:
            raise UserError(f"{PARAMS}: ingest.files: no source {options.source!r}; there are {', '.join(sources)}")
        source = sources[options.source]
        mistakes = check_source(options.source, source, output_places() if PIPELINE.is_file() else ())
        if mistakes:
            raise UserError(*mistakes)
        manifest = list_files(options.source, source)
        for path in manifest.ignored:
            print(f"{printable(path)}: ignored; {_why_ignored(Path(path))}")
        write_manifest(options.manifest, manifest)


def _why_ignored(path: Path) -> str:
    if path.is_symlink() and (path.is_dir() or is_readable_format(path)):
        return "a link; one out of the source's folder is followed with follow_links: true"
    return f"only {', '.join(FORMATS)} (also with .gz or .zst) are read"


if __name__ == "__main__":
    main()
