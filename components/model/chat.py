"""From records to token ids: the chat template, the start of the response, and truncation.

Two texts are made from a record with prompt x and response y:

    conditional      the chat template applied to the whole conversation
    unconditional    the chat template applied to the assistant's message alone (a system message that the template
                     adds by itself stays; a template that refuses to begin with the assistant gets an empty
                     user message before it)

The response starts at the same character of the template whatever it is, so a marker rendered in its place shows where.
Searching for the response itself fails where a template trims white space, or where the response is also a word of the
template. A template may treat some responses differently, and move a thought to the front, say: then the two renderings
differ before the marker, and the response starts where they begin to differ. The first response token is the first one
that reaches beyond that character, which also holds where the tokenizer merges the last character of the prompt with
the first of the response.

A record that the template refuses, or whose response it does not render in full, has a `problem` instead of token ids.
A template that refuses every system message gets it at the beginning of the first user message.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.core.errors import UserError, first_line, printable
from components.core.paths import PARAMS
from components.data.records import Message, Record

MARKER = "\x01response\x01"
PINNED = "{% macro strftime_now(format) %}"
DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVDFTRe"  # of strftime
LONGEST_REASON = 200  # characters of a template's error

CHANGED = "the chat template drops or changes a part of the response"
LEFT_OUT = "the chat template leaves the response out"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text. Positions from `start` to the end belong to the response, end-of-turn tokens included."""

    ids: list[int]
    start: int
    problem: str | None = None
    """Why there are no token ids."""


class _RefusedError(Exception):
    """Why a record cannot be rendered."""


def with_system(record: Record, system: str) -> tuple[Message, ...]:
    """The record's messages, preceded by a system message where they have none and `system` is not empty."""
    if not system or record.messages[0].role == "system":
        return record.messages
    return (Message("system", system), *record.messages)


def pin_date(tokenizer: Any, date: str | None) -> None:
    """Let the chat template read `date` (YYYY-MM-DD, midnight UTC) from `strftime_now` instead of the clock."""
    if date is None or not tokenizer.chat_template:
        return
    template = tokenizer.get_chat_template()
    if "strftime_now" not in template or template.startswith(PINNED):
        return
    moment = datetime.fromisoformat(date).replace(tzinfo=UTC)
    codes = [f"%{flag}{letter}" for letter in DIRECTIVES for flag in ("", "-")]
    replaced = "".join(f" | replace({code!r}, {moment.strftime(code)!r})" for code in codes)
    # a line of its own: jinja removes the newline after a block, and the template begins as it did
    tokenizer.chat_template = f"{PINNED}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def encode_conditional(
    records: Iterable[Record], tokenizer: Any, *, system: str, template: str = "chat", max_length: int | None = None
) -> list[Encoded]:
    """The whole conversation of each record, cut after `max_length` tokens."""
    conversations = [with_system(record, system) for record in records]
    return _encode(conversations, tokenizer, template, max_length)


def encode_unconditional(
    records: Iterable[Record], tokenizer: Any, *, template: str = "chat", max_length: int | None = None
) -> list[Encoded]:
    """The response alone of each record, cut after `max_length` tokens."""
    before = () if template == "none" or _accepts(tokenizer, "assistant") else (Message("user", ""),)
    return _encode([(*before, record.messages[-1]) for record in records], tokenizer, template, max_length)


def encode_prompts(
    records: Iterable[Record], tokenizer: Any, *, system: str, template: str = "chat"
) -> list[list[int] | None]:
    """Token ids to generate each response from: the conversation before it, and the header of the assistant's turn.

    None for a record that the template refuses.
    """
    prompts = [with_system(record, system)[:-1] for record in records]
    if template == "none":
        return [_tokenize(tokenizer, _first_token(tokenizer) + _plain_prompt(messages)) or None for messages in prompts]
    merges = _refuses_system(tokenizer)
    ids: list[list[int] | None] = []
    for messages in prompts:
        try:
            text = _render(_merge_system(messages) if merges else messages, tokenizer, add_generation_prompt=True)
            ids.append(_tokenize(tokenizer, text) or None)
        except _RefusedError:
            ids.append(None)
    return ids


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many leading characters or tokens two sequences share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))


