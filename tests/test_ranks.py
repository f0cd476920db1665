"""The loop on several ranks: gradients of the real scenario equal those of one process, ranks stop together, and a crash ends them all."""
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.scenarios import LOSSES, network_of, trainer_of
from lzn_nb import parallel, training
from lzn_nb.checkpoints import checkpoint_paths, load_checkpoint
from lzn_nb.parallel import own_rows, rank_and_world
from lzn_nb.runs import read_metrics
from lzn_nb.training import step_generator
from ranks import on_ranks


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# -- gradients --------------------------------------------------------------------------------
SHARES = ({"batch": 12}, {"batch": 13}, {"batch": 13, "ring": True}, {"batch": 10, "piece": 2, "accumulate": 2, "flip": True})
OTHERS = ({"method": "simclr"}, {"method": "moco"}, {"method": "supervised"}, {"symmetric": True, "solver": "euler", "window": 0.0, "log_alignment": False}, {"window": 0.0})
CASES = [(name, dtype, changes | ({"jitter": 0.5} if "flip" in changes and name != "representation" else {})) for name in LOSSES for dtype in (torch.float64, torch.float32) for changes in SHARES]
CASES += [("representation", torch.float64, changes | others) for changes in SHARES[1::2] for others in OTHERS]


def gradient_of(name, config, network, pixels, labels):
    "Losses and gradient of an update of a scenario's `network`, its weights moved a little, as one vector, the same on all ranks."
    noise, dtype = torch.Generator().manual_seed(1), next(network.parameters()).dtype
    with torch.no_grad():  # what starts at zero hides mistakes; each number by its own, or all anchors lie on a line and rounding is magnified
        for p in network.parameters(): p += 0.05 * torch.randn(p.shape, generator=noise)
    trainer, n = trainer_of(name, config, network), config.zone_batch
    parts = [(own_rows(x).to(dtype), own_rows(y)) for x, y in zip(pixels.split(n), labels.split(n))]
    found = trainer.gradient(parts, step_generator(3, 4))
    losses = trainer.accelerator.reduce(torch.stack(list(found.values())), "mean")
    return torch.cat([losses.detach(), *(p.grad.flatten() for p in network.parameters() if p.grad is not None)])


