"An update never waits for a GPU: it reads no number back and copies nothing that the host has to stand by for."
import dataclasses
import traceback
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lzn_nb.data import batches, load_data
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_losses, joint_network, joint_trainer
from lzn_nb.training import run_update
from lzn_nb.zones import LatentZones

TINY = dataclasses.replace(JOINT_PRESETS["tiny"], jitter=0.5, flip=True)


class Reads(TorchDispatchMode):
    "Counts what makes the host ask a device for numbers, by the place in the library where that happens."
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func.name().startswith("aten::index") and len(args) > 1 and isinstance(args[1], (list, tuple)) and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"):
            self.found[[frame.line for frame in traceback.extract_stack() if "lzn_nb" in frame.filename][-1]] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    "Lists copies between devices for which the host has to wait."
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.name() in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if func.name() == "aten::copy_" else args[0]
            if source.device != out.device and not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2]): self.found.append((source.shape, out.device))
        return out


def test_an_update_reads_nothing_back():
    "Forward, backward, clipping, optimizer and average. (one_hot looks at its argument on a CPU only.)"
    data = load_data("digits")
    trainer = joint_trainer(TINY, data.shape, data.num_classes, 0, torch.device("cpu"))
    trainer.begin(lambda *given: joint_losses(TINY, *given))
    stream = batches(data.train, TINY.batch, seed=0)
    run_update(trainer, [next(stream)], 0)
    given = next(stream)
    with Reads() as reads: run_update(trainer, [given], 0)
    assert reads.found and all("one_hot" in line for line in reads.found), reads.found


def test_on_a_pretended_gpu_losses_copy_nothing_in_the_hosts_time(monkeypatch):
    "Tensors that are shapes on a device only: a number cannot be read from them at all."
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # needs a real GPU
    with FakeTensorMode():
        with torch.device("cuda"):
            network, images, labels = joint_network(TINY, (1, 8, 8), 10), torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.long)
        with Copies() as copies: losses = joint_losses(TINY, network, images, labels, torch.Generator())
        assert losses["loss"].device.type == "cuda" and losses["loss"].requires_grad and not copies.found
        with Copies() as copies: torch.ones(3).to("cuda")
        assert copies.found == [((3,), torch.device("cuda:0"))]
        with pytest.raises(DataDependentOutputException): LatentZones(torch.randn(5, 3, device="cuda"))


def test_batches_from_memory_are_picked_on_the_pretended_gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    stream = batches(load_data("digits").train, 64, seed=0, device="cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        next(stream)  # all images and labels are sent once
        with Copies() as copies: images, labels = next(stream)
    assert images.device.type == labels.device.type == "cuda" and not copies.found


def test_what_is_looked_at_by_default_is_read():
    with Reads() as reads: LatentZones(torch.randn(5, 3), torch.ones(5)).encode()
    assert len(reads.found) > 3
