"""Long texts keep nobody waiting."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from sluice_worker.models.encoding import encoding_of
from tests.support import models


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    folder: Path = tmp_path_factory.mktemp("bert")
    models.save_tokenizer(folder, [text for text, _ in models.tickets()[0]])
    return FastTokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def unforced() -> Iterator[None]:
    """Nobody is made to let other threads run: they run when somebody lets them, or not at all."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_other_threads_run_while_a_long_text_is_read(fast: FastTokenizer, unforced: None) -> None:
    turns, over, begun = [0], threading.Event(), threading.Event()

    def turn() -> None:
        begun.set()
        while not over.is_set():
            turns[0] += 1
            time.sleep(0)  # Lets the others run.

    other = threading.Thread(target=turn)
    other.start()
    begun.wait(60)
    try:
        for _ in range(50):  # A busy machine may have no time for it at first.
            before = turns[0]
            encoding_of(fast, "word " * 50_000)
            if turns[0] > before:
                break
        else:
            pytest.fail("the other thread had to wait each time")
    finally:
        over.set()
        other.join()


@pytest.mark.parametrize("special", [True, False])
def test_a_batch_of_one_is_the_same_text(fast: FastTokenizer, special: bool) -> None:
    for text in ("", "my parcel", "ünïcödé 漢字 🙂", "a\x00b"):
        found, alone = (
            encoding_of(fast, text, special=special),
            fast.encode(text, None, False, special),
        )
        assert (found.ids, found.tokens, found.offsets) == (alone.ids, alone.tokens, alone.offsets)
        assert (found.word_ids, found.type_ids) == (alone.word_ids, alone.type_ids)
