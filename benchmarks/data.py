"""The data stages at 100,000 to 1,000,000 records: seconds, peak memory, bytes a record, and how the time grows.

The records are made by a fixed seed from a chain of words: each word is followed by one that follows it somewhere in
the corpus, as often as there, so that word n-grams recur as in text. Prompts have 4 to 30 words, responses 5 to 115. Of
100 records, 10 are an earlier one with 1 to 4 words replaced, 2 are an earlier one, and 3 have the response of an
earlier one. They are written as JSONL, which the stages then read: the commands that DVC runs, with the settings'
defaults and no caps, so that 5 % are held out. Another version is measured, too, where a folder with its code is given.

    python -m benchmarks.data --alpaca FILE --sizes 100000 300000 1000000 [--before FOLDER --before-up-to 100000]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from ruamel.yaml import YAML

from benchmarks.corpus import docstring_records, read_alpaca
from benchmarks.report import Row
from components.core.files import read_json
from components.core.params import read_params
from components.core.paths import PARAMS
from components.core.process import quiet_environment
from components.data import tables
from components.data.records import Record
from components.overlap.similarity_join import compile_ahead

PROJECT = Path(__file__).parent.parent
SIZES = (100_000, 300_000, 1_000_000)
REPEATED = 50_000  # records that later ones repeat, at most
OUTPUTS = ("records", "targets", "rejected", "pool", "holdout", "duplicates", "noise", "candidates", "texts")
STAGES = {
    "manifest": ("--source", "made", "--manifest", "sources/made.json"),
    "ingest": (
        *("--manifests", "sources", "--metrics", "ingest.json"),
        *(word for name in OUTPUTS[:3] for word in (f"--{name}", name)),
    ),
    "dedupe": (
        *("--metrics", "dedupe.json"),
        *(word for name in OUTPUTS if name != "rejected" for word in (f"--{name}", name)),
    ),
}
# in a small process of its own: Linux counts the memory of the process that starts a command as the command's
TIMED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
measured = {
    "seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime, "peak_gib": used.ru_maxrss / 2**20
}
json.dump(measured, open("measured.json", "w"))
"""
TARGETS = {
    "ingest": ("as fast as before", "at most 1 GiB for 1,000,000"),
    "dedupe": ("at most 180 s for 1,000,000", "at most 4 GiB for 1,000,000"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One stage at one size."""

    seconds: float
    processor_seconds: float
    """Of all threads: on a busy machine the steadier of the two."""
    peak_gib: float


def make_texts(records: Sequence[Record], count: int) -> Iterator[tuple[str, str]]:
    """`count` prompts and responses, made as the top of this module says."""
    random = Random(0)  # noqa: S311
    followers: defaultdict[str, list[str]] = defaultdict(list)
    starts = []
    for record in records:
        words = f"{record.prompt} {record.response}".split()
        starts.append(words[0])
        for word, following in pairwise(words):
            followers[word].append(following)

    def text(length: int) -> list[str]:
        words = [random.choice(starts)]
        while len(words) < length:
            words.append(random.choice(followers.get(words[-1]) or starts))
        return words

    earlier: list[tuple[str, str]] = []
    for _ in range(count):
        kind = random.random() if earlier else 1.0
        prompt, response = " ".join(text(random.randint(4, 30))), ""
        if kind < 0.15:
            again = random.choice(earlier)
            words = again[1].split()
            for _ in range(random.randint(1, 4) if kind < 0.1 else 0):
                words[random.randrange(len(words))] = random.choice(starts)
            prompt, response = (prompt if kind >= 0.12 else again[0]), " ".join(words)
        else:
            response = " ".join(text(random.randint(5, 115)))
        if len(earlier) < REPEATED:
            earlier.append((prompt, response))
        yield prompt, response


def write_project(folder: Path, code: Path, records: Sequence[Record], count: int) -> None:
    """Write made.jsonl and what else the stages of the version in `code` need to read."""
    with (folder / "made.jsonl").open("w", encoding="utf-8") as file:
        for prompt, response in make_texts(records, count):
            file.write(json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False) + "\n")
    params = read_params(code / PARAMS)
    params["ingest"] |= {"docstrings": {}, "datasets": {}, "files": {"made": {"path": "made.jsonl"}}}
    params["dedupe"] |= {"max_holdout": None, "max_records": None}
    YAML().dump(params, folder / PARAMS)
    tables.write(folder / "texts", tables.BENCHMARK_TEXTS.empty_table(), tables.BENCHMARK_TEXTS)


def measure(folder: Path, code: Path) -> dict[str, Measured]:
    """Run the stages of the version in `code`, one after the other, in the project's folder."""
    measured = {}
    for name, options in STAGES.items():
        command = (sys.executable, "-c", TIMED, sys.executable, "-m", f"components.{name}", *options)
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(code)})
        measured[name] = Measured(**read_json(folder / "measured.json"))
    return measured


