"""How much of the noise that was planted into the pool (noise in params.yaml) was picked, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from components.core.files import read_json
from components.pages import charts
from components.pages.parts import Column, Figure, Figures, Key, Part, Table, Text
from components.pages.run.workspace import ITERATIONS, METRICS, NOISE, Run, read_columns


def noise(run: Run) -> Iterator[Part]:
    """Share of noise in the pool and among the picks of each iteration."""
    kind_of = dict(read_columns(NOISE, ["id", "kind"]))
    pool = read_json(METRICS / "dedupe.json")["pool"]
    picks = {key: _picks(key) for key in run.iterations}
    kinds = sorted(set(kind_of.values()))
    of_pool = Counter(kind_of.values())
    share = len(kind_of) / max(pool, 1)
    yield Text(
        f"{len(kind_of):,} of the {pool:,} records of the pool ({share:.1%}) were spoiled on purpose. A choice that "
        "avoids noise has a smaller share of them than the pool; no strategy sees which they are."
    )
    found = {key: Counter(kind_of[one] for one in ids if one in kind_of) for key, ids in picks.items()}
    shares = {key: sum(found[key].values()) / max(len(ids), 1) for key, ids in picks.items()}
    yield Figures(
        [
            Figure(
                "Noise among the picks",
                "share of the picks, lower is better",
                charts.columns([charts.Point(int(key), one) for key, one in shares.items()], "iteration", at=share),
            )
        ],
        legend=[Key("c1", "bar", "of the picks"), Key("ink", "dash", "of the pool")],
        data=NOISE.as_posix(),
    )
    rows = [[kind, f"{of_pool[kind]:,}", *(f"{found[key][kind]:,}" for key in run.iterations)] for kind in kinds]
    titles = [Column("kind", number=False), Column("pool"), *(Column(f"iteration {key}") for key in run.iterations)]
    yield Table(titles, rows, caption="Records.")


def _picks(key: str) -> list[str]:
    status = read_columns(ITERATIONS / key / "selection.parquet", ["id", "status"])
    return [id_ for id_, state in status if state == "selected"]
