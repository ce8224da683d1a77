"""What a worker binds its answers to: the content of every file it reads, and nothing else of it.

Files here hold any bytes: digests are made before anything is understood.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_api.digests import answer_digest
from sluice_worker import loader
from sluice_worker.loader import answer_parts
from sluice_worker.models.manifest import CONFIG_FILES, SENTENCE_FILES, TOKENIZER_FILES, verify
from sluice_worker.models.sources.base import Snapshot

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0]}}).encode()
POOLING = json.dumps([{"path": ""}, {"path": "1_Pooling"}]).encode()
MODEL = {
    **dict.fromkeys((*CONFIG_FILES, *TOKENIZER_FILES, *SENTENCE_FILES, *SHARDS), b""),
    "model.safetensors.index.json": INDEX,
    "modules.json": POOLING,
    "1_Pooling/config.json": b"",
}
STRUCTURE = ("model.safetensors.index.json", "modules.json")
"""Files that name others; their own content is varied by white space only."""

Content = Mapping[str, bytes]

models = st.fixed_dictionaries(
    {name: st.just(MODEL[name]) if name in STRUCTURE else st.binary(max_size=6) for name in MODEL}
)
few = settings(max_examples=40, deadline=None)  # Each example writes two folders.
dtypes = st.sampled_from(["float32", "bfloat16", "float16"])
limits = st.integers(1, 8192)


def digest(content: Content, order: Iterable[str], dtype: str, limit: int, *, aged: int = 0) -> str:
    """The answer digest of a folder into which ``content`` is written in ``order``."""
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file in order:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content[file])
            os.utime(folder / file, (aged, aged))
        return answer_digest(answer_parts(verify(Snapshot(folder, folder), None), dtype, limit))


@few
@given(models, st.data(), dtypes, limits)
def test_neither_order_nor_age_nor_other_files_count(
    content: dict[str, bytes], data: st.DataObject, dtype: str, limit: int
) -> None:
    order = data.draw(st.permutations(sorted(content)))
    more = {**content, "README.md": b"words", "model.bin": b"pickled", "2_Dense/model.bin": b"x"}
    aged = data.draw(st.integers(0, 2**31))
    assert digest(content, content, dtype, limit) == digest(
        more, [*order, *(more.keys() - content.keys())], dtype, limit, aged=aged
    )


@few
@given(models, st.sampled_from(sorted(MODEL)), st.data(), dtypes, limits)
def test_every_byte_of_every_file_that_is_read_counts(
    content: dict[str, bytes], name: str, data: st.DataObject, dtype: str, limit: int
) -> None:
    before = digest(content, content, dtype, limit)
    grown = {**content, name: content[name] + b" "}
    assert digest(grown, grown, dtype, limit) != before
    if name not in STRUCTURE:
        other = data.draw(st.binary(max_size=6).filter(lambda found: found != content[name]))
        changed = {**content, name: other}
        assert digest(changed, changed, dtype, limit) != before


@few
@given(models, st.sampled_from(sorted(MODEL.keys() - {*STRUCTURE, *SHARDS, "config.json"})))
def test_a_file_that_is_missing_is_not_an_empty_one(content: dict[str, bytes], name: str) -> None:
    empty = {**content, name: b""}
    without = {file: found for file, found in content.items() if file != name}
    assert digest(empty, empty, "float32", 8) != digest(without, without, "float32", 8)


@few
@given(models, st.permutations(SHARDS))
def test_shards_and_files_that_trade_content_are_another_model(
    content: dict[str, bytes], pair: list[str]
) -> None:
    content = {**content, pair[0]: b"one", pair[1]: b"two"}
    traded = {**content, pair[0]: b"two", pair[1]: b"one"}
    assert digest(content, content, "float32", 8) != digest(traded, traded, "float32", 8)


def test_what_we_make_of_a_model_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(MODEL, MODEL, "float32", 8)
    monkeypatch.setattr(loader, "ANSWERS_VERSION", loader.ANSWERS_VERSION + 1)
    assert digest(MODEL, MODEL, "float32", 8) != before


@few
@given(models, st.tuples(dtypes, limits), st.tuples(dtypes, limits))
def test_what_is_computed_with_counts(
    content: dict[str, bytes], one: tuple[str, int], other: tuple[str, int]
) -> None:
    same = digest(content, content, *one) == digest(content, content, *other)
    assert same == (one == other)
