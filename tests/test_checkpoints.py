"""Checkpoints: what went in comes out bit for bit, a changed bit is noticed, and nothing in a file acts."""
import math
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import lzn_nb.checkpoints as checkpoints
from lzn_nb.checkpoints import MARK, checkpoint_paths, checksum, load_checkpoint, naming_checkpoint, pack, read_checkpoint, save_checkpoint, unpack


def same(a, b) -> bool:
    "Equal bit for bit."
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list): return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor): return torch.equal(a, b) and a.dtype == b.dtype
    return type(a) is type(b) and (a == b or (a != a and b != b))


dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
tensors = st.builds(lambda dtype, shape: (8 * torch.randn(shape)).to(dtype), dtypes, st.lists(st.integers(0, 3), max_size=3))
plain = st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats() | st.text(max_size=5).filter(lambda text: not text.startswith(MARK))
names = st.text(st.characters(blacklist_characters="/", blacklist_categories=("Cs",)), min_size=1, max_size=6)
states = st.dictionaries(names, st.recursive(tensors | plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8), max_size=4)


@settings(deadline=None, max_examples=60)
@given(states)
def test_what_goes_in_comes_out(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    path = save_checkpoint(folder, 1, state)
    assert same(read_checkpoint(path), state)


def test_tensors_that_share_memory_or_have_gaps(tmp_path):
    base = torch.arange(12.0)
    state = {"a": base, "b": base[::2], "c": base.reshape(3, 4).t(), "d": [base, base[2:5]]}
    assert same(read_checkpoint(save_checkpoint(tmp_path, 1, state)), {k: v for k, v in state.items()})


@pytest.mark.parametrize("state, words", [({"a": {"b": print}}, "got builtin_function_or_method at a/b"), ({"a/b": 1}, "the key 'a/b' in its top"), ({"a": {1: 2}}, "the key 1 in a"),
                                          ({"a": MARK + "x"}, "got 'tensor:x' at a, wanted a text that does not begin with"), ({"a": {1, 2}}, "got set at a"), ({"a": [b"x"]}, "got bytes at a/0")])
def test_what_cannot_be_kept_is_named(tmp_path, state, words):
    with pytest.raises(ValueError, match=f"state: .*{words}"): save_checkpoint(tmp_path, 1, state)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_lists_of_states_unpack(): assert same(unpack(*pack({"a": [torch.ones(1), (2, "x")]})), {"a": [torch.ones(1), [2, "x"]]})


# -- which stay -------------------------------------------------------------------------------
def stems(out): return [int(path.stem) for path in checkpoint_paths(out)]


def test_the_newest_and_the_best_stay(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (9, 10, 100): save_checkpoint(tmp_path, step, {"step": step, "x": torch.ones(2) * step})
    assert stems(tmp_path) == [10, 100] and same(load_checkpoint(tmp_path), {"step": 100, "x": torch.ones(2) * 100})
    for step in (200, 300, 400): save_checkpoint(tmp_path, step, {"step": step}, keep=1, best=200)
    assert stems(tmp_path) == [200, 400] and load_checkpoint(tmp_path, step=200) == {"step": 200}
    with pytest.raises(ValueError, match=r"step: got 300, wanted one of \[200, 400\]"): load_checkpoint(tmp_path, step=300)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    save_checkpoint(tmp_path, 1, {})
    for name in ("notes.txt", "mine.safetensors", ".00000009.safetensors.part"): (tmp_path / "checkpoints" / name).write_text("mine")
    for step in (2, 3, 4): save_checkpoint(tmp_path, step, {"step": step})
    assert stems(tmp_path) == [3, 4] and load_checkpoint(tmp_path) == {"step": 4}
    assert (tmp_path / "checkpoints" / "notes.txt").exists() and (tmp_path / "checkpoints" / "mine.safetensors").exists()


def test_no_room_leaves_the_old_ones(tmp_path):
    import resource
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError): save_checkpoint(tmp_path, 2, {"x": torch.zeros(10_000)}, keep=1)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001.safetensors"]


# -- damage -----------------------------------------------------------------------------------
def two(tmp_path):
    for step in (10, 20): save_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(20.0), "y": {"z": 0.5}})
    return tmp_path / "checkpoints" / "00000020.safetensors"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"no checkpoint at all" * 40, lambda b: b[:100] + b"x" * 50 + b[150:], lambda b: b + b"\0"])
