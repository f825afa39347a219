r"""Record shapes: converts the raw values of a source to conversations.

    shape      keys                                     prompt
    Alpaca     instruction, input, output               instruction, then "\nInput: " + input unless the input is blank
    Dolly      instruction, context, response           the same with context
    questions  question, answer or response, context    the same with the question
    TRL        prompt, completion or response           the prompt; either may be a list of messages
    ShareGPT   conversations: [{from, value}, ...]      the turns before the last response
    OpenAI     messages: [{role, content}, ...]         the turns before the last response
    columns    named in the source's `columns`          the prompt column, and the input column as in Alpaca

`system` and `history` ([[user, assistant], ...]) beside any of them come first. A conversation ends with the last
message of the assistant that is to be trained (`weight`, `train` and `loss` may say that one is not); what follows is
cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from components.core.settings.ingest import Columns
from components.data.records import ROLES, Message

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

CONVERSATIONS = ("messages", "conversations")
ALSO_CONVERSATIONS = ("conversation", "dialogue", "dialog", "items")  # where the list is one of turns
SPEAKER_KEYS, TEXT_KEYS = ("from", "role", "speaker"), ("value", "content", "text")

PAIRS = (  # prompt, response, input
    Columns(prompt="instruction", response="output", input="input"),
    Columns(prompt="instruction", response="response", input="context"),
    Columns(prompt="prompt", response="completion"),
    Columns(prompt="prompt", response="response"),
    Columns(prompt="question", response="answer", input="context"),
    Columns(prompt="question", response="response", input="context"),
)
SYSTEM = ("system", "system_prompt")
TRAINED = ("weight", "train", "loss")  # of a message: 0 or false where it is not to be trained
RECORD_TRAINED = ("weight", "train", "label")  # of a record; TRL's label is false for a completion nobody wants
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
TOOLS = ("tools", "functions")  # of a record: what the messages could have called
NO_TOOLS: tuple[Any, ...] = (None, [], "", "[]")
KEYS = {
    *CONVERSATIONS,
    *ALSO_CONVERSATIONS,
    *SYSTEM,
    *RECORD_TRAINED,
    *TOOLS,
    "history",
    *(key for pair in PAIRS for key in (pair.prompt, pair.response, pair.input) if key),
}
KNOWN = (
    "instruction/input/output, instruction/context/response, question/answer, prompt/completion, "
    "conversations and messages"
)
TREE = ({"message_tree_id"}, {"message_id", "parent_id"}, {"replies"})  # keys of OASST's exports
PREFERENCE = {"chosen", "rejected"}
# parts of names, the likeliest first, for the columns that an error proposes
LIKE_PROMPT = ("prompt", "question", "query", "instruction", "input", "user", "problem", "source", "title")
LIKE_RESPONSE = ("response", "answer", "output", "completion", "target", "reply", "solution", "assistant", "summary")
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as the source has it."""

    role: str
    content: str
    trained: bool = True
    """False where the source marks the message as not to be trained."""
    reasoning: bool = False
    """Whether the source holds reasoning beside the content."""


Turns = list[Turn]


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


def recognize(value: dict[str, Any]) -> Callable[[dict[str, Any]], Turns] | None:
    """The conversion for the shape that the keys of the value indicate; None for an unknown shape."""
    for key in CONVERSATIONS:
        if key in value:
            return partial(_from_turns, key=key)
    for pair in PAIRS:
        if pair.prompt in value and pair.response in value:
            return partial(_from_pair, pair=pair)
    for key in ALSO_CONVERSATIONS:
        if _is_conversation(value.get(key)):
            return partial(_from_turns, key=key)
    return None


def is_record(value: dict[str, Any], columns: Columns | None) -> bool:
    """Whether the value has the source's columns, or a known shape."""
    if columns is not None:
        return columns.prompt in value and columns.response in value
    return recognize(value) is not None


def has_known_names(names: Iterable[str], columns: Columns | None) -> bool:
    """Whether the columns of a table can make records, judged by their names."""
    value = dict.fromkeys(names)
    return is_record(value, columns) or (columns is None and not value.keys().isdisjoint(ALSO_CONVERSATIONS))


def keys_read(columns: Columns | None) -> set[str]:
    """The keys of a value that its record is made of."""
    if columns is None:
        return KEYS
    return {key for key in (columns.prompt, columns.response, columns.input, columns.system) if key}


def from_columns(row: dict[str, Any], columns: Columns) -> Turns:
    """The conversation in the named columns of a row. Raises BadRecordError: not_text."""
    prompt = _text(row.get(columns.prompt), columns.prompt)
    input_text = _text(row.get(columns.input), columns.input) if columns.input else ""
    messages = []
    if columns.system and row.get(columns.system):
        messages.append(Turn("system", _text(row[columns.system], columns.system)))
    messages.append(Turn("user", f"{prompt}\nInput: {input_text}" if input_text.strip() else prompt))
    messages.append(Turn("assistant", _text(row.get(columns.response), columns.response)))
    return messages


