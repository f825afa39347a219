"""Records and generated responses, as text: the quickest way to see whether figures mean what they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.core.files import read_json, require_file
from components.data.records import Record, iterate_records
from components.pages.parts import Excerpt, Excerpts, Part, Passage, Text, visible
from components.pages.run.workspace import ITERATIONS, POOL, SAMPLES, Run, chosen_iteration, read_columns

SHOWN = 4  # records of each kind
PROMPT, RESPONSE = 320, 480  # characters shown of each
LINES = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """A record's complexity and status in each iteration that scored it."""

    complexity: Mapping[str, float]
    status: Mapping[str, str]


def records(run: Run) -> Iterator[Part]:
    """The hardest and easiest records of the first iteration, and misaligned ones."""
    scored = _read_selections(run)
    first = run.iterations[0]
    known = [key for key, one in scored.items() if first in one.complexity]
    if not known:
        yield Text("No record was scored: the strategy picks without complexity.")
        return
    ranked = sorted(known, key=lambda key: (scored[key].complexity[first], key))
    aligned = [key for key in ranked if scored[key].complexity[first] < 1]
    groups = {
        "Hardest": (aligned[::-1][:SHOWN], "No record has a complexity below 1."),
        "Easiest": (aligned[:SHOWN], "No record has a complexity below 1."),
        "Misaligned": ([key for key in ranked[::-1] if scored[key].complexity[first] >= 1][:SHOWN], "None."),
    }
    texts = _read_records({key for keys, _ in groups.values() for key in keys})
    yield Text(
        f"By the complexity that iteration {first} saw, with the base model; long texts are cut. Hard records should "
        "be demanding, not broken; misaligned ones should be wrong."
    )
    for title, (keys, empty) in groups.items():
        yield Excerpts(title, [_excerpt(texts[key], scored[key]) for key in keys if key in texts], empty)


def _excerpt(record: Record, scored: Scored) -> Excerpt:
    course = ", ".join(f"{value:.3f}" for value in scored.complexity.values())
    picked = [key for key, status in scored.status.items() if status == "selected"]
    when = f"picked in iteration {', '.join(picked)}" if picked else "never picked"
    return Excerpt(
        visible(record.id),
        f"{visible(record.source, 60)}; complexity {course}; {when}",
        [
            Passage("prompt", visible(record.prompt, PROMPT, LINES)),
            Passage("response", visible(record.response, RESPONSE, LINES)),
        ],
    )


def _read_selections(run: Run) -> dict[str, Scored]:
    """By id: the records that an iteration scored."""
    complexity: dict[str, dict[str, float]] = {}
    status: dict[str, dict[str, str]] = {}
    for key in run.iterations:
        for id_, value, state in read_columns(ITERATIONS / key / "selection.parquet", ["id", "complexity", "status"]):
            if value is not None:
                complexity.setdefault(id_, {})[key] = value
                status.setdefault(id_, {})[key] = state
    return {key: Scored(values, status[key]) for key, values in complexity.items()}


def _read_records(wanted: set[str]) -> dict[str, Record]:
    require_file(POOL)
    return {record.id: record for record in iterate_records(POOL) if record.id in wanted}


def samples(run: Run) -> Iterator[Part]:
    """Generated responses of the base model and of the checkpoint, beside the reference."""
    chosen = chosen_iteration(run)
    before, after = (_read_samples(key) for key in ("base", chosen))
    length = run.settings.evaluate.sample_tokens
    yield Text(f"Greedy responses of at most {length} tokens to prompts of the holdout, which no iteration trained on.")
    yield Excerpts(
        "",
        [_sample(one, before.get(key), after.get(key), chosen) for key, one in (before | after).items()],
        "No sample was generated (evaluate.samples).",
    )


def _read_samples(key: str) -> dict[str, Mapping[str, str]]:
    rows: Sequence[Mapping[str, str]] = read_json(SAMPLES / f"{key}.json")["samples"]
    return {row["id"]: row for row in rows}


def _sample(
    sample: Mapping[str, str], before: Mapping[str, str] | None, after: Mapping[str, str] | None, chosen: str
) -> Excerpt:
    passages = [
        Passage("prompt", visible(sample["prompt"], PROMPT, LINES)),
        Passage("reference", visible(sample["reference"], RESPONSE, LINES)),
    ]
    for name, one in (("base model", before), (f"after iteration {chosen}", after)):
        passages.append(Passage(name, visible(one["generated"], RESPONSE, LINES) if one else "not generated"))
    return Excerpt(visible(sample["id"]), "", passages)
