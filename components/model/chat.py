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
    """Token ids of a text. Positions from `start` to the end belong to the response, end-of-turn tokens included."""

    ids: list[int]
    start: int


def with_system(record: Record, system: str) -> tuple[Message, ...]:
    """The record's messages, preceded by a system message where they have none and `system` is not empty."""
    if not system or record.messages[0].role == "system":
        return record.messages
    return (Message("system", system), *record.messages)


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
    before = () if template == "none" or _may_begin_with_assistant(tokenizer) else (Message("user", ""),)
    return _encode([(*before, record.messages[-1]) for record in records], tokenizer, template, max_length)


def _may_begin_with_assistant(tokenizer: Any) -> bool:
    try:
        tokenizer.apply_chat_template([{"role": "assistant", "content": MARKER}], tokenize=False)
    except TemplateError:
        return False
    return True


def encode_prompts(records: Iterable[Record], tokenizer: Any, *, system: str) -> list[list[int]]:
    """Token ids to generate each response from: the conversation before it, and the header of the assistant's turn."""
    texts = [_render(with_system(record, system)[:-1], tokenizer, add_generation_prompt=True) for record in records]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many leading characters or tokens two sequences share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))


def _encode(
    conversations: Sequence[tuple[Message, ...]], tokenizer: Any, template: str, max_length: int | None
) -> list[Encoded]:
    if not conversations:
        return []
    rendered = [_text_and_response_start(messages, tokenizer, template) for messages in conversations]
    # the template writes the special tokens; the tokenizer would put a second one in front
    batch = tokenizer([text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True)
    encoded = []
    for ids, offsets, (_, start) in zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True):
        first = next((position for position, (_, end) in enumerate(offsets) if end > start), len(ids))
        ids = ids[:max_length]
        encoded.append(Encoded(ids, min(first, len(ids))))
    return encoded


def _text_and_response_start(messages: tuple[Message, ...], tokenizer: Any, template: str) -> tuple[str, int]:
    """The rendered conversation, and the character that its response starts at."""
    *before, response = messages
    marked = (*before, Message(response.role, MARKER))
    if template == "none":
        # a first token, so that the model can predict the second
        first_token = tokenizer.bos_token or tokenizer.eos_token or ""
        return _render_plain(first_token, messages), len(_render_plain(first_token, marked)) - len(MARKER)
    text, marked_text = _render(messages, tokenizer), _render(marked, tokenizer)
    start = marked_text.rfind(MARKER)  # the last one: a prompt may contain the marker, too
    if start < 0:
        raise UserError("the model's chat template leaves the response out; score.template: none scores plain text")
    if text.startswith(marked_text[:start]):
        return text, start
    return text, common_prefix_length(text, marked_text)


def _render_plain(first_token: str, messages: tuple[Message, ...]) -> str:
    return first_token + "\n\n".join(message.content for message in messages)


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
