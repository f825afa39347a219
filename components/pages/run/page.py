"""The page of a run, from the files of the project in the current folder; what is missing is named where it would be.

It depends on these files alone: no clock time, no host. The seconds in it are those that the stages noted down.
"""

from __future__ import annotations

from collections.abc import Iterator

from components.core.files import read_json
from components.core.settings.base_model import FolderModel, GgufModel, HubModel, ModelSource
from components.core.settings.pipeline import Settings
from components.pages.parts import Fact, Facts, Page, Part, Tiles, parts_or_missing, section
from components.pages.render import render_page
from components.pages.run import choice, cost, data, noise, origin, result, texts
from components.pages.run.workspace import METRICS, Run, chosen_iteration, read_holdout, read_series
from components.promotion.registered import Registered


def run_page(settings: Settings, registered: Registered | None, tag: str | None) -> str:
    """The page as HTML. `registered`: what is known of the checkpoint's version; `tag`: of the sealed run, in git."""
    run = Run(settings, registered, tag)
    sections = [
        section("better", "Is it better?", lambda: result.comparison(run)),
        section("training", "Training", lambda: result.training(run)),
        section("holdout", "Holdout", lambda: result.holdout(run)),
        section("complexity", "How hard the records are", lambda: choice.complexity(run)),
        section("picks", "How the picks change", lambda: choice.change(run)),
        section("composition", "What was picked from what", lambda: choice.composition(run)),
        *([section("noise", "Planted noise", lambda: noise.noise(run))] if settings.noise.share else []),
        section("removed", "What was left out", lambda: data.removal(run)),
        section("cost", "What it cost", lambda: cost.cost(run)),
        section("records", "Records", lambda: texts.records(run)),
        section("samples", "Responses before and after", lambda: texts.samples(run)),
        section("again", "To make it again", lambda: origin.again(run)),
    ]
    name = f"{registered.model} version {registered.version}" if registered else settings.register_.name
    return render_page(Page(name, "A training run of iterit", parts_or_missing(lambda: _top(run)), sections))


def _top(run: Run) -> Iterator[Part]:
    yield result.verdict(run)
    chosen = chosen_iteration(run)
    base, new = read_holdout("base"), read_holdout(chosen)
    trained = [read_json(METRICS / "finetune" / f"{key}.json") for key in run.iterations]
    pool = read_json(METRICS / "dedupe.json")["pool"]
    picks, tokens = (sum(one.get(name, 0) for one in trained) for name in ("records", "tokens"))
    distinct = int(read_series("picks")[-1]["distinct"])
    yield Tiles(
        [
            Fact("loss on the holdout", f"{base.loss:.3f} \u2192 {new.loss:.3f}", "nats per token, lower is better"),
            Fact("perplexity", f"{base.perplexity:.2f} \u2192 {new.perplexity:.2f}", f"{new.records:,} records"),
            Fact(
                "trained on",
                f"{distinct:,}",
                f"records of a pool of {pool:,}: {picks:,} picks, {len(trained)} iterations",
            ),
            Fact("tokens trained", f"{tokens:,}", "of prompts and responses"),
        ]
    )
    yield Facts(list(_what_was_trained(run.settings, chosen)))


def _what_was_trained(settings: Settings, chosen: str) -> Iterator[Fact]:
    select, finetune = settings.select, settings.finetune
    yield Fact("base model", describe_model(settings.base_model))
    yield Fact("checkpoint", f"models/{chosen}, after iteration {chosen} of {len(settings.iterations)}")
    budget = f"{select.tokens:,} tokens" if select.tokens else f"{select.ratio:g}"
    yield Fact("choice", f"strategy {select.strategy}, budget {budget}, candidates {select.update_ratio:g} x the picks")
    adapters = f"LoRA, rank {finetune.lora.rank}" if finetune.lora else "all weights"
    yield Fact(
        "training",
        f"{adapters}, learning rate {finetune.learning_rate:g}, batches of {finetune.batch_size}, "
        f"{finetune.deepspeed}, {finetune.dtype}, seed {finetune.seed}",
    )


def describe_model(source: ModelSource) -> str:
    """The base model as params.yaml names it."""
    if isinstance(source, HubModel):
        return f"{source.id} at {source.revision}"
    if isinstance(source, FolderModel | GgufModel):
        return source.path
    return source.requirement
