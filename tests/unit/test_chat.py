"""The start of the response is found, whatever the template and the tokenizer do."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import UserError
from components.data.records import Message, Record, make_record
from components.model.chat import (
    CHANGED,
    LEFT_OUT,
    MARKER,
    Encoded,
    encode_conditional,
    encode_prompts,
    encode_unconditional,
    pin_date,
)
from components.model.load import load_tokenizer

SYSTEM = "You are a helpful assistant."
TRIMS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TRIMS
USER_FIRST = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}" + TRIMS
ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('take turns') }}{% endif %}{% endfor %}" + TRIMS
)
CUTS_THOUGHTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
)
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


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_user_message(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    own = make_record("test", [Message("system", "Be brief."), Message("user", "Q"), Message("assistant", "A")])
    for record, system in ((own, "Be brief."), (chat("Q", "A"), SYSTEM)):
        encoded = conditional(tokenizer, record)
        assert tokenizer.decode(encoded.ids) == (
            f"<|im_start|>user\n{system}\n\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        )
        assert scored_text(tokenizer, encoded) == "A<|im_end|>\n"
        (prompt,) = encode_prompts([record], tokenizer, system=SYSTEM)
        assert prompt == encoded.ids[: encoded.start]
    assert scored_text(tokenizer, conditional(tokenizer, chat("Q", "A"), system="")) == "A<|im_end|>\n"


def test_a_record_that_the_template_refuses_has_its_reason_and_the_others_have_tokens(tokenizer: Any) -> None:
    tokenizer.chat_template = ALTERNATES
    twice = make_record("test", [Message("user", "Q"), Message("user", "Q?"), Message("assistant", "A")])
    first, second, third = encode_conditional([chat("Q", "A"), twice, chat("R", "B")], tokenizer, system="")
    assert second.problem == "the chat template refuses a conversation of (user, user, assistant): take turns"
    assert (second.ids, first.problem, third.problem) == ([], None, None)
    assert [scored_text(tokenizer, text) for text in (first, third)] == ["A<|im_end|>\n", "B<|im_end|>\n"]
    assert [ids is None for ids in encode_prompts([chat("Q", "A"), twice], tokenizer, system="")] == [False, True]


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content + 1 }}", "{{ messages[0].content.nothing.more }}", "{% if %}", "{{ 1 // 0 }}"],
)
def test_whatever_a_template_fails_with_is_the_record_s_reason(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    problem = conditional(tokenizer, chat("Q", "A")).problem
    assert problem is not None
    assert problem.startswith("the chat template refuses a conversation of (system, user, assistant): ")
    assert len(problem.splitlines()) == 1


def test_a_template_that_drops_a_part_of_a_response_is_noticed(tokenizer: Any) -> None:
    tokenizer.chat_template = CUTS_THOUGHTS
    kept, cut = encode_conditional([chat("Q", "yes"), chat("Q", "<think>hm</think>yes")], tokenizer, system="")
    assert (kept.problem, cut.problem) == (None, CHANGED)


DATED = "  {% set today = strftime_now('%d %b %Y, %A %-d %H:%M') %}\n{{ today }} " + TRIMS


def test_a_template_that_reads_the_clock_is_refused_unless_its_date_is_pinned(tokenizer: Any) -> None:
    tokenizer.chat_template = DATED
    with pytest.raises(UserError, match=r"params.yaml: score.template_date: missing"):
        conditional(tokenizer, chat("Q", "A"))
    pin_date(tokenizer, "2024-07-06")
    pin_date(tokenizer, "2024-07-06")  # has no further effect
    text = tokenizer.decode(conditional(tokenizer, chat("Q", "A"), system="").ids)
    assert text == "06 Jul 2024, Saturday 6 00:00 <|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


def test_a_pinned_template_has_the_bytes_of_the_template_on_that_day(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "Q"}]
    for template in (DATED, "\n" + DATED, "{%- if strftime_now is defined %}\n" + DATED + "{% endif %}\n"):
        tokenizer.chat_template = template
        now = datetime.now()
        expected = tokenizer.apply_chat_template(turns, tokenize=False)
        pin_date(tokenizer, now.date().isoformat())
        pinned = tokenizer.apply_chat_template(turns, tokenize=False)
        assert re.sub(r"\d\d:\d\d", "", pinned) == re.sub(r"\d\d:\d\d", "", expected), template


def test_of_several_named_templates_the_default_is_used(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": TRIMS, "tool_use": "{{ raise_exception('not this one') }}"}
    assert scored_text(tokenizer, conditional(tokenizer, chat("Q", "A"))) == "A<|im_end|>\n"
    tokenizer.chat_template = {"default": DATED, "tool_use": ""}
    with pytest.raises(UserError, match=r"score.template_date"):
        conditional(tokenizer, chat("Q", "A"))


def test_a_template_that_must_begin_with_the_user_gets_an_empty_user_message(tokenizer: Any) -> None:
    tokenizer.chat_template = USER_FIRST
    encoded = unconditional(tokenizer, chat("Q", "A"))
    assert tokenizer.decode(encoded.ids).startswith("<|im_start|>user\n<|im_end|>")
    assert scored_text(tokenizer, encoded) == "A<|im_end|>\n"


def test_a_template_that_leaves_the_response_out_is_noticed(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert conditional(tokenizer, chat("Q", "A")).problem == LEFT_OUT


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
    (plain,) = encode_prompts([chat("What?", "That.")], tokenizer, system=SYSTEM, template="none")
    encoded = conditional(tokenizer, chat("What?", "That."), template="none")
    assert plain == encoded.ids[: encoded.start]
