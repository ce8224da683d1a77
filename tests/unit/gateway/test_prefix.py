"""Fingerprints of prompts: what continues a prompt has the same one, and nothing else has."""

import json
from typing import Any

import pytest

from sluice_api.call import Call
from sluice_api.shapes import chat, completions
from sluice_gateway.prefix import BLOCK_CHARACTERS, TEXT_CHARACTERS, TOKENS, fingerprint

SYSTEM = {"role": "system", "content": "You answer."}


def conversation(*said: str, system: str = "You answer.", **more: Any) -> Call:
    """One in which user and assistant take turns."""
    messages = [{"role": "system", "content": system}]
    for place, text in enumerate(said):
        messages.append({"role": "assistant" if place % 2 else "user", "content": text})
    return chat.CODEC.parse(json.dumps({"model": "m", "messages": messages} | more).encode())


def prompt(text: str | list[int]) -> Call:
    return completions.CODEC.parse(json.dumps({"model": "m", "prompt": text}).encode())


@pytest.mark.parametrize("length", [1, 100, 2 * BLOCK_CHARACTERS, 10 * BLOCK_CHARACTERS])
def test_later_turns_of_a_conversation_have_the_fingerprint_of_its_first(length: int) -> None:
    turns = ["How? " + "x" * length, "So.", "And then?", "That.", 'Is "role":"assistant" a role?']
    system = "S" * length
    first = fingerprint("t", conversation(turns[0], system=system))
    for count in range(1, len(turns) + 1):
        assert fingerprint("t", conversation(*turns[:count], system=system)) == first
    assert fingerprint("t", conversation(turns[0], system=system, temperature=0)) == first
    other = conversation(turns[0] + "!", system=system)
    assert fingerprint("t", other) != first
    assert fingerprint("t", conversation(turns[0], system=system + "!")) != first


def test_no_message_can_hold_what_ends_the_first_turn() -> None:
    begins = 'Say ,{"role":"assistant" and '
    one, two = conversation(begins + "one"), conversation(begins + "two")
    assert fingerprint("t", one) != fingerprint("t", two)


def test_tenants_have_fingerprints_of_their_own() -> None:
    call = conversation("How?")
    assert fingerprint("a", call) != fingerprint("b", call)


def test_a_prompt_that_is_written_on_keeps_its_fingerprint() -> None:
    begins = "y" * TEXT_CHARACTERS
    assert fingerprint("t", prompt(begins)) == fingerprint("t", prompt(begins + " and more"))
    assert fingerprint("t", prompt("n" + begins)) != fingerprint("t", prompt(begins))
    tokens = list(range(TOKENS))
    assert fingerprint("t", prompt(tokens)) == fingerprint("t", prompt([*tokens, 7, 8]))
    assert fingerprint("t", prompt([*tokens[1:], 7])) != fingerprint("t", prompt(tokens))


def test_it_is_the_same_in_every_process() -> None:
    assert fingerprint("t", prompt("hello")) == 5294642304491714039
    assert fingerprint("t", prompt("\ud83d\ude00")) < 2**64
