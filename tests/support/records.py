"""Records of a question and an answer, for tests."""

from __future__ import annotations

from components.data.records import Message, Record, make_record


def ask(prompt: str, response: str, *before: Message) -> Record:
    """A record whose last two messages are these."""
    return make_record("test", [*before, Message("user", prompt), Message("assistant", response)])


def numbered(count: int) -> list[Record]:
    """Short records that differ in a number."""
    return [
        ask(f"Which number is this: {number}?", f"It is {number}, and the next is {number + 1}.")
        for number in range(count)
    ]