def gradient(name, dtype, changes):
    "Of one of the paper's scenarios, on noise."
    config, network = network_of(name, "tiny", (1, 8, 8), 4, **changes)
    pixels, labels = torch.rand(config.batch, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1, torch.arange(config.batch) % 3
    return gradient_of(name, config, network.to(dtype), pixels, labels)


def on_rank(rank, world, folder, port, gradient, cases):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    found = [gradient(*case) for case in cases]
    assert rank_and_world() == (rank, world)
    if rank == 0: torch.save(found, os.path.join(folder, "found.pt"))
    dist.destroy_process_group()


def on_ranks_and_here(world, folder, gradient, cases):
    "Each case, with what `gradient(*case)` is on so many ranks and in this process alone."
    on_ranks(on_rank, world, str(folder), free_port(), gradient, cases)
    return [(case, found, gradient(*case)) for case, found in zip(cases, torch.load(folder / "found.pt"), strict=True)]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_gradient_of_the_whole_batch(world, tmp_path):
    "Loss and every gradient of the three scenarios and of what they are compared with, by the real networks and the loop: equal and unequal shares, accumulated, in pieces."
    for case, found, wanted in on_ranks_and_here(world, tmp_path, gradient, CASES):
        loose = 1e-10 if case[1] == torch.float64 else 1e-5
        assert wanted.isfinite().all() and wanted[1:].abs().max() > 1e-3, case
        assert abs(found[0] - wanted[0]) <= loose * abs(wanted[0]) and (found - wanted).norm() <= loose * wanted.norm(), case


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(name, monkeypatch):
    "The real networks see no more than a piece at a time, and the gradient is that of the batch, not that of accumulation."
    from lzn_nb.backbones import BackboneEncoder
    from lzn_nb.nets import UNetDecoder, UNetEncoder
    seen = []
    for part in (UNetEncoder, UNetDecoder, BackboneEncoder):
        whole = part.forward
        monkeypatch.setattr(part, "forward", lambda self, x, *more, whole=whole, **given: seen.append(len(x)) or whole(self, x, *more, **given))
    wanted = gradient(name, torch.float64, {"batch": 13})
    assert set(seen) == {13}
    seen.clear()
    found = gradient(name, torch.float64, {"batch": 13, "piece": 5})
    assert set(seen) == {5, 3} and (found - wanted).norm() < 1e-10 * wanted.norm()


class Shapes(TorchDispatchMode):
    "Shapes of all tensors that are made."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.update(tuple(x.shape) for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out

    def __enter__(self):
        self.seen = set()
        return super().__enter__()


def tables_on_rank(rank, world, folder, port):
    "Which tables of 37 columns the update of the representation scenario makes, and how often a ring goes round."
    torch.set_num_threads(1)
    if world > 1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    rounds, forward = [], parallel.RingRows.forward
    parallel.RingRows.forward = staticmethod(lambda *given: rounds.append(1) or forward(*given))
    found = {}
    try:
        for ring in (False, True):
            rounds.clear()
            with Shapes() as shapes: gradient("representation", torch.float32, {"batch": 37, "ring": ring, "window": 0.0})  # of all distances the flow asks for, too
            found[ring] = sorted(shape for shape in shapes.seen if len(shape) == 2 and shape[1] == 37), len(rounds)
    finally: parallel.RingRows.forward = forward
    if rank == 0: torch.save(found, os.path.join(folder, "shapes.pt"))
    if world > 1: dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_no_rank_holds_a_table_of_all_by_all(world, tmp_path):
    if world == 1: tables_on_rank(0, 1, str(tmp_path), 0)
    else: on_ranks(tables_on_rank, world, str(tmp_path), free_port())
    found = torch.load(tmp_path / "shapes.pt")
    for ring in (False, True):
        tables, rounds = found[ring]
        assert ((37, 37) in tables) == (world == 1) and ((18, 37) in tables) == (world == 2), tables
        assert (rounds >= 2) == (ring and world == 2)


# -- the command ------------------------------------------------------------------------------
def launch(world, *words, script=None, timeout=240):
    "Start the command (or a script) on so many ranks; what became of it."
    program = ["-m", "lzn_nb.cli"] if script is None else [str(script)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    return subprocess.run([sys.executable, *launcher, *program, *map(str, words)], capture_output=True, text=True, timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"})


def test_a_run_on_two_ranks_is_the_run_on_one(tmp_path):
    "Started by torchrun: one table, one folder, the figures of one process; an odd batch; and what two began one goes on with."
    words = ["joint", "--preset", "tiny", "--quiet", "--set", "batch=33", "--set", "log_every=1", "--set", "save_every=4"]
    whole = launch(1, *words, "--set", "steps=8", "--out", tmp_path / "one")
    ranks = launch(2, *words, "--set", "steps=8", "--out", tmp_path / "two")
    assert (whole.returncode, ranks.returncode) == (0, 0), ranks.stderr
    assert ranks.stdout.count("| figure |") == 1 and ranks.stdout.splitlines()[:8] == whole.stdout.splitlines()[:8]
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 9
    for a, b in zip(one[:5], two[:5]):
        for name in ("loss", "flow", "alignment", "grad_norm"): assert a[name] == pytest.approx(b[name], rel=2e-4), (name, a, b)
    for path in checkpoint_paths(tmp_path / "two")[1:]: path.unlink()  # back to update 4
    for file in ("metrics.jsonl", "report.html"): (tmp_path / "two" / file).unlink()
    again = launch(1, *words, "--set", "steps=8", "--out", tmp_path / "two", "--resume")
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "two")][:4] == [5, 6, 7, 8]
    assert [json.loads(line)["ranks"] for line in (tmp_path / "two" / "environment.jsonl").read_text().splitlines()] == [2, 1]


def test_a_run_started_by_accelerate(tmp_path):
    "On a CPU it starts one process; it is the same run bit for bit, in the precision that both were told."
    words = ["joint", "--preset", "tiny", "--quiet", "--set", "steps=6", "--set", "precision=bf16"]
    plain = launch(1, *words, "--out", tmp_path / "plain")
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", "bf16", "-m", "lzn_nb.cli"]
    started = subprocess.run([sys.executable, *launcher, *words, "--out", str(tmp_path / "started")], capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (plain.returncode, started.returncode) == (0, 0), started.stderr
    one, other = (load_checkpoint(tmp_path / name)["network"] for name in ("plain", "started"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_training as t
from lzn_nb.parallel import own_rows, rank_and_world

def losses(network, x, y, generator):
    rank = rank_and_world()[0]
    if rank == 1 and generator.initial_seed() == 6: {act}
    return {{"loss": (network(x) - y).square().mean()}}

network = t.Small()
trainer = t.small(save_every=100)
t.go(trainer, {out!r}, losses, lambda k: ((own_rows(x), own_rows(y)) for x, y in t.stream(k)))
print("ended well")
"""


def scripted(tmp_path, act):
    (script := tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"), act=act))
    return launch(2, script=script)


@pytest.mark.parametrize("kind", ["RuntimeError", "ValueError", "OSError"])
def test_a_rank_that_crashes_ends_all_with_its_traceback(tmp_path, kind):
    ended = scripted(tmp_path, f'raise {kind}("this rank is ill")')
    assert ended.returncode != 0 and "ended well" not in ended.stdout
    assert "Traceback" in ended.stderr and f"{kind}: this rank is ill" in ended.stderr.replace("update 7: ", "") and "local_rank: 1" in ended.stderr


ILL = """
import os, sys
import lzn_nb.training as training
import lzn_nb.scenarios.base as base
from lzn_nb.cli import main
place = {place!r}
owner = training if place == "run_update" else base
before = getattr(owner, place)
def ill(*arguments, **options):
    if os.environ["RANK"] == "1": raise {kind}("this rank is ill")
    return before(*arguments, **options)
setattr(owner, place, ill)
sys.exit(main({words!r}))
"""


@pytest.mark.parametrize("place, kind, seen", [("run_update", "ValueError", True), ("load_data", "FileNotFoundError", False)])  # the latter takes half a minute: torchrun waits as long for the rank that waits
def test_a_rank_of_the_command_that_fails_alone_is_heard(tmp_path, place, kind, seen):
    "With its traceback once all have met; before, in a line."
    words = ["joint", "--preset", "tiny", "--quiet", "--out", str(tmp_path / "a")]
    (script := tmp_path / "script.py").write_text(ILL.format(place=place, kind=kind, words=words))
    ended = launch(2, script=script)
    assert ended.returncode != 0 and "lzn joint (rank 1): this rank is ill" in ended.stderr and (f"{kind}: this rank is ill" in ended.stderr) == seen, ended.stderr


RESUMED = """
import sys
from itertools import islice
sys.path.insert(0, {tests!r})
import test_training as t
from lzn_nb.parallel import own_rows

def losses(network, x, y, generator): return {{"loss": (network(x) - y).square().mean()}}
def stream(k): return ((own_rows(x), own_rows(y)) for x, y in t.stream(k))
for out, stop in (("whole", 99), ("parts", 23), ("parts", 99)):
    try: t.go(t.small({{"head": {{"budget": 30}}}}), {out!r} + "/" + out, losses, lambda k: islice(stream(k), max(0, stop - k)))
    except ValueError as error: assert "ended after 23" in str(error)
"""


@pytest.mark.parametrize("world", [2, 3])
def test_resumed_on_several_ranks_is_uninterrupted(tmp_path, world):
    "Bit for bit, on as many ranks: sums over ranks are taken in the same order in every sitting."
    (script := tmp_path / "script.py").write_text(RESUMED.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    ended = launch(world, script=script)
    assert ended.returncode == 0, ended.stderr
    whole, parts = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 40
    for part in ("network", "average"): assert all(torch.equal(x, parts[part][name]) for name, x in whole[part].items())


def test_who_waits_for_the_other_ranks_ends_at_once_when_told_to(monkeypatch):
    "A handler in Python would not run in the midst of waiting; alone, and afterwards, it is as it was."
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        for world, wanted in ((1, handler), (2, signal.SIG_DFL)):
            monkeypatch.setenv("WORLD_SIZE", str(world))
            with pytest.raises(RuntimeError, match="nobody came"), training.ended_while_waiting():
                assert signal.getsignal(signal.SIGTERM) == wanted
                raise RuntimeError("nobody came")
            assert signal.getsignal(signal.SIGTERM) is handler
    finally: signal.signal(signal.SIGTERM, before)


def test_ranks_stop_together(tmp_path):
    "One of two is told to stop: both finish the same update, it is saved, and the status says why."
    ended = scripted(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)")
    assert ended.returncode != 0 and "ended well" not in ended.stdout and "exitcode  : 143" in ended.stderr, ended.stderr
    assert [path.stem for path in checkpoint_paths(tmp_path / "run")] == ["00000007"] and load_checkpoint(tmp_path / "run")["step"] == 7


def test_a_killed_rank_ends_all(tmp_path):
    ended = scripted(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode != 0 and "exitcode  : -9" in ended.stderr and "ended well" not in ended.stdout


# -- shards -----------------------------------------------------------------------------------
SHARDS = """
import dataclasses, os, signal, sys
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
import torch
import lzn_nb.scenarios.joint as joint
import lzn_nb.training as training
from lzn_nb.cli import main

make = training.make_accelerator
def sharded(config, device):
    "Accelerate shards on GPUs only; the code is the same on a CPU, so it is told to."
    accelerator, plugin = make(config, device), FullyShardedDataParallelPlugin(fsdp_version=2)
    AcceleratorState._shared_state |= {{"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}}
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator

training.make_accelerator, update = sharded, training.run_update
def stopping(trainer, *more):
    assert all(hasattr(p, "device_mesh") for p in trainer.network.parameters())
    if trainer.step == {stop} and os.environ["RANK"] == "1": os.kill(os.getpid(), signal.SIGTERM)
    return update(trainer, *more)
training.run_update = stopping
def judge(network, data, config, seed): return {{"score": float(torch.rand(())) + int(os.environ["RANK"])}}  # each rank has its own opinion
joint.JOINT = dataclasses.replace(joint.JOINT, validate=judge)
sys.exit(main({words!r}))
"""


def test_a_sharded_run_is_the_run_of_one_process(tmp_path):
    "Parameters, average and optimizer in shards (FSDP); stopped, saved, resumed, with a part that is frozen on the way: the figures and weights of one process."
    words = ["joint", "--preset", "tiny", "--quiet", "--set", "steps=6", "--set", "log_every=1", "--set", "save_every=2", "--set", "eval_every=3", "--set", "budget_decoder=2"]
    whole = launch(1, *words, "--out", tmp_path / "one")
    assert whole.returncode == 0, whole.stderr
    for stop in (3, 99):
        (script := tmp_path / "script.py").write_text(SHARDS.format(stop=stop, words=[*words, "--out", str(tmp_path / "two"), "--resume"]))
        ended = launch(2, script=script)
        assert (ended.returncode == 0) == (stop == 99) and ("143" in ended.stderr) == (stop == 3), ended.stderr
        assert checkpoint_paths(tmp_path / "two")[-1].stem == ("00000004" if stop == 3 else "00000006")
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert not {two[k]["valid_score"] for k in (2, 5)} & {one[k].get("valid_score") for k in (2, 5)}
    for a, b in zip(one[:6], two[:6], strict=True):
        for name in ("loss", "flow", "alignment", "grad_norm"): assert a[name] == pytest.approx(b[name], rel=1e-3), (name, a, b)
    a, b = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    for part in ("network", "average"):
        one, two = (torch.cat([weight.flatten() for weight in state[part].values()]) for state in (a, b))
        assert (one - two).norm() < 1e-3 * one.norm()  # a bias that no loss feels moves with the sign of rounding, as Adam does
    assert a["optimizer"].keys() == b["optimizer"].keys() and not any("decoder" in name for name in a["optimizer"])


FULL = """
save, scores = training.save_checkpoint, iter((1.0, 3.0, 2.0, 2.5, 1.0, 0.5))
def full(out, step, *more):
    if step == 2: raise OSError(28, "No space left on device")
    return save(out, step, *more)
training.save_checkpoint = full
joint.JOINT = dataclasses.replace(joint.JOINT, validate=lambda network, data, config, seed: {"score": next(scores)})
"""


def test_a_sharded_run_goes_on_when_its_disk_is_full(tmp_path):
    "The rank that writes fails, and all agree on it: the best checkpoint is that before, and the next one is tried by all."
    words = ["joint", "--preset", "tiny", "--quiet", "--set", "steps=6", "--set", "eval_every=1", "--set", "save_every=6", "--out", str(tmp_path / "run")]
    (script := tmp_path / "script.py").write_text(SHARDS.format(stop=99, words=words).replace("sys.exit(", FULL + "sys.exit("))
    ended = launch(2, script=script, timeout=120)
    assert ended.returncode == 0 and "cannot write that of update 2" in ended.stderr, ended.stderr
    assert [path.stem for path in checkpoint_paths(tmp_path / "run")] == ["00000004", "00000006"]
    assert load_checkpoint(tmp_path / "run")["best"] == {"step": 4, "score": 2.5}


def test_a_wrong_request_on_two_ranks_is_said_once(tmp_path):
    ended = launch(2, "joint", "--preset", "huge", "--out", tmp_path / "a")
    assert ended.returncode == 1 and ended.stderr.count("lzn joint: preset: got 'huge'") == 1 and "rank 1)" not in ended.stderr, ended.stderr