def _encode(
    conversations: Sequence[tuple[Message, ...]], tokenizer: Any, template: str, max_length: int | None
) -> list[Encoded]:
    if template == "none":
        return [_encode_plain(messages, tokenizer, max_length) for messages in conversations]
    if not conversations:
        return []
    merges = any(messages[0].role == "system" for messages in conversations) and _refuses_system(tokenizer)
    rendered: list[tuple[str, int] | str] = []
    for messages in conversations:
        try:
            rendered.append(_text_and_response_start(_merge_system(messages) if merges else messages, tokenizer))
        except _RefusedError as refused:
            rendered.append(str(refused))
    # the template writes the special tokens; the tokenizer would put a second one in front
    texts = ["" if isinstance(item, str) else item[0] for item in rendered]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    encoded = []
    for ids, offsets, item in zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True):
        if isinstance(item, str):
            encoded.append(Encoded([], 0, item))
            continue
        first = next((position for position, (_, end) in enumerate(offsets) if end > item[1]), len(ids))
        ids = ids[:max_length]
        encoded.append(Encoded(ids, min(first, len(ids))))
    return encoded


def _encode_plain(messages: tuple[Message, ...], tokenizer: Any, max_length: int | None) -> Encoded:
    """The contents alone. The response is tokenized by itself, so that its tokens are the same after any prompt."""
    before = _tokenize(tokenizer, _first_token(tokenizer) + _plain_prompt(messages[:-1]))
    ids = [*before, *_tokenize(tokenizer, messages[-1].content)][:max_length]
    return Encoded(ids, min(len(before), len(ids)))


def _first_token(tokenizer: Any) -> str:
    """A token to begin plain text with, so that the model can predict the second."""
    return tokenizer.bos_token or tokenizer.eos_token or ""


def _plain_prompt(messages: tuple[Message, ...]) -> str:
    return "".join(f"{message.content}\n\n" for message in messages)


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _text_and_response_start(messages: tuple[Message, ...], tokenizer: Any) -> tuple[str, int]:
    """The rendered conversation, and the character that its response starts at. Raises _RefusedError."""
    *before, response = messages
    text = _render(messages, tokenizer)
    marked_text = _render((*before, Message(response.role, MARKER)), tokenizer)
    start = marked_text.rfind(MARKER)  # the last one: a prompt may contain the marker, too
    if start < 0:
        raise _RefusedError(LEFT_OUT)
    expected = "".join(response.content.split())  # templates trim, and put white space around thoughts
    if text.startswith(marked_text[:start]):
        if expected not in "".join(text[start:].split()):
            raise _RefusedError(CHANGED)
        return text, start
    start = common_prefix_length(text, marked_text)
    # a thought's opening tag may be a part of the response and of the template alike
    if expected not in "".join(text[max(0, start - len(response.content)) :].split()):
        raise _RefusedError(CHANGED)
    return text, start


def _accepts(tokenizer: Any, *roles: str) -> bool:
    """Whether the chat template renders a conversation of these roles."""
    try:
        _render(tuple(Message(role, MARKER) for role in roles), tokenizer)
    except _RefusedError:
        return False
    return True


def _refuses_system(tokenizer: Any) -> bool:
    """Whether the chat template refuses a system message and accepts the same conversation without it."""
    turns = ("user", "assistant")
    refuses = not _accepts(tokenizer, "system", *turns) and _accepts(tokenizer, *turns)
    if refuses:
        _say_once("the chat template refuses system messages: each is put at the beginning of the first user message")
    return refuses


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _merge_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation with its system message at the beginning of the first user message."""
    if messages[0].role != "system":
        return messages
    system, *rest = messages
    if not rest or rest[0].role != "user":
        return (Message("user", system.content), *rest)
    return (Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:])


def _render(messages: tuple[Message, ...], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    """The conversation as the chat template writes it. Raises _RefusedError, UserError for a template with a clock."""
    _check_clock(tokenizer)
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is a program of somebody else: adding a number to a text is a TypeError
        roles = ", ".join(message.role for message in messages)
        reason = printable(first_line(error))[:LONGEST_REASON]
        raise _RefusedError(f"the chat template refuses a conversation of ({roles}): {reason}") from error
    return text


def _check_clock(tokenizer: Any) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if isinstance(template, str) and "strftime_now" in template and not template.startswith(PINNED):
        raise UserError(
            f"{PARAMS}: score.template_date: missing: the model's chat template writes today's date (strftime_now), so "
            'every day would give other scores; pin it, for example score.template_date: "2024-07-26"'
        )
