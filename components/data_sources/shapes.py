r"""Record shapes: converts the raw values of a source to conversations.

    shape      keys                                    prompt
    Alpaca     instruction, input, output              instruction, then "\nInput: " + input unless the input is blank
    Dolly      instruction, context, response          the same with context
    ShareGPT   conversations: [{from, value}, ...]     the turns before the last response
    OpenAI     messages: [{role, content}, ...]        the turns before the last response
    columns    named in the source's `columns`         the prompt column, and the input column as in Alpaca

A conversation ends with the last message of the assistant; user messages after it are cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.core.settings.ingest import Columns
from components.data.records import ROLES, Message

Messages = list[Message]


# names of the three roles in ShareGPT and OpenAI exports
SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


class BadRecordError(ValueError):
    """The reason why a value makes no record.

    `reason` and `detail` are those of tables.REJECTED. `record_id` is set where the value is a conversation that
    breaks a limit.
    """

    def __init__(self, reason: str, detail: str, record_id: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.record_id = record_id


def recognize(value: dict[str, Any]) -> Callable[[dict[str, Any]], Messages] | None:
    """The conversion for the shape that the keys of the value indicate; None for an unknown shape."""
    keys = set(value)
    if "messages" in keys:
        return _from_messages
    if "conversations" in keys:
        return _from_conversations
    if {"instruction", "output"} <= keys:
        return lambda row: from_columns(row, Columns(prompt="instruction", response="output", input="input"))
    if {"instruction", "response"} <= keys:
        return lambda row: from_columns(row, Columns(prompt="instruction", response="response", input="context"))
    return None


def from_columns(row: dict[str, Any], columns: Columns) -> Messages:
    """The conversation in the named columns of a row. Raises BadRecordError: not_text."""
    prompt = _text(row.get(columns.prompt), columns.prompt)
    input_text = _text(row.get(columns.input), columns.input) if columns.input else ""
    messages = []
    if columns.system and row.get(columns.system):
        messages.append(Message("system", _text(row[columns.system], columns.system)))
    messages.append(Message("user", f"{prompt}\nInput: {input_text}" if input_text.strip() else prompt))
    messages.append(Message("assistant", _text(row.get(columns.response), columns.response)))
    return messages


def finish(messages: Messages) -> tuple[Messages, int]:
    """The conversation up to its last response, and the number of messages that followed and are cut off.

    Raises BadRecordError: no_response, no_prompt.
    """
    responses = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not responses or not messages[responses[-1]].content.strip():
        raise BadRecordError("no_response", "the last response is empty" if responses else "no assistant message")
    kept = messages[: responses[-1] + 1]
    if not any(message.role == "user" and message.content.strip() for message in kept):
        raise BadRecordError("no_prompt", "nothing from the user before the response")
    return kept, len(messages) - len(kept)


def _from_messages(row: dict[str, Any]) -> Messages:
    return [_message(turn, "role", "content") for turn in _turns(row["messages"], "messages")]


def _from_conversations(row: dict[str, Any]) -> Messages:
    turns = _turns(row["conversations"], "conversations")
    return [_message(turn, *(("from", "value") if "from" in turn else ("role", "content"))) for turn in turns]


def _turns(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRecordError("unknown_shape", f"{key} is no list of objects")
    return value


def _message(turn: dict[str, Any], speaker_key: str, text_key: str) -> Message:
    speaker = turn.get(speaker_key)
    role = SPEAKERS.get(str(speaker).lower())
    if role not in ROLES:
        raise BadRecordError("unknown_shape", f"{speaker_key} {speaker!r:.40} is none of {', '.join(SPEAKERS)}")
    return Message(role, _text(turn.get(text_key), text_key))


def _text(value: Any, key: str) -> str:
    """The text of a value: a string itself, the joined parts of OpenAI's list of text parts, "" for null.

    Raises BadRecordError: not_text.
    """
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        parts = [part["text"] for part in value if part.get("text") is not None]
        value = "".join(parts) if all(isinstance(part, str) for part in parts) else parts
    if not isinstance(value, str):
        raise BadRecordError("not_text", f"{key} is {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecordError("not_text", f"{key} holds half of a surrogate pair") from None
    return value
