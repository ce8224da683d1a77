"""The two digests that every answer is bound to, defined once.

* The **revision digest** is made from the spec: whatever can change an answer, and nothing else.
* The **answer digest** is made by the worker from what it really loaded.

Cache keys contain both, so a rollout changes the keys by itself and no stale answer can be found
under a new revision. Both are SHA-256 over canonical JSON: sorted members, no insignificant space.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

_SCHEMA = 1
"""Raised when the meaning of the same members changes; every digest changes with it."""


def canonical_json(value: Any) -> bytes:
    """``value`` as bytes: equal meaning, equal bytes. Takes what JSON takes."""
    return msgspec.json.encode(value, order="deterministic")


def revision_digest(parts: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits, short enough for a label and a child's name.

    Args:
        parts: what can change an answer; members that are None count as absent.
    """
    return _digest("revision", parts)[:10]


def answer_digest(parts: Mapping[str, Any]) -> str:
    """``sha256:…`` of what a worker loaded: weights, tokenizer, config, dtype, quantisation."""
    return f"sha256:{_digest('answer', parts)}"


def _digest(kind: str, parts: Mapping[str, Any]) -> str:
    present = {name: value for name, value in parts.items() if value is not None}
    return hashlib.sha256(canonical_json([_SCHEMA, kind, present])).hexdigest()
