"""One text through a fast tokenizer, without keeping the other threads of the process waiting."""

from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer


def encoding_of(fast: FastTokenizer, text: str, *, special: bool = True) -> Encoding:
    """The tokens of ``text``.

    In a batch of one: only for batches does the library let other threads run, and a megabyte takes
    it long enough for the probes of a worker to find nobody.

    Args:
        special: with the special tokens around it.
    """
    return fast.encode_batch([text], add_special_tokens=special)[0]