def finish(turns: Turns) -> tuple[list[Message], int]:
    """The conversation up to its last response, and the number of messages that followed and are cut off.

    Raises BadRecordError: no_response, no_prompt, not_to_be_trained, reasoning.
    """
    responses = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    trained = [index for index in responses if turns[index].trained]
    if responses and not trained:
        raise BadRecordError("not_to_be_trained", "every response is marked so")
    if not responses or not turns[trained[-1]].content.strip():
        raise BadRecordError("no_response", "the last response is empty" if responses else "no assistant message")
    kept = turns[: trained[-1] + 1]
    if any(turn.role == "assistant" and not turn.content.strip() for turn in kept):
        raise BadRecordError("no_response", "an earlier response is empty")
    if not any(turn.role == "user" and turn.content.strip() for turn in kept):
        raise BadRecordError("no_prompt", "nothing from the user before the response")
    if kept[-1].reasoning:
        raise BadRecordError("reasoning", "the response has reasoning beside it; move it into the content or remove it")
    return [Message(turn.role, turn.content) for turn in kept], len(turns) - len(kept)


def describe_unknown(value: dict[str, Any]) -> str:
    """What the keys of a value of unknown shape are, and what would be right."""
    keys = set(value)
    shown = f"keys {', '.join(map(repr, list(value)[:8]))}"
    if any(tree <= keys for tree in TREE):
        return f"{shown}: messages of a tree (OASST); write each path through it as a conversation under 'messages'"
    if keys >= PREFERENCE:
        return f"{shown}: a preference pair; write the chosen response alone, as prompt/completion or messages"
    return f"{shown}; known are {KNOWN}; for anything else name the columns"


def propose_columns(value: dict[str, Any]) -> str | None:
    """The line of YAML that would name the columns of the value; None where it has no two columns of text."""
    texts = [key for key, content in value.items() if isinstance(content, str)]
    if len(texts) < 2 or any(tree <= set(value) for tree in TREE):
        return None
    response = _likeliest(texts, LIKE_RESPONSE) or texts[-1]
    others = [key for key in texts if key != response]
    prompt = _likeliest(others, LIKE_PROMPT) or others[0]
    return f"columns: {{prompt: {_yaml(prompt)}, response: {_yaml(response)}}}"


def _yaml(text: str) -> str:
    return text if text.isidentifier() and text.lower() not in YAML_WORDS else json.dumps(text)


def _likeliest(keys: Iterable[str], parts: Iterable[str]) -> str | None:
    return next((key for part in parts for key in keys if part in key.lower()), None)


def _from_turns(row: dict[str, Any], key: str) -> Turns:
    turns = row[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecordError("unknown_shape", f"{key} is no list of objects")
    return _beside(row, [_turn(turn) for turn in turns])


def _from_pair(row: dict[str, Any], pair: Columns) -> Turns:
    prompt, response = row[pair.prompt], row[pair.response]
    if not (_is_conversation(prompt) or _is_conversation(response)):
        return _beside(row, from_columns(row, pair))
    before = map(_turn, prompt) if _is_conversation(prompt) else [Turn("user", _text(prompt, pair.prompt))]
    if _is_conversation(response):
        return _beside(row, [*before, *map(_turn, response)])
    return _beside(row, [*before, Turn("assistant", _text(response, pair.response))])


def _is_conversation(value: Any) -> bool:
    """Whether the value is a list of turns."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in SPEAKER_KEYS) for turn in value)
    )


def _beside(row: dict[str, Any], turns: Turns) -> Turns:
    """The turns after the system message and the history that stand beside them. Raises BadRecordError."""
    if any(_is_no(row.get(key)) for key in RECORD_TRAINED if key != "label" or "completion" in row):
        raise BadRecordError("not_to_be_trained", "the record is marked so")
    if any(row.get(key) not in NO_TOOLS for key in TOOLS):
        raise BadRecordError("tool_calls", "the record has tools, which would be missing from its prompt")
    history = _history(row.get("history"))
    system = next((_text(row[key], key) for key in SYSTEM if row.get(key)), "")
    if system.strip() and not any(turn.role == "system" for turn in turns):
        history = [Turn("system", system), *history]
    return history + turns


def _history(value: Any) -> Turns:
    """The turns of [[user, assistant], ...], or of a list of turns."""
    if not value:
        return []
    if _is_conversation(value):
        return [_turn(turn) for turn in value]
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRecordError("unknown_shape", "history is no list of pairs of a user's and an assistant's message")
    roles = ("user", "assistant")
    return [Turn(role, _text(text, "history")) for pair in value for role, text in zip(roles, pair, strict=True)]


def _turn(turn: dict[str, Any]) -> Turn:
    """The message of an object. Raises BadRecordError: unknown_shape, not_text, tool_calls, not_to_be_trained."""
    speaker_key = next((key for key in SPEAKER_KEYS if key in turn), SPEAKER_KEYS[1])
    text_key = next((key for key in TEXT_KEYS if key in turn), TEXT_KEYS[1])
    speaker = turn.get(speaker_key)
    role = SPEAKERS.get(str(speaker).lower())
    if role not in ROLES:
        raise BadRecordError("unknown_shape", f"{speaker_key} {speaker!r:.40} is none of {', '.join(SPEAKERS)}")
    if any(turn.get(key) for key in CALLS):
        raise BadRecordError("tool_calls", "a message calls a tool, which is not text to train on")
    weight = turn.get("weight")
    if isinstance(weight, int | float) and weight not in (0, 1):
        raise BadRecordError("not_to_be_trained", f"weight {weight!r} of a message is neither 0 nor 1")
    return Turn(
        role,
        _text(turn.get(text_key), text_key),
        trained=not any(_is_no(turn.get(key)) for key in TRAINED),
        reasoning=any(turn.get(key) for key in REASONING),
    )


def _is_no(mark: Any) -> bool:
    """Whether a mark is 0 or false; null is no mark."""
    return isinstance(mark, bool | int | float) and mark == 0


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
