"""From records to token ids: the chat template, where the response starts, and truncation.

Two texts are made of a record with prompt x and response y:

    conditional      the chat template over the whole conversation
    unconditional    the chat template over the assistant's message alone (a system message that the template
                     adds by itself stays; a template that refuses to begin with the assistant gets an empty
                     user message before it)

The response starts at the same character of the template whatever the response is, so a marker rendered in its
place finds it: searching for the response itself fails where a template trims white space, or where the response
is a word of the template. A template that treats some responses differently (it moves a thought to the front, say)
is found by comparing the two texts: the response starts where they begin to differ, if that is earlier. The first
response token is the first one that reaches beyond that character, which holds also where the tokenizer merges the
last character of the prompt with the first of the response.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from components.core.errors import UserError
from components.data.records import Message, Record

MARKER = "\x01response\x01"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one text. Positions `start` to the end belong to the response, end-of-turn tokens included."""

    ids: list[int]
    start: int


def with_system(record: Record, system: str) -> tuple[Message, ...]:
    """The record's messages, led by the system message where they have none and `system` is not empty."""
    if not system or record.messages[0].role == "system":
        return record.messages
    return (Message("system", system), *record.messages)


def encode_conditional(
    records: Iterable[Record], tokenizer: Any, *, system: str, template: str = "chat", max_length: int | None = None
) -> list[Encoded]:
    """One text a record: the whole conversation, cut after `max_length` tokens."""
    conversations = [with_system(record, system) for record in records]
    return _encode(conversations, tokenizer, template, max_length)


def encode_unconditional(
    records: Iterable[Record], tokenizer: Any, *, template: str = "chat", max_length: int | None = None
) -> list[Encoded]:
    """One text a record: the response alone, cut after `max_length` tokens."""
    before = () if template == "none" or _begins_with_assistant(tokenizer) else (Message("user", ""),)
    return _encode([(*before, record.messages[-1]) for record in records], tokenizer, template, max_length)


def _begins_with_assistant(tokenizer: Any) -> bool:
    try:
        tokenizer.apply_chat_template([{"role": "assistant", "content": MARKER}], tokenize=False)
    except TemplateError:
        return False
    return True


def encode_prompts(records: Iterable[Record], tokenizer: Any, *, system: str) -> list[list[int]]:
    """Token ids that a response is generated from: everything before it, and the template's opening of it."""
    texts = [_render(with_system(record, system)[:-1], tokenizer, add_generation_prompt=True) for record in records]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def _encode(
    conversations: Sequence[tuple[Message, ...]], tokenizer: Any, template: str, max_length: int | None
) -> list[Encoded]:
    if not conversations:
        return []
    rendered = [_text_and_response_start(messages, tokenizer, template) for messages in conversations]
    # special tokens are the template's business: the tokenizer would put a second one in front
    batch = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    encoded = []
    for ids, offsets, (_, start) in zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True):
        first = next((position for position, (_, end) in enumerate(offsets) if end > start), len(ids))
        ids = ids[:max_length]
        encoded.append(Encoded(ids, min(first, len(ids))))
    return encoded


def _text_and_response_start(messages: tuple[Message, ...], tokenizer: Any, template: str) -> tuple[str, int]:
    *before, response = messages
    marked = (*before, Message(response.role, MARKER))
    if template == "none":
        # a first token for the model to predict the second from
        opening = tokenizer.bos_token or tokenizer.eos_token or ""
        return _plain(opening, messages), len(_plain(opening, marked)) - len(MARKER)
    text, marked_text = _render(messages, tokenizer), _render(marked, tokenizer)
    start = marked_text.rfind(MARKER)  # the last: a prompt may hold the marker, too
    if start < 0:
        raise UserError("the model's chat template leaves the response out; score.template: none scores plain text")
    if not text.startswith(marked_text[:start]):
        pairs = enumerate(zip(text, marked_text, strict=False))
        start = next((place for place, (one, other) in pairs if one != other), len(text))
    return text, start


def _plain(opening: str, messages: tuple[Message, ...]) -> str:
    return opening + "\n\n".join(message.content for message in messages)


def _render(messages: tuple[Message, ...], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"the model's chat template refuses a conversation of ({roles}): {error}; "
            "score.template: none scores plain text, score.system: '' leaves the system message out"
        ) from error
    return text
