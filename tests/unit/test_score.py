"""The scores are the formula's, whoever is scored beside a record, and nothing is scored twice."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.errors import UserError
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.records import Message, Record, make_record, write_records
from components.model.load import load_model, prepack_linear_layers
from components.score import check_misaligned_share, score_pool, summarize
from components.scoring import ifd
from components.scoring.ifd import CUT_OFF, NO_RESPONSE, NOT_FINITE, check_length, encode_pairs, score_records
from components.scoring.losses import _of_like_length, make_reader, measure_pairs
from components.scoring.store import open_store
from tests.support.project import edit_params
from tests.support.small_model import make_small_model

SYSTEM = "You are a helpful assistant."
TOLERANCE = 5e-5  # float32 kernels differ by shape


def ask(prompt: str, response: str, *before: Message) -> Record:
    return make_record("test", [*before, Message("user", prompt), Message("assistant", response)])


RECORDS = [
    ask("Wrap the text.", "The text is wrapped to lines of at most seventy characters each."),
    ask("Name one function of the module.", "fill"),
    ask("And another?", "dedent", Message("user", "Name one function."), Message("assistant", "indent")),
    ask("Say it briefly.", "Done.", Message("system", "Be brief, and never say more than one word.")),
    ask("What is the text? " * 12, "It is a text.\n\n    With an indented line, and a final one: é 漢字 🙂."),
    ask("assistant", "assistant"),
    ask("Repeat it.", "text " * 60),
    ask("", "There was no question, but here is the answer all the same: expand tabs first."),
    *(ask(f"Give me line {number}.", f"line {number} of the text " * (number + 1)) for number in range(6)),
]


@pytest.fixture(scope="module")
def loaded(small_model: Path) -> tuple[Any, Any]:
    return load_model(small_model, "float32")


def scored(records: list[Record], model: Any, tokenizer: Any, **options: Any) -> pa.Table:
    return score_records(
        records, model, tokenizer, **{"max_length": 512, "batch_tokens": 512, "system": SYSTEM, **options}
    )


def complexity_of(table: pa.Table) -> list[float]:
    values: list[float] = table["complexity"].to_pylist()
    return values


def plain_loop(records: list[Record], model: Any, tokenizer: Any, max_length: int = 512) -> Iterator[dict[str, float]]:
    """The formula, one text at a time: whole logits, and the response found behind the rendered prompt."""
    import torch

    for record in records:
        chat = [{"role": message.role, "content": message.content} for message in record.messages]
        if chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": SYSTEM})
        prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        alone = tokenizer.apply_chat_template(chat[-1:], tokenize=False)
        texts = [
            (tokenizer.apply_chat_template(chat, tokenize=False), len(prompt)),
            (alone, alone.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")),
        ]
        losses, counts = [], []
        for text, start in texts:
            coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            first = next(at for at, (_, end) in enumerate(coded["offset_mapping"]) if end > start)
            ids = torch.tensor([coded["input_ids"][:max_length]])
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, first - 1 : -1].double()
            losses.append(-logits.log_softmax(-1).gather(1, ids[0, first:, None])[:, 0])
            counts.append(len(losses[-1]))
        n = min(counts)
        conditional, unconditional = (float(loss[:n].mean()) for loss in losses)
        yield {
            "response_tokens": n,
            "nll_conditional": conditional,
            "nll_unconditional": unconditional,
            "complexity": math.exp(conditional - unconditional),
        }


def assert_equals_plain_loop(table: pa.Table, wanted: list[dict[str, float]]) -> None:
    for name in ("response_tokens", "nll_conditional", "nll_unconditional", "complexity"):
        np.testing.assert_allclose(table[name].to_pylist(), [row[name] for row in wanted], atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("max_length", [512, 60])
def test_the_scores_are_the_formula_s(loaded: tuple[Any, Any], max_length: int) -> None:
    model, tokenizer = loaded
    records = RECORDS if max_length == 512 else [RECORDS[0], RECORDS[6], RECORDS[9]]
    table = scored(records, model, tokenizer, max_length=max_length)
    assert table["id"].to_pylist() == [record.id for record in records]
    assert_equals_plain_loop(table, list(plain_loop(records, model, tokenizer, max_length)))


def test_truncation_shortens_both_texts_alike(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    (text, other), *_ = encode_pairs([RECORDS[6]], tokenizer, system=SYSTEM, template="chat", max_length=70)
    assert len(text.ids) == 70
    assert text.scored == other.scored
    assert text.ids[text.start :] == other.ids[other.start :]
    assert len(other.ids) < 70
    # and where the unconditional text is the longer one, because the template adds a system message of its own
    brief = ask("", "text " * 60, Message("system", "S"))
    ((text, other),) = encode_pairs([brief], tokenizer, system=SYSTEM, template="chat", max_length=70)
    assert len(other.ids) == 70
    assert text.ids[text.start :] == other.ids[other.start :]
    assert len(text.ids) < 70


@pytest.mark.parametrize("kind", ["logits capped, sliding windows", "logits scaled", "absolute positions"])
def test_the_scores_are_the_formula_s_on_other_architectures(loaded: tuple[Any, Any], kind: str) -> None:
    import torch
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
    )

    _, tokenizer = loaded
    torch.manual_seed(1)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    model: Any
    if kind.startswith("logits capped"):
        # tight caps and a window shorter than the texts, so that leaving either out would show
        model = Gemma2ForCausalLM(
            Gemma2Config(
                **shape,
                **heads,
                head_dim=16,
                sliding_window=16,
                final_logit_softcapping=0.5,
                attn_logit_softcapping=50.0,
            )
        )
    elif kind == "logits scaled":
        model = CohereForCausalLM(CohereConfig(**shape, **heads, logit_scale=7.0))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=600, n_embd=32, n_layer=2, n_head=2))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # a model that has an opinion
    model.eval()
    table = scored(RECORDS, model, tokenizer)
    assert_equals_plain_loop(table, list(plain_loop(RECORDS, model, tokenizer)))
    reader = make_reader(model, tokenizer, system=SYSTEM, template="chat")
    assert reader.separable_head == (kind == "absolute positions")
    assert reader.packed == (kind == "absolute positions")


def test_the_short_cuts_are_taken_where_they_are_right(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    reader = make_reader(model, tokenizer, system=SYSTEM, template="chat")
    assert reader.separable_head
    assert reader.packed
    openings = [tokenizer.decode(opening.ids) for opening in reader.openings]
    assert openings == [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
        # less the last token: its state predicts the response's first
        "<|im_start|>system\nYou are a small model<|im_end|>\n<|im_start|>assistant",
    ]


def test_a_record_scores_the_same_alone_in_company_and_in_any_order(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    wanted = complexity_of(scored(RECORDS, model, tokenizer))
    alone = [complexity_of(scored([record], model, tokenizer))[0] for record in RECORDS]
    np.testing.assert_allclose(alone, wanted, atol=TOLERANCE)
    for batch_tokens in (1, 100, 100_000):
        backwards = complexity_of(scored(RECORDS[::-1], model, tokenizer, batch_tokens=batch_tokens))
        np.testing.assert_allclose(backwards[::-1], wanted, atol=TOLERANCE)


def test_batches_keep_the_budget_hold_every_text_once_and_little_padding() -> None:
    lengths = sorted((int(length) for length in np.random.default_rng(3).lognormal(4, 0.8, 256)), reverse=True)
    batches = list(_of_like_length(lengths, 1024))
    assert [length for _, batch in batches for length in lengths[batch]] == lengths
    read = [longest * len(lengths[batch]) for longest, batch in batches]
    assert all(tokens <= 1024 or len(lengths[batch]) == 1 for tokens, (_, batch) in zip(read, batches, strict=True))
    assert sum(read) < 1.15 * sum(lengths)


def test_packed_and_prepacked_reading_gives_the_losses_of_the_plain_way(small_model: Path) -> None:
    import torch

    model, tokenizer = load_model(small_model, "float32")
    pairs = encode_pairs(RECORDS, tokenizer, system=SYSTEM, template="chat", max_length=70)
    reader = make_reader(model, tokenizer, system=SYSTEM, template="chat")
    plain = measure_pairs(pairs, replace(reader, packed=False, openings=()), batch_tokens=512)
    assert model.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(measure_pairs(pairs, reader, batch_tokens=512), plain, atol=1e-5)
    prepack_linear_layers(model)
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    np.testing.assert_allclose(measure_pairs(pairs, reader, batch_tokens=512), plain, atol=1e-5)


def test_what_cannot_be_scored_stays_with_its_reason(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    records = [ask("Q", " \n"), ask("long " * 90, "A."), RECORDS[0]]
    table = scored(records, model, tokenizer, max_length=80)
    assert table["id"].to_pylist() == [record.id for record in records]
    assert table["reason"].to_pylist() == [NO_RESPONSE, CUT_OFF, None]
    assert [value is None for value in table["complexity"].to_pylist()] == [True, True, False]
    metrics = summarize(table)
    assert (metrics["records"], metrics["scored"], metrics["unscorable"]) == (3, 1, 2)


def test_a_broken_model_makes_records_unscorable_and_nothing_else(small_model: Path) -> None:
    import torch

    model, tokenizer = load_model(small_model, "float32")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    table = scored(RECORDS[:3], model, tokenizer)
    assert table["reason"].to_pylist() == [NOT_FINITE] * 3
    assert table["complexity"].null_count == 3


def test_plain_text_is_scored_without_a_template(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    table = scored(RECORDS[:4], model, tokenizer, template="none", system="")
    assert table["complexity"].null_count == 0


def test_without_any_first_token_the_response_s_first_is_left_out_of_both_texts(small_model: Path) -> None:
    model, tokenizer = load_model(small_model, "float32")
    with_first = scored(RECORDS[:1], model, tokenizer, template="none", system="")
    tokenizer.bos_token = tokenizer.eos_token = None
    without = scored(RECORDS[:1], model, tokenizer, template="none", system="")
    assert without["response_tokens"].to_pylist()[0] == with_first["response_tokens"].to_pylist()[0] - 1
    assert without["complexity"].null_count == 0


def test_no_records_give_no_rows(loaded: tuple[Any, Any]) -> None:
    assert scored([], *loaded).num_rows == 0


def test_bfloat16_is_near_float32(small_model: Path, loaded: tuple[Any, Any]) -> None:
    half = complexity_of(scored(RECORDS, *load_model(small_model, "bfloat16")))
    np.testing.assert_allclose(half, complexity_of(scored(RECORDS, *loaded)), rtol=0.05)


# --- the store --------------------------------------------------------------------------------------------------------

SETTINGS = ScoreSettings(batch_tokens=512)
MANY = [
    ask(f"Which number is this: {number}?", f"It is {number}, and the next is {number + 1}.") for number in range(20)
]
IDS = [record.id for record in MANY]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ifd, "WINDOW", 8)
    return tmp_path


def shards() -> list[Path]:
    return sorted(Path(".iterit/scores").rglob("*.parquet"))


def mark(shard: Path) -> None:
    """Make the stored losses recognizable: complexity becomes exp(-2) exactly."""
    table = pq.read_table(shard)
    count = len(table)
    pq.write_table(pa.table({"key": table["key"], "conditional": [1.0] * count, "unconditional": [3.0] * count}), shard)


def marked(table: pa.Table) -> list[bool]:
    return [value == math.exp(-2) for value in complexity_of(table)]


def test_a_killed_scoring_goes_on_where_it_was_and_gives_the_same_to_the_last_bit(
    folder: Path, small_model: Path
) -> None:
    undisturbed = score_pool(MANY, IDS, small_model, SETTINGS)
    for shard in shards():
        shard.unlink()

    def killed_in_the_second_window() -> Iterator[Record]:
        yield from MANY[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_pool(killed_in_the_second_window(), IDS, small_model, SETTINGS)
    (first,) = shards()
    assert score_pool(MANY, IDS, small_model, SETTINGS).equals(undisturbed)
    mark(first)
    assert marked(score_pool(MANY, IDS, small_model, SETTINGS)) == [True] * 8 + [False] * 12


def test_more_records_cost_only_themselves(folder: Path, small_model: Path) -> None:
    score_pool(MANY[:10], IDS[:10], small_model, SETTINGS)
    for shard in shards():
        mark(shard)
    grown = [*MANY[15:], *MANY[:15]]
    table = score_pool(grown, IDS, small_model, SETTINGS)
    assert marked(table) == [True] * 10 + [False] * 10
    assert sum(pq.read_metadata(shard).num_rows for shard in shards()) == 20


def test_scores_of_another_model_template_or_length_are_not_taken(
    folder: Path, small_model: Path, tmp_path: Path
) -> None:
    score_pool(MANY[:4], IDS[:4], small_model, SETTINGS)
    for shard in shards():
        mark(shard)
    other = tmp_path / "other" / small_model.name  # the same name, other contents
    shutil.copytree(small_model, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}), encoding="utf-8")
    assert not any(marked(score_pool(MANY[:4], IDS[:4], other, SETTINGS)))
    for changed in ({"system": "Be brief."}, {"template": "none"}, {"max_length": 60}, {"dtype": "bfloat16"}):
        settings = SETTINGS.model_copy(update=changed)
        assert not any(marked(score_pool(MANY[:4], IDS[:4], small_model, settings))), changed
    assert all(marked(score_pool(MANY[:4], IDS[:4], small_model, SETTINGS)))


def test_a_damaged_shard_is_scored_again(folder: Path, small_model: Path) -> None:
    wanted = score_pool(MANY[:4], IDS[:4], small_model, SETTINGS)
    (shard,) = shards()
    shard.write_bytes(shard.read_bytes()[:100])
    assert score_pool(MANY[:4], IDS[:4], small_model, SETTINGS).equals(wanted)
    assert len(open_store(small_model, "float32").find([""])) == 1


def test_rows_come_in_the_order_of_the_candidates(folder: Path, small_model: Path) -> None:
    candidates = [IDS[place] for place in (17, 3, 9)]
    table = score_pool(MANY, candidates, small_model, SETTINGS)
    assert table["id"].to_pylist() == candidates
    with pytest.raises(UserError, match="candidate gone is not in the pool"):
        score_pool(MANY, ["gone"], small_model, SETTINGS)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_a_share_over_the_limit_stops_and_says_what_to_look_at() -> None:
    metrics = {"records": 10, "misaligned": 5, "unscorable": 1, "misaligned_share": 0.6}
    with pytest.raises(UserError, match=r"5 of 10 records are misaligned.*score\.template: none.*score\.system"):
        check_misaligned_share(metrics, ScoreSettings(max_misaligned_share=0.5))
    check_misaligned_share(metrics, ScoreSettings(max_misaligned_share=0.6))


def test_texts_longer_than_the_model_s_positions_are_refused(loaded: tuple[Any, Any]) -> None:
    check_length(loaded[0], 2048)
    with pytest.raises(UserError, match="max_length: 2049 is more than the 2048 positions"):
        check_length(loaded[0], 2049)


def test_a_folder_without_safetensors_is_a_user_s_error(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_model(tmp_path, "float32")
    shutil.copytree(small_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="no model"):
        load_model(tmp_path / "model", "float32")


@pytest.fixture
def stage_folder(folder: Path) -> Path:
    """A folder with what the stage reads: twenty records, all of them candidates."""
    write_records(Path("pool.parquet"), MANY)
    tables.write(Path("candidates.parquet"), pa.table({"id": IDS}), tables.CANDIDATES)
    params = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(params, encoding="utf-8")
    edit_params(folder, {"score": {"max_misaligned_share": 1.0}})
    return folder


def run_stage(folder: Path, model: Path, base: Path, proxy: Path) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "components.score", "--iteration", "1", "--pool", "pool.parquet"),
        *("--model", str(model), "--base-model", str(base), "--proxy-model", str(proxy)),
        *("--candidates", "candidates.parquet", "--scores", "scores.parquet", "--metrics", "metrics.json"),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_two_processes_give_the_table_of_one(stage_folder: Path, small_model: Path) -> None:
    records = [*MANY, *(ask(f"{number}?", f"{number} of many") for number in range(300))]  # of three windows
    write_records(Path("pool.parquet"), records)
    tables.write(Path("candidates.parquet"), pa.table({"id": [one.id for one in records]}), tables.CANDIDATES)
    found = []
    for processes in (1, 2):
        edit_params(stage_folder, {"score": {"processes": processes}})
        done = run_stage(stage_folder, small_model, small_model, small_model)
        assert done.returncode == 0, done.stderr
        assert len(shards()) == 3
        found.append(tables.read(Path("scores.parquet"), tables.SCORES))
        for shard in shards():
            shard.unlink()
    assert found[0]["id"].equals(found[1]["id"])
    np.testing.assert_allclose(complexity_of(found[0]), complexity_of(found[1]), atol=TOLERANCE)


def test_a_worker_s_mistake_is_one_line(stage_folder: Path, small_model: Path) -> None:
    edit_params(stage_folder, {"score": {"processes": 2, "max_length": 4096}})
    done = run_stage(stage_folder, small_model, small_model, small_model)
    assert done.returncode == 2
    message = "error: params.yaml: score.max_length: 4096 is more than the 2048 positions of the model"
    assert done.stderr.splitlines()[-1] == message
    assert not Path("scores.parquet").exists()


def test_the_strategy_says_which_model_scores(stage_folder: Path, small_model: Path, tmp_path: Path) -> None:
    models = [make_small_model(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    means: dict[str, list[float]] = {}
    for strategy in ("iterit", "iterit-static", "superfiltering"):
        edit_params(stage_folder, {"select": {"strategy": strategy}})
        if strategy == "superfiltering":
            edit_params(stage_folder, {"proxy_model": {"kind": "folder", "path": "proxy"}}, replace=True)
        done = run_stage(stage_folder, *models)
        assert done.returncode == 0, done.stderr
        means[strategy] = complexity_of(tables.read(Path("scores.parquet"), tables.SCORES))
    for (strategy, ours), model in zip(means.items(), models, strict=True):
        theirs = complexity_of(score_pool(MANY, IDS, model, ScoreSettings(max_misaligned_share=1.0)))
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, err_msg=strategy)


def test_the_stage_writes_scores_and_metrics_and_the_same_bytes_again(stage_folder: Path, small_model: Path) -> None:
    done = run_stage(stage_folder, small_model, small_model, small_model)
    assert (done.returncode, done.stderr) == (0, "")  # quiet
    assert done.stdout.startswith("score@1: 20 records, mean complexity ")
    scores = tables.read(Path("scores.parquet"), tables.SCORES)
    assert scores["id"].to_pylist() == IDS
    metrics = json.loads(Path("metrics.json").read_text(encoding="utf-8"))
    assert metrics == summarize(scores)
    assert metrics["variant"] == "ifd"
    # a limit that is passed leaves no output behind
    Path("scores.parquet").unlink()
    edit_params(stage_folder, {"score": {"max_misaligned_share": 0.0}})
    done = run_stage(stage_folder, small_model, small_model, small_model)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not Path("scores.parquet").exists()
