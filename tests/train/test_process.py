"""What is set of a process."""

import os

import torch

from train.process import cores_of_all


def test_a_process_takes_all_cores_while_the_others_are_done() -> None:
    torch.set_num_threads(1)  # as torchrun has it
    with cores_of_all(None):
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    assert torch.get_num_threads() == 1
    with cores_of_all(3):  # what a user has asked for stays
        assert torch.get_num_threads() == 1
