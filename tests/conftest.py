"For every test."
import pytest
import torch


@pytest.fixture(autouse=True)
def threads_are_left_alone():
    "More threads than cores make whatever comes after in the same process many times slower, without a word."
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, f"left PyTorch with {torch.get_num_threads()} threads, found it with {before}"


def pytest_collection_modifyitems(items):
    "Tests that share a page in a browser go to one process, in their order: it is opened once."
    for item in items:
        for page in {"explorer", "flow", "playground", "embeddings"} & set(getattr(item, "fixturenames", ())): item.add_marker(pytest.mark.xdist_group(page))