def test_a_damaged_newest_checkpoint_is_named_and_the_good_one_offered(tmp_path, damage):
    newest = two(tmp_path)
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint: .*00000020.safetensors is .*; 00000010.safetensors is sound: remove 00000020.safetensors to go on from it") as caught: load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    newest.unlink()  # as it says
    assert load_checkpoint(tmp_path)["step"] == 10


def test_every_single_bit_counts(tmp_path):
    "Each byte of a whole file, one bit of it turned over: numbers, names, JSON, checksum. (Blanks that pad the header mean nothing.)"
    newest = two(tmp_path)
    whole = newest.read_bytes()
    good = read_checkpoint(newest)
    for place in range(len(whole)):
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1:])
        try: assert same(read_checkpoint(newest), good), place
        except ValueError as error: assert "00000020.safetensors" in str(error)
    

def test_the_newest_good_one_is_looked_for_among_damaged_ones(tmp_path):
    for step in (1, 2, 3): save_checkpoint(tmp_path, step, {"step": step}, keep=9)
    for step in (2, 3): (tmp_path / "checkpoints" / f"{step:08d}.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match="00000003.safetensors is .* 00000001.safetensors is sound"): load_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "00000001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no other is sound: remove it to start anew"): load_checkpoint(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_file({"x": torch.ones(3)}, tmp_path / "checkpoints" / "00000005.safetensors")
    with pytest.raises(ValueError, match="00000005.safetensors is a safetensors file of another kind"): load_checkpoint(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "checkpoints" / "00000005.safetensors", {"format": "lzn_nb checkpoint 1", "state": "{}", "sha256": "0"})
    with pytest.raises(ValueError, match="its checksum does not fit"): load_checkpoint(tmp_path)


class Malicious:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("write", [lambda state, path: torch.save(state, path), lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2)),
                                   lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, write):
    trap = tmp_path / "trap"
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "00000001.safetensors"
    write({"step": 1, "extra": Malicious(trap)}, path)
    with pytest.raises(ValueError, match="checkpoint: .*00000001.safetensors is damaged or no safetensors file .* remove it to start anew"): load_checkpoint(tmp_path)
    assert not trap.exists()
    with path.open("rb") as file:  # the trap is real: unpickled without care it springs
        try: torch.load(file, weights_only=False)
        except Exception: pass
    assert trap.exists()


def test_a_right_checksum_over_something_else(tmp_path):
    "Whoever makes the checksum right can still not make it a state."
    save_checkpoint(tmp_path, 1, {"step": 1})
    for nest in ('{"weights": "tensor:weights"}', "[1, 2]", '"text"', "{", "[" * 100_000):
        save_file(some := {"x": torch.ones(2)}, tmp_path / "checkpoints" / "00000002.safetensors", {"format": "lzn_nb checkpoint 1", "state": nest, "sha256": checksum(some, nest)})
        with pytest.raises(ValueError, match="00000002.safetensors holds no state.*00000001.safetensors is sound"): load_checkpoint(tmp_path)


def test_what_is_wrong_with_a_whole_checkpoint_names_it(tmp_path):
    for step in (1, 2, 3): save_checkpoint(tmp_path, step, {"step": step}, keep=9)
    (tmp_path / "checkpoints" / "00000002.safetensors").write_bytes(b"")
    for step, words in ((None, "no; it is .*00000003.safetensors, beside it 00000001.safetensors is whole"), (1, "no; it is .*00000001.safetensors, beside it 00000003.safetensors is whole")):
        with pytest.raises(ValueError, match=words), naming_checkpoint(tmp_path, step): raise ValueError("no")
