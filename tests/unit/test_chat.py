"""The start of the response is found, whatever the template and the tokenizer do."""

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
def test_the_response_starts_right_after_the_header_of_the_assistant(tokenizer: Any, response: str) -> None:
    record = chat("assistant? Fill the text.", response)
    for encoded in (conditional(tokenizer, record), unconditional(tokenizer, record)):
        assert scored_text(tokenizer, encoded) == response + "<|im_end|>\n"


def test_the_texts_are_the_template_applied_to_the_conversation_and_to_the_response(tokenizer: Any) -> None:
    record = chat("What?", "That.")
    assert tokenizer.decode(conditional(tokenizer, record).ids) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nThat.<|im_end|>\n"
    )
    assert tokenizer.decode(unconditional(tokenizer, record).ids) == (
        "<|im_start|>system\nYou are a small model<|im_end|>\n<|im_start|>assistant\nThat.<|im_end|>\n"
    )


def test_a_system_message_in_the_record_is_kept(tokenizer: Any) -> None:
    record = make_record("test", [Message("system", "Be brief."), Message("user", "Q"), Message("assistant", "A")])
    text = tokenizer.decode(conditional(tokenizer, record).ids)
    assert "Be brief." in text
    assert SYSTEM not in text


def test_only_the_last_message_of_several_turns_is_the_response(tokenizer: Any) -> None:
    record = chat("one", "same words", "two", "same words")
    encoded = conditional(tokenizer, record)
    assert scored_text(tokenizer, encoded) == "same words<|im_end|>\n"
    assert tokenizer.decode(encoded.ids).count("same words") == 2


def test_a_template_that_trims_loses_only_white_space(tokenizer: Any) -> None:
    tokenizer.chat_template = TRIMS
    for encoded in (
        conditional(tokenizer, chat("Q", "  padded \n")),
        unconditional(tokenizer, chat("Q", "  padded \n")),
    ):
        assert scored_text(tokenizer, encoded) == "padded<|im_end|>\n"


def test_a_token_that_reaches_into_the_response_is_its_first_token(tokenizer: Any) -> None:
    tokenizer.chat_template = MERGES
    record = chat("Q", "the text")
    encoded = conditional(tokenizer, record)
    assert scored_text(tokenizer, encoded) == " the text<|im_end|>"  # the space before it belongs to the same token
    assert scored_text(tokenizer, unconditional(tokenizer, record)) == " the text<|im_end|>"


def test_a_template_that_moves_a_thought_to_the_front_does_not_lose_it(tokenizer: Any) -> None:
    tokenizer.chat_template = THOUGHT_FIRST
    plain, thought = conditional(tokenizer, chat("Q", "yes")), conditional(tokenizer, chat("Q", "hm</think>yes"))
    assert scored_text(tokenizer, plain) == "yes<|im_end|>"
    assert scored_text(tokenizer, thought) == "hm</think>yes<|im_end|>"


def test_a_marker_in_the_prompt_is_not_taken_for_the_response(tokenizer: Any) -> None:
    assert scored_text(tokenizer, conditional(tokenizer, chat(f"x {MARKER} y", "A."))) == "A.<|im_end|>\n"


def test_plain_text_has_a_first_token_and_no_template(tokenizer: Any) -> None:
    record = chat("What?", "That.")
    with_prompt = conditional(tokenizer, record, template="none", system="")
    without_prompt = unconditional(tokenizer, record, template="none")
    assert tokenizer.decode(with_prompt.ids) == "<|im_start|>What?\n\nThat."
    assert scored_text(tokenizer, with_prompt) == scored_text(tokenizer, without_prompt) == "That."
    assert without_prompt.start == 1


def test_a_template_that_refuses_the_system_message_is_an_error_that_names_the_setting(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(UserError, match=r"\(system, user, assistant\): no system role; .*score.system: ''"):
        conditional(tokenizer, chat("Q", "A"))
    assert scored_text(tokenizer, conditional(tokenizer, chat("Q", "A"), system="")) == "A<|im_end|>\n"


def test_a_template_that_must_begin_with_the_user_gets_an_empty_user_message(tokenizer: Any) -> None:
    tokenizer.chat_template = USER_FIRST
    encoded = unconditional(tokenizer, chat("Q", "A"))
    assert tokenizer.decode(encoded.ids).startswith("<|im_start|>user\n<|im_end|>")
    assert scored_text(tokenizer, encoded) == "A<|im_end|>\n"


def test_a_template_that_leaves_the_response_out_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="leaves the response out"):
        conditional(tokenizer, chat("Q", "A"))


def test_truncation_cuts_the_end_and_does_not_move_the_start(tokenizer: Any) -> None:
    record = chat("What?", "word " * 40)
    whole = conditional(tokenizer, record)
    cut = conditional(tokenizer, record, max_length=whole.start + 3)
    assert (cut.start, cut.ids) == (whole.start, whole.ids[: whole.start + 3])
    gone = conditional(tokenizer, record, max_length=5)
    assert (gone.start, len(gone.ids)) == (5, 5)


def test_a_response_is_generated_from_everything_that_precedes_it(tokenizer: Any) -> None:
    (ids,) = encode_prompts([chat("What?", "That.")], tokenizer, system=SYSTEM)
    assert ids == conditional(tokenizer, chat("What?", "That.")).ids[: len(ids)]
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
