"""Toys that write are learnt on one thread, so that they come out the same beside other work."""

from types import SimpleNamespace
from typing import Any

import torch

from sluice_worker.examples.writing import learn


class Recorder(torch.nn.Linear):
    """Stands for a model, and notes how many threads it is trained on."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.threads: list[int] = []

    def __call__(self, **batch: Any) -> SimpleNamespace:
        self.threads.append(torch.get_num_threads())
        return SimpleNamespace(loss=self.weight.sum())


def test_writers_learn_on_one_thread_and_leave_the_number_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        model = Recorder()
        learn(model, [([4, 2], [5, 2])], steps=2)
        assert model.threads == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
