"""The cost model: counts by hand, and sums that behave as they should."""
import pytest
import torch
from torch import nn

from lzn_nb.scaling import Machine, Update, count_parameters, network_flops, sent_bytes, zone_bytes, zone_flops
from lzn_nb.zones import LatentZones


@pytest.mark.parametrize("n, q", [(60, 16), (300, 16)])
def test_operations_of_zones_are_those_that_are_done(n, q):
    "Counted by PyTorch: six products an evaluation where probabilities are kept, seven elsewhere, and little besides."
    anchors = torch.randn(n, q, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counted = network_flops(lambda x: LatentZones(x, steps=10).encode(noise=torch.ones(n, q)).sum(), anchors) * n
    assert 1 <= counted / zone_flops(n, n, q, 10) < 1.15


def test_bytes_of_zones_bound_what_is_kept():
    for n, q in ((40, 16), (300, 16)):
        anchors, sizes = torch.randn(n, q).requires_grad_(), {}

        def pack(x): sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(); return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): LatentZones(anchors, steps=10).encode(noise=torch.randn(n, q))
        assert 0.6 < sum(sizes.values()) / zone_bytes(n, n, q, 10) <= 1


def test_networks_are_counted_for_a_sample():
    net = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Linear(20, 10, bias=False))
    assert network_flops(lambda x: net(x).sum(), torch.randn(7, 30)) == 2 * (30 * 20 + 20 * 10) * 2 + 2 * 20 * 10
    net[0].requires_grad_(False)
    assert count_parameters(net) == 200


def test_messages():
    assert sent_bytes(1000, 64, 8, 1) == 0
    assert sent_bytes(1000, 64, 8, 4) == 0.75 * (8000 + 3 * 4 * 64 * 8) and sent_bytes(1000, 64, 8, 4, flows=2, ring=True) == 0.75 * (8000 + 2 * 2 * 4 * 64 * 8)


def test_seconds_grow_as_they_should():
    rates = Machine(1e9, 1e9, 1e9, fixed=0.5, per_evaluation=0.01)
    one, two, four = (Update(n, 1e6, 1000, 32, 10).seconds(rates) for n in (1000, 2000, 4000))
    assert one["fixed"] == 0.5 and one["messages"] == 0 and two["networks"] == 2 * one["networks"]
    assert four["zones"] - 0.1 == pytest.approx(4 * (two["zones"] - 0.1))  # the square
    shared = Update(4000, 1e6, 1000, 32, 10, ranks=4).seconds(rates)
    assert shared["networks"] == pytest.approx(four["networks"] / 4) and shared["zones"] - 0.1 == pytest.approx((four["zones"] - 0.1) / 4) and shared["messages"] > 0
