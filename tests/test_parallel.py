"""Several processes: shares, rows of all ranks with their gradient, steps that are the same on one, two and three ranks. And batches in pieces."""
import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lzn_nb.alignment import alignment_loss
from lzn_nb.network import DataType, LabelType
from lzn_nb.parallel import gather_rows, in_pieces, mean_weight, own_rows, rank_and_world, share, zones_of_batch
from lzn_nb.zones import LatentZones
from ranks import on_ranks

torch.set_num_threads(1)


# -- shares -------------------------------------------------------------------------------------
@given(st.integers(1, 40), st.integers(0, 500))
def test_shares_are_even_consecutive_and_complete(world, more):
    n = world + more
    parts = [share(n, rank, world) for rank in range(world)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = {part.stop - part.start for part in parts}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_fewer_samples_than_ranks():
    with pytest.raises(ValueError, match="batch: got 2 samples for 3 ranks"): share(2, 0, 3)


def test_one_process_is_everybody():
    x = torch.randn(5, 2, requires_grad=True)
    assert rank_and_world() == (0, 1) and gather_rows(x, 5) is x and torch.equal(own_rows(x), x) and mean_weight(5) == 1.0
    with pytest.raises(ValueError, match="x: got 5 rows, wanted 6, this rank's share of 6"): gather_rows(x, 6)


# -- steps --------------------------------------------------------------------------------------
def encoder(dtype): return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).to(dtype)


def generation(n, dtype):
    "Latents of the images' own zones tell a decoder what to draw."
    network, decoder = encoder(dtype), torch.nn.Linear(4, 6).to(dtype)
    x, noise = torch.randn(n, 6).to(dtype), torch.randn(n, 4).to(dtype)
    zones = LatentZones(gather_rows(network(own_rows(x)), n))
    z = zones.encode(torch.arange(n)[share(n)], own_rows(noise))
    return (decoder(z) - own_rows(x)).square().mean(), [*network.parameters(), *decoder.parameters()]


def representation(n, dtype):
    "Latents of the first view come into the zones of the second."
    network, views, noise = encoder(dtype), torch.randn(2, n, 6).to(dtype), torch.randn(n, 4).to(dtype)
    first, second = (gather_rows(network(own_rows(view)), n) for view in views)
    mine = torch.arange(n)[share(n)]
    return alignment_loss(LatentZones(first).encode(mine, own_rows(noise), 0.45), LatentZones(second), mine), list(network.parameters())


def joint(n, dtype):
    "Latents of the images come into the zones of their classes, whose weights are those of the whole batch, and tell a decoder what to draw."
    network, decoder, label = encoder(dtype), torch.nn.Linear(4, 6).to(dtype), LabelType(3, 4).to(dtype)
    x, labels, noise = torch.randn(n, 6).to(dtype), torch.randint(3, (n,)), torch.randn(n, 4).to(dtype)
    z = LatentZones(gather_rows(network(own_rows(x)), n)).encode(torch.arange(n)[share(n)], own_rows(noise))
    classes = label.zones(weights=torch.bincount(gather_rows(own_rows(labels), n), minlength=3))[0]
    loss = (decoder(z) - own_rows(x)).square().mean() + alignment_loss(z, classes, own_rows(labels))
    return loss, [*network.parameters(), *decoder.parameters(), label.matrix]


SCENARIOS = {"generation": generation, "representation": representation, "joint": joint}


def step(scenario, n, dtype):
    "Loss and all gradients, averaged over ranks, as one vector."
    torch.manual_seed(0)
    loss, parameters = SCENARIOS[scenario](n, dtype)
    loss = loss * mean_weight(n)
    found = torch.cat([loss.detach().reshape(1), *(g.flatten() for g in torch.autograd.grad(loss, parameters))])
    if dist.is_initialized():
        dist.all_reduce(found)
        found /= dist.get_world_size()
    return found


CASES = [(scenario, n, dtype) for scenario in SCENARIOS for n in (12, 7) for dtype in (torch.float64, torch.float32)]


