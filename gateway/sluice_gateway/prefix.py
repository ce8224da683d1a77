"""What a generation's prompt begins with, as a number: equal beginnings go to the same endpoint.

An engine keeps the keys and values of the tokens that it has computed; who continues a conversation
where its earlier turns were computed saves computing them again. ``forward`` asks for the
fingerprint of a job, ``endpoints`` looks it up on its ``ring``.
"""

from hashlib import blake2b
from typing import Final

from sluice_api.call import Call
from sluice_api.tasks import Task

TEXT_CHARACTERS: Final = 256
TOKENS: Final = 64
"""Of a plain prompt, how much of its beginning counts: what is written on keeps it."""
BLOCK_CHARACTERS: Final = 2048
"""Of a conversation's first turn, how much of its beginning and of its end counts."""
_ANSWER: Final = ',{"role":"assistant"'
"""How an answer begins in the canonical text of a conversation, where no message can hold it."""


def fingerprint(tenant: str, call: Call) -> int:
    """64 bits that ``call`` shares with the calls that continue it, and with no other tenant's.

    Of a conversation, everything before its first answer counts: the later turns begin with that as
    well, and what system prompts have in common does not make one of many conversations.
    """
    given = call.inputs[0]
    if not isinstance(given, str):
        begins = repr(given[:TOKENS])
    elif call.task is Task.CHAT:
        begins = _first_turn(given)
    else:
        begins = given[:TEXT_CHARACTERS]
    digest = blake2b(begins.encode("utf-8", "surrogatepass"), digest_size=8, key=_salt(tenant))
    return int.from_bytes(digest.digest())


def _first_turn(conversation: str) -> str:
    end = conversation.find(_ANSWER)
    if end < 0:
        end = len(conversation) - 1  # Without the bracket that closes the list.
    if end <= 2 * BLOCK_CHARACTERS:
        return conversation[:end]
    head = conversation[:BLOCK_CHARACTERS]
    return f"{head}{end}{conversation[end - BLOCK_CHARACTERS : end]}"


def _salt(tenant: str) -> bytes:
    return blake2b(tenant.encode(), digest_size=16).digest()