def run(
    records: Sequence[Record], sizes: Sequence[int] = SIZES, before: Path | None = None, before_up_to: int = 0
) -> Iterator[Row]:
    """The rows of all sizes, as they come; asserts that both versions write the same pool, holdout and duplicates."""
    compile_ahead()  # as `make setup` does
    ours: dict[int, dict[str, Measured]] = {}
    for count in sizes:
        theirs: dict[str, Measured] = {}
        with tempfile.TemporaryDirectory() as temporary:
            folders = [Path(temporary, name) for name in ("this", "before")]
            for folder in folders:
                folder.mkdir()
            write_project(folders[0], PROJECT, records, count)
            ours[count] = measure(folders[0], PROJECT)
            if before and count <= before_up_to:
                write_project(folders[1], before, records, count)
                theirs = measure(folders[1], before)
                for name in ("pool", "holdout", "duplicates"):
                    schema = tables.DUPLICATES if name == "duplicates" else tables.RECORDS
                    one, other = (tables.read(folder / name, schema) for folder in folders)
                    assert one.equals(other), f"{name} differs from that of the version before"
        for stage in TARGETS:
            yield from _compare(f"{stage}, {count:,} records", ours[count][stage], theirs.get(stage), *TARGETS[stage])
    small, large = min(ours), max(ours)
    for name in TARGETS if small < large else ():
        few, many = ours[small][name], ours[large][name]
        more = math.log(large / small)
        exponent = math.log(many.processor_seconds / few.processor_seconds) / more
        growth = (many.peak_gib - few.peak_gib) * 2**30 / (large - small)
        title = f"{name}, {small:,} to {large:,} records"
        yield Row(f"{title}: exponent of processor time", exponent, None, "", "at most 1.1")
        yield Row(f"{title}: peak memory for each more", growth, None, "bytes", "")


def _compare(title: str, this: Measured, before: Measured | None, speed: str, memory: str) -> Iterator[Row]:
    yield Row(title, this.seconds, before.seconds if before else None, "s", speed)
    busy = before.processor_seconds if before else None
    yield Row(f"{title}: processor time", this.processor_seconds, busy, "s", "")
    yield Row(f"{title}: peak memory", this.peak_gib, None, "GiB", memory)
    if before:
        yield Row(f"{title}: peak memory of the version before", before.peak_gib, None, "GiB", "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--alpaca", type=Path, help="an Alpaca file; the standard library's docstrings otherwise")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--before", type=Path, help="folder with the code of another version")
    parser.add_argument("--before-up-to", type=int, default=0, metavar="RECORDS")
    options = parser.parse_args()
    quiet_environment()
    records = read_alpaca(options.alpaca) if options.alpaca else docstring_records()
    before = options.before and options.before.resolve()
    for row in run(records, options.sizes, before, options.before_up_to):
        print(row, flush=True)


if __name__ == "__main__":
    main()