def on_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = [step(*case) for case in CASES]
    if rank == 0: torch.save(found, os.path.join(folder, "found.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_one(world, tmp_path):
    "Equal and unequal shares; loss and every gradient."
    on_ranks(on_rank, world, str(tmp_path))
    for case, found in zip(CASES, torch.load(tmp_path / "found.pt")):
        wanted, loose = step(*case), 1e-10 if case[2] == torch.float64 else 1e-5
        assert wanted.isfinite().all() and wanted[1:].abs().max() > 1e-3, case
        assert (found - wanted).abs().max() <= loose * wanted.abs().max(), case


def both_ways(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = []
    for n in (world, 7, 12):
        for shape in ((), (3,), (2, 2)):
            x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)).double()
            pull = torch.randn(n, *shape, generator=torch.Generator().manual_seed(10 + rank)).double()
            for ring in (False, True):
                mine = own_rows(x).clone().requires_grad_()
                everything = gather_rows(mine, n, ring)
                found.append([torch.equal(everything, x), torch.autograd.grad((everything * pull).sum(), mine)[0]])
    assert all(same for same, _ in found)
    for (_, a), (_, b) in zip(found[::2], found[1::2]): torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ring_is_the_same_exchange(world, tmp_path):
    "Rows of all ranks, and the sum of everybody's derivatives by one's own: equal and unequal shares, one sample a rank, several shapes."
    on_ranks(both_ways, world, str(tmp_path))


def forgetful(rank, world, folder):
    "The exchange without its gradient: own rows put back into what came from the others."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    import lzn_nb.parallel as parallel
    whole = parallel.gather_rows

    def gather(x, n): return torch.cat([whole(x.detach(), n)[:share(n).start], x, whole(x.detach(), n)[share(n).stop:]])

    globals()["gather_rows"] = gather
    found = step("representation", 12, torch.float64)
    if rank == 0: torch.save(found, os.path.join(folder, "found.pt"))
    dist.destroy_process_group()


def test_the_sum_over_ranks_matters(tmp_path):
    "Without it the loss is the same and the gradient is another: the test above can fail."
    on_ranks(forgetful, 2, str(tmp_path))
    found, wanted = torch.load(tmp_path / "found.pt"), step("representation", 12, torch.float64)
    assert abs(found[0] - wanted[0]) < 1e-10 and (found - wanted)[1:].norm() > 0.01 * wanted[1:].norm()


# -- pieces -------------------------------------------------------------------------------------
def aligned(encode, n=13):
    "Gradients of the alignment of two views, by the weights and by the samples."
    torch.manual_seed(3)
    views, noise = torch.randn(2, n, 6).double().requires_grad_(), torch.randn(n, 4).double()
    network = encoder(torch.float64)
    first, second = (encode(network, view) for view in views)
    loss = alignment_loss(LatentZones(first).encode(noise=noise), LatentZones(second), torch.arange(n))
    return loss.detach(), *torch.autograd.grad(loss, [views, *network.parameters()])


@pytest.mark.parametrize("size", [1, 4, 13, 50, None])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(size):
    for got, wanted in zip(aligned(lambda network, x: in_pieces(network, size, x)), aligned(lambda network, x: network(x))):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_pieces_replay_dropout():
    "The gradient is that of the masks that were drawn on the way there, and the global generator goes on from where it was."
    x, network = torch.randn(9, 50), torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(50, 3))

    def gradient(forward):
        torch.manual_seed(4)
        loss = forward().square().sum()
        after = torch.rand(())
        return after, *torch.autograd.grad(loss, list(network.parameters()))

    got, wanted = gradient(lambda: in_pieces(network, 4, x)), gradient(lambda: torch.cat([network(part) for part in x.split(4)]))
    for one, other in zip(got, wanted): torch.testing.assert_close(one, other)


def test_pieces_run_the_network_on_one_piece_at_a_time_and_twice():
    seen, weight = [], torch.ones(3, requires_grad=True)
    in_pieces(lambda x, y: seen.append(len(x)) or x * weight + y, 4, torch.randn(10, 3), torch.randn(10, 3)).sum().backward()
    assert seen[:3] == [4, 4, 2] and sorted(seen[3:]) == [2, 4, 4]


@pytest.mark.parametrize("size", [0, -1, True, 2.0])
def test_pieces_of_no_size(size):
    with pytest.raises(ValueError, match="size: got .*, wanted an integer ≥ 1, or None"): in_pieces(torch.nn.Identity(), size, torch.ones(2))


def test_batch_norms_are_refused_where_the_batch_is_cut():
    kind = DataType(latent_dim=2)
    kind.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    kind.anchors = lambda x: kind.encoder(x)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    zones_of_batch(kind, x, 4)  # a whole batch on one rank
    with pytest.raises(ValueError, match=r"piece: the network has a batch norm \(encoder.1\), .*; wanted piece=0"): zones_of_batch(kind, x, 4, 2)
    kind.eval()
    zones_of_batch(kind, x, 4, 2)  # what it knows from training is the same for all
