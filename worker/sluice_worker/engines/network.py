"""The seam between engines and model code: a packed batch in, hidden states out."""

from typing import Protocol

from torch import Tensor

from sluice_worker.engines.packing import Packed


class Network(Protocol):
    """A model in memory. Stateless between calls, so several lanes may share it."""

    def hidden(self, batch: Packed) -> Tensor:
        """The last hidden state of every token, ``[T, hidden]``."""
        ...

    def first(self, batch: Packed) -> Tensor:
        """The last hidden state of each text's first token, ``[N, hidden]``, in packed order."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """The head, on the hidden states that it reads: ``[R, hidden]`` → ``[R, logits]``."""
        ...
