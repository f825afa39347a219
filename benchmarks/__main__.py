"""Runs all benchmarks, prints the figures as they come, and writes benchmarks/results.md.

python -m benchmarks [--alpaca FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks import audit, data, finetune, score, select
from benchmarks.corpus import docstring_records, read_alpaca, spread
from benchmarks.report import Row, write_results
from components.core.process import quiet_environment
from components.data.records import read_records

PAGE = Path(__file__).with_name("results.md")
SCORED = 48  # records
SUBSET = Path("data/iterations/1/subset.parquet")  # the first subset of the default run
SIZES = ((52_000, 2_600), (1_000_000, 50_000))  # responses and picks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--alpaca", type=Path, help="an Alpaca file; the standard library's docstrings otherwise")
    parser.add_argument("--model", type=Path, default=Path("models/base"))
    options = parser.parse_args()
    if not (options.model / "config.json").is_file() or not SUBSET.is_file():
        parser.error(f"{options.model} and {SUBSET} are needed; `dvc repro select@1` makes them")
    quiet_environment()
    records = read_alpaca(options.alpaca) if options.alpaca else docstring_records()
    source = (
        f"{len(records):,} Alpaca records" if options.alpaca else f"{len(records):,} docstrings of the standard library"
    )
    responses = [record.response for record in records]
    rows: list[Row] = []
    benchmarks: list[Callable[[], Iterable[Row]]] = [partial(select.run, responses, *size) for size in SIZES]
    benchmarks.append(partial(data.run, records))
    benchmarks.append(audit.run)
    scored = spread(records, SCORED)
    benchmarks += [partial(score.run, options.model, scored, dtype) for dtype in ("float32", "bfloat16")]
    benchmarks.append(partial(finetune.run, options.model, read_records(SUBSET)))
    for benchmark in benchmarks:
        for row in benchmark():
            print(row, flush=True)
            rows.append(row)
    write_results(rows, f"{source}; fine-tuning: the first subset of the default run", PAGE)


if __name__ == "__main__":
    main()
