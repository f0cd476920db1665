"For every test."
import pytest
import torch


@pytest.fixture(autouse=True)
def threads_are_left_alone():
    "More threads than cores make whatever comes after in the same process many times slower, without a word."
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, f"left PyTorch with {torch.get_num_threads()} threads, found it with {before}"
