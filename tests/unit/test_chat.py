"""Where the response starts, whatever the template and the tokenizer do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.core.errors import UserError
from components.data.records import Message, Record, make_record
from components.model.chat import MARKER, Encoded, encode_conditional, encode_prompts, encode_unconditional
from components.model.load import load_tokenizer

SYSTEM = "You are a helpful assistant."
TRIMS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TRIMS
USER_FIRST = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}" + TRIMS
MERGES = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
THOUGHT_FIRST = (
    "{% for message in messages %}{% set parts = message['content'].split('</think>') %}{{ message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think>' + (parts[0] if parts | length > 1 else '') + '</think>' }}"
    "{% endif %}{{ parts[-1] + '<|im_end|>' }}{% endfor %}"
)


@pytest.fixture
def tokenizer(small_model: Path) -> Any:
    return load_tokenizer(small_model)


def chat(*turns: str) -> Record:
    roles = ("user", "assistant")
    return make_record("test", [Message(roles[turn % 2], content) for turn, content in enumerate(turns)])


def scored_text(tokenizer: Any, encoded: Encoded) -> str:
    return str(tokenizer.decode(encoded.ids[encoded.start :]))


def conditional(tokenizer: Any, record: Record, **options: Any) -> Encoded:
    return encode_conditional([record], tokenizer, **{"system": SYSTEM, **options})[0]


def unconditional(tokenizer: Any, record: Record, **options: Any) -> Encoded:
    return encode_unconditional([record], tokenizer, **options)[0]


@pytest.mark.parametrize(
    "response", ["Fill the text.", "assistant", "user", "\n", "", "é漢字 🙂", "<|im_end|>", "\x01"]
)
def test_the_response_starts_right_after_the_template_s_opening_of_it(tokenizer: Any, response: str) -> None:
    record = chat("assistant? Fill the text.", response)
    for encoded in (conditional(tokenizer, record), unconditional(tokenizer, record)):
        assert scored_text(tokenizer, encoded) == response + "<|im_end|>\n"


def test_both_texts_are_the_template_over_the_conversation_and_over_the_response(tokenizer: Any) -> None:
    record = chat("What?", "That.")
    assert tokenizer.decode(conditional(tokenizer, record).ids) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nThat.<|im_end|>\n"
    )
    assert tokenizer.decode(unconditional(tokenizer, record).ids) == (
        "<|im_start|>system\nYou are a small model<|im_end|>\n<|im_start|>assistant\nThat.<|im_end|>\n"
    )


def test_a_record_s_own_system_message_stays(tokenizer: Any) -> None:
    record = make_record("test", [Message("system", "Be brief."), Message("user", "Q"), Message("assistant", "A")])
    text = tokenizer.decode(conditional(tokenizer, record).ids)
    assert "Be brief." in text
    assert SYSTEM not in text


def test_only_the_last_answer_of_several_turns_is_the_response(tokenizer: Any) -> None:
    record = chat("one", "same words", "two", "same words")
    encoded = conditional(tokenizer, record)
    assert scored_text(tokenizer, encoded) == "same words<|im_end|>\n"
    assert tokenizer.decode(encoded.ids).count("same words") == 2


def test_a_template_that_trims_loses_nothing_but_the_white_space(tokenizer: Any) -> None:
    tokenizer.chat_template = TRIMS
    for encoded in (
        conditional(tokenizer, chat("Q", "  padded \n")),
        unconditional(tokenizer, chat("Q", "  padded \n")),
    ):
        assert scored_text(tokenizer, encoded) == "padded<|im_end|>\n"


def test_a_token_that_reaches_into_the_response_is_its_first(tokenizer: Any) -> None:
    tokenizer.chat_template = MERGES
    record = chat("Q", "the text")
    encoded = conditional(tokenizer, record)
    assert scored_text(tokenizer, encoded) == " the text<|im_end|>"  # the blank before it is in the same token
    assert scored_text(tokenizer, unconditional(tokenizer, record)) == " the text<|im_end|>"


def test_a_template_that_moves_a_thought_to_the_front_does_not_lose_it(tokenizer: Any) -> None:
    tokenizer.chat_template = THOUGHT_FIRST
    plain, thought = conditional(tokenizer, chat("Q", "yes")), conditional(tokenizer, chat("Q", "hm</think>yes"))
    assert scored_text(tokenizer, plain) == "yes<|im_end|>"
    assert scored_text(tokenizer, thought) == "hm</think>yes<|im_end|>"


def test_a_prompt_that_holds_the_marker_is_not_mistaken_for_the_response(tokenizer: Any) -> None:
    assert scored_text(tokenizer, conditional(tokenizer, chat(f"x {MARKER} y", "A."))) == "A.<|im_end|>\n"


def test_plain_text_has_no_template_but_a_first_token(tokenizer: Any) -> None:
    record = chat("What?", "That.")
    one = conditional(tokenizer, record, template="none", system="")
    other = unconditional(tokenizer, record, template="none")
    assert tokenizer.decode(one.ids) == "<|im_start|>What?\n\nThat."
    assert scored_text(tokenizer, one) == scored_text(tokenizer, other) == "That."
    assert other.start == 1


def test_a_template_that_refuses_the_system_message_is_a_user_s_error_that_says_what_to_set(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(UserError, match=r"\(system, user, assistant\): no system role; .*score.system: ''"):
        conditional(tokenizer, chat("Q", "A"))
    assert scored_text(tokenizer, conditional(tokenizer, chat("Q", "A"), system="")) == "A<|im_end|>\n"


def test_a_template_that_refuses_the_response_alone_gets_an_empty_user_message(tokenizer: Any) -> None:
    tokenizer.chat_template = USER_FIRST
    encoded = unconditional(tokenizer, chat("Q", "A"))
    assert tokenizer.decode(encoded.ids).startswith("<|im_start|>user\n<|im_end|>")
    assert scored_text(tokenizer, encoded) == "A<|im_end|>\n"


def test_a_template_that_drops_the_response_is_a_user_s_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="leaves the response out"):
        conditional(tokenizer, chat("Q", "A"))


def test_truncation_cuts_the_end_and_never_moves_the_start(tokenizer: Any) -> None:
    record = chat("What?", "word " * 40)
    whole = conditional(tokenizer, record)
    cut = conditional(tokenizer, record, max_length=whole.start + 3)
    assert (cut.start, cut.ids) == (whole.start, whole.ids[: whole.start + 3])
    gone = conditional(tokenizer, record, max_length=5)
    assert (gone.start, len(gone.ids)) == (5, 5)


def test_a_response_is_generated_from_everything_before_it(tokenizer: Any) -> None:
    (ids,) = encode_prompts([chat("What?", "That.")], tokenizer, system=SYSTEM)
    assert ids == conditional(tokenizer, chat("What?", "That.")).ids[: len(ids)]
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
