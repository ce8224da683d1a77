"""How a session of these tests is set up."""

import torch


def test_a_session_computes_with_one_thread() -> None:
    assert torch.get_num_threads() == 1
