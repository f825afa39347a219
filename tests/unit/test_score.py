"""Scores are the formula's, whatever other records are scored at the same time, and nothing is scored twice."""

from __future__ import annotations

import json
import math
import shutil
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
from components.data.records import Message, Record
from components.model.load import load_model, prepack_linear_layers
from components.score import ScoreSummary, check_misaligned_share, score_pool, summarize
from components.scoring import ifd
from components.scoring.ifd import (
    CUT_OFF,
    NO_RESPONSE,
    NOT_FINITE,
    OTHER_TOKENS,
    check_length,
    encode_pairs,
    explain_unscorable,
    score_records,
)
from components.scoring.losses import make_scorer, measure_pairs, split_by_length
from components.scoring.store import open_store
from tests.support.records import ask, numbered

SYSTEM = "You are a helpful assistant."
TOLERANCE = 5e-5  # float32 kernels round differently for different shapes

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
    """The formula, one text at a time, with all logits; the response begins where the rendered prompt ends."""
    import torch

    for record in records:
        chat = [{"role": message.role, "content": message.content} for message in record.messages]
        if chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": SYSTEM})
        prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        response = tokenizer.apply_chat_template(chat[-1:], tokenize=False)
        texts = [
            (tokenizer.apply_chat_template(chat, tokenize=False), len(prompt)),
            (response, response.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")),
        ]
        losses, counts = [], []
        for text, start in texts:
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            first = next(position for position, (_, end) in enumerate(encoded["offset_mapping"]) if end > start)
            ids = torch.tensor([encoded["input_ids"][:max_length]])
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


def assert_equals_plain_loop(table: pa.Table, expected: list[dict[str, float]]) -> None:
    for name in ("response_tokens", "nll_conditional", "nll_unconditional", "complexity"):
        values = [row[name] for row in expected]
        np.testing.assert_allclose(table[name].to_pylist(), values, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("max_length", [512, 60])
def test_the_scores_are_the_formula_s(loaded: tuple[Any, Any], max_length: int) -> None:
    model, tokenizer = loaded
    records = RECORDS if max_length == 512 else [RECORDS[0], RECORDS[6], RECORDS[9]]
    table = scored(records, model, tokenizer, max_length=max_length)
    assert table["id"].to_pylist() == [record.id for record in records]
    assert_equals_plain_loop(table, list(plain_loop(records, model, tokenizer, max_length)))


def test_truncation_shortens_both_texts_alike(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    ((with_prompt, without),) = encode_pairs([RECORDS[6]], tokenizer, system=SYSTEM, template="chat", max_length=70)
    assert len(with_prompt.ids) == 70
    assert with_prompt.scored == without.scored
    assert with_prompt.ids[with_prompt.start :] == without.ids[without.start :]
    assert len(without.ids) < 70
    # here the unconditional text is the longer one, because the template adds a system message to it
    brief = ask("", "text " * 60, Message("system", "S"))
    ((with_prompt, without),) = encode_pairs([brief], tokenizer, system=SYSTEM, template="chat", max_length=70)
    assert len(without.ids) == 70
    assert with_prompt.ids[with_prompt.start :] == without.ids[without.start :]
    assert len(with_prompt.ids) < 70


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
        # tight caps, and a window shorter than the texts, so that ignoring either would change the scores
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
        model.get_output_embeddings().weight.mul_(20)  # so that predictions are far from uniform
    model.eval()
    table = scored(RECORDS, model, tokenizer)
    assert_equals_plain_loop(table, list(plain_loop(RECORDS, model, tokenizer)))
    scorer = make_scorer(model, tokenizer, system=SYSTEM, template="chat")
    assert scorer.separable_head == (kind == "absolute positions")
    assert scorer.packed == (kind == "absolute positions")


def test_a_llama_is_scored_with_all_shortcuts(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    scorer = make_scorer(model, tokenizer, system=SYSTEM, template="chat")
    assert scorer.separable_head
    assert scorer.packed
    assert [tokenizer.decode(prefix.ids) for prefix in scorer.prefixes] == [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
        # without the last token of the header, whose state predicts the first of the response
        "<|im_start|>system\nYou are a small model<|im_end|>\n<|im_start|>assistant",
    ]


def test_a_score_depends_neither_on_other_records_nor_on_their_order(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    together = complexity_of(scored(RECORDS, model, tokenizer))
    separate = [complexity_of(scored([record], model, tokenizer))[0] for record in RECORDS]
    np.testing.assert_allclose(separate, together, atol=TOLERANCE)
    for batch_tokens in (1, 100, 100_000):
        backwards = complexity_of(scored(RECORDS[::-1], model, tokenizer, batch_tokens=batch_tokens))
        np.testing.assert_allclose(backwards[::-1], together, atol=TOLERANCE)


def test_padded_batches_keep_the_budget_and_have_every_text_once_and_little_padding() -> None:
    lengths = sorted((int(length) for length in np.random.default_rng(3).lognormal(4, 0.8, 256)), reverse=True)
    batches = [lengths[part] for part in split_by_length(lengths, 1024)]
    assert [length for batch in batches for length in batch] == lengths
    tokens = [max(batch) * len(batch) for batch in batches]
    assert all(count <= 1024 or len(batch) == 1 for count, batch in zip(tokens, batches, strict=True))
    assert sum(tokens) < 1.15 * sum(lengths)


def test_packed_texts_shared_prefixes_and_prepacked_layers_do_not_change_the_losses(small_model: Path) -> None:
    import torch

    model, tokenizer = load_model(small_model, "float32")
    pairs = encode_pairs(RECORDS, tokenizer, system=SYSTEM, template="chat", max_length=70)
    scorer = make_scorer(model, tokenizer, system=SYSTEM, template="chat")
    plain = measure_pairs(pairs, replace(scorer, packed=False, prefixes=()), batch_tokens=512)
    assert model.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(measure_pairs(pairs, scorer, batch_tokens=512), plain, atol=1e-5)
    prepack_linear_layers(model)
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    np.testing.assert_allclose(measure_pairs(pairs, scorer, batch_tokens=512), plain, atol=1e-5)


def test_an_unscorable_record_stays_in_the_table_with_its_reason(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    records = [ask("Q", " \n"), ask("long " * 90, "A."), RECORDS[0]]
    table = scored(records, model, tokenizer, max_length=80)
    assert table["id"].to_pylist() == [record.id for record in records]
    assert table["reason"].to_pylist() == [NO_RESPONSE, CUT_OFF, None]
    assert [value is None for value in table["complexity"].to_pylist()] == [True, True, False]
    summary = summarize(table)
    assert (summary.records, summary.scored, summary.unscorable) == (3, 1, 2)


ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('take turns') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
# more white space follows a response after a prompt
WIDENS = "{% for message in messages %}{% if loop.first %}{{ '<|im_start|>' }}"
WIDENS += "{% endif %}{{ message['content'] + ('  ' if loop.length > 1 else '') + '<|im_end|>' }}{% endfor %}"


def test_a_record_that_the_template_refuses_is_unscorable_and_the_others_are_scored(small_model: Path) -> None:
    model, tokenizer = load_model(small_model, "float32")
    tokenizer.chat_template = ALTERNATES
    refused = ask("Q", "A", Message("user", "before"))
    table = scored([RECORDS[0], refused, RECORDS[1]], model, tokenizer)
    first, reason, last = table["reason"].to_pylist()
    assert (first, last) == (None, None)
    assert reason.endswith(": take turns")
    assert explain_unscorable(table) == [f"1 unscorable, for example record {refused.id}: {reason}"]
    with pytest.raises(UserError, match="take turns"):
        check_misaligned_share(summarize(table), ScoreSettings(max_misaligned_share=0.1), explain_unscorable(table))


def test_when_the_template_refuses_all_records_no_score_is_computed(small_model: Path) -> None:
    model, tokenizer = load_model(small_model, "float32")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert all(reason.endswith(": never") for reason in scored(RECORDS, model, tokenizer)["reason"].to_pylist())


def test_both_texts_of_a_score_have_the_same_response_tokens_or_the_record_is_unscorable(small_model: Path) -> None:
    model, tokenizer = load_model(small_model, "float32")
    tokenizer.chat_template = WIDENS
    table = scored(RECORDS[:3], model, tokenizer)
    assert table["reason"].to_pylist() == [OTHER_TOKENS] * 3


def test_records_are_unscorable_for_a_model_without_finite_losses(small_model: Path) -> None:
    import torch

    model, tokenizer = load_model(small_model, "float32")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    table = scored(RECORDS[:3], model, tokenizer)
    assert table["reason"].to_pylist() == [NOT_FINITE] * 3
    assert table["complexity"].null_count == 3


def test_plain_text_can_be_scored_without_a_template(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    table = scored(RECORDS[:4], model, tokenizer, template="none", system="")
    assert table["complexity"].null_count == 0


def test_without_a_first_token_the_first_of_the_response_is_left_out_of_both_texts(small_model: Path) -> None:
    model, tokenizer = load_model(small_model, "float32")
    with_first_token = scored(RECORDS[:1], model, tokenizer, template="none", system="")
    tokenizer.bos_token = tokenizer.eos_token = None
    without = scored(RECORDS[:1], model, tokenizer, template="none", system="")
    assert without["response_tokens"].to_pylist()[0] == with_first_token["response_tokens"].to_pylist()[0] - 1
    assert without["complexity"].null_count == 0


def test_no_records_give_no_rows(loaded: tuple[Any, Any]) -> None:
    assert scored([], *loaded).num_rows == 0


def test_scores_in_bfloat16_are_close_to_those_in_float32(small_model: Path, loaded: tuple[Any, Any]) -> None:
    half = complexity_of(scored(RECORDS, *load_model(small_model, "bfloat16")))
    np.testing.assert_allclose(half, complexity_of(scored(RECORDS, *loaded)), rtol=0.05)


# --- the store --------------------------------------------------------------------------------------------------------

SETTINGS = ScoreSettings(batch_tokens=512)
MANY = numbered(20)
IDS = [record.id for record in MANY]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ifd, "WINDOW", 8)
    return tmp_path


def shards() -> list[Path]:
    return sorted(Path(".iterit/scores").rglob("*.parquet"))


def mark(shard: Path) -> None:
    """Replace the stored losses by others, which are recognized by a complexity of exactly exp(-2)."""
    table = pq.read_table(shard)
    count = len(table)
    pq.write_table(pa.table({"key": table["key"], "conditional": [1.0] * count, "unconditional": [3.0] * count}), shard)


def marked(table: pa.Table) -> list[bool]:
    return [value == math.exp(-2) for value in complexity_of(table)]


def test_a_killed_scoring_resumes_where_it_was_and_gives_the_same_scores_to_the_last_bit(
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


def test_when_records_are_added_only_they_are_scored(folder: Path, small_model: Path) -> None:
    score_pool(MANY[:10], IDS[:10], small_model, SETTINGS)
    for shard in shards():
        mark(shard)
    grown = [*MANY[15:], *MANY[:15]]
    table = score_pool(grown, IDS, small_model, SETTINGS)
    assert marked(table) == [True] * 10 + [False] * 10
    assert sum(pq.read_metadata(shard).num_rows for shard in shards()) == 20


def test_stored_losses_of_another_model_template_length_or_dtype_are_not_used(
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
    undamaged = score_pool(MANY[:4], IDS[:4], small_model, SETTINGS)
    (shard,) = shards()
    shard.write_bytes(shard.read_bytes()[:100])
    assert score_pool(MANY[:4], IDS[:4], small_model, SETTINGS).equals(undamaged)
    assert len(open_store(small_model, "float32").find([""])) == 1


def test_rows_are_in_the_order_of_the_candidates(folder: Path, small_model: Path) -> None:
    candidates = [IDS[place] for place in (17, 3, 9)]
    table = score_pool(MANY, candidates, small_model, SETTINGS)
    assert table["id"].to_pylist() == candidates
    with pytest.raises(UserError, match="candidate gone is not in the pool"):
        score_pool(MANY, ["gone"], small_model, SETTINGS)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_too_many_misaligned_records_are_an_error_that_names_the_settings() -> None:
    summary = ScoreSummary(
        variant="ifd",
        records=10,
        scored=9,
        misaligned=5,
        unscorable=1,
        misaligned_share=0.6,
        mean_complexity=1.1,
    )
    with pytest.raises(UserError, match=r"5 of 10 records are misaligned.*score\.template: none.*score\.system"):
        check_misaligned_share(summary, ScoreSettings(max_misaligned_share=0.5))
    check_misaligned_share(summary, ScoreSettings(max_misaligned_share=0.6))


def test_a_max_length_above_the_model_s_positions_is_an_error(loaded: tuple[Any, Any]) -> None:
    check_length(loaded[0], 2048)
    with pytest.raises(UserError, match="max_length: 2049 is more than the 2048 positions"):
        check_length(loaded[0], 2049)


def test_a_folder_without_tokenizer_or_safetensors_is_an_error(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_model(tmp_path, "float32")
    shutil.copytree(small_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"pytorch_model.bin is pickle"):
        load_model(tmp_path / "model", "float32")
