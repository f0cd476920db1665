"""What an update of the joint scenario takes on one rank and on two, and what `lzn_nb.scaling` says it should take."""
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from scipy.optimize import nnls

from benchmarks import machine
from benchmarks.process import ROOT
from benchmarks.scenarios import drawing
from lzn_nb.parallel import rank_and_world, share
from lzn_nb.scaling import Machine, Update, count_parameters, network_flops, zone_flops
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_losses, joint_trainer
from lzn_nb.training import run_update
from lzn_nb.zones import LatentZones

SHAPE = (1, 8, 8)
# Whole updates: batch, latent dimensions, evaluations each way, ranks.
UPDATES = [(64, 32, 10, 1), (128, 32, 10, 1), (256, 32, 10, 1), (512, 32, 10, 1), (1024, 32, 10, 1), (512, 32, 40, 1), (512, 128, 10, 1),
           (128, 32, 10, 2), (256, 32, 10, 2), (512, 32, 10, 2), (1024, 32, 10, 2), (512, 128, 10, 2)]


# -- in the measuring process ----------------------------------------------------------------------

def config_of(batch: int, q: int = 32, evaluations: int = 10):
    return dataclasses.replace(JOINT_PRESETS["cpu"], batch=batch, latent_dim=q, zone_steps=evaluations, jitter=0.0)


def update_seconds(batch: int, q: int, evaluations: int, zones: bool, repeats: int) -> dict:
    "Least seconds of an update of this rank, after two more: what it takes when nobody else is at work."
    config = config_of(batch, q, evaluations)
    trainer = joint_trainer(config, SHAPE, 10, 0, torch.device("cpu"))
    losses = joint_losses if zones else drawing
    trainer.begin(lambda *given: losses(config, *given, n=batch))
    generator, mine = torch.Generator().manual_seed(0), share(batch)
    images, labels = (torch.rand(batch, *SHAPE, generator=generator) * 2 - 1)[mine], (torch.arange(batch) % 10)[mine]
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        run_update(trainer, [(images, labels)], seed=0)
        times.append(time.perf_counter() - began)
    return {"seconds": min(times[2:]), "parameters": count_parameters(trainer.network)}


def zone_seconds(n: int, q: int, evaluations: int, repeats: int) -> float:
    "Least seconds of one flow of n anchors, forward and backward."
    anchors, times = torch.randn(n, q, generator=torch.Generator().manual_seed(0)).requires_grad_(), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        LatentZones(anchors, steps=evaluations).encode(noise=torch.randn(n, q)).sum().backward()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def exchange_seconds(numbers: int, repeats: int) -> float:
    "Least seconds of a sum of so many numbers over ranks."
    x, times = torch.ones(numbers), []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(x)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def work(task: str, **given) -> dict | float:
    "A task on this rank."
    torch.set_num_threads(1)
    if "RANK" in os.environ and task == "exchange": dist.init_process_group("gloo")
    return {"update": update_seconds, "zones": zone_seconds, "exchange": exchange_seconds}[task](**given)


# -- in the process that asks ----------------------------------------------------------------------

def ask(task: str, ranks: int = 1, **given) -> dict | float:
    "The task on so many processes of one thread each; what the first of them found."
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [sys.executable, *launcher, "-m", "benchmarks.scaling", str(out), json.dumps({"task": task, **given})]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
        return json.loads(out.read_text())


def sample_flops(q: int) -> float:
    "Operations of encoder and decoder for a sample, forward and backward."
    image, label = joint_trainer(config_of(2, q), SHAPE, 10, 0, torch.device("cpu")).network["image"], torch.eye(10)[:2]
    return network_flops(lambda x: image.decoder(x, torch.rand(2), latent=image.encoder(x), label=label).square().sum(), torch.randn(2, *SHAPE))


def rate_and_fixed(work: list[float], seconds: list[float]) -> tuple[float, float]:
    "Operations a second, and seconds that no operation explains; neither below zero, however busy the machine."
    (slope, fixed), _ = nnls([[amount / work[1], 1.0] for amount in work], seconds)
    if slope == 0: raise RuntimeError(f"scaling: {work[1]:.3g} operations took no longer than {work[0]:.3g} ({seconds[1]:.3g} s and {seconds[0]:.3g} s); this machine is too busy, or the sizes are too near to each other")
    return work[1] / slope, fixed


def calibrate(small: int, large: int, q: int, evaluations: int, repeats: int) -> tuple[Machine, dict]:
    "Rates from networks alone at two batches, zones alone at two sizes, and an exchange of the gradient."
    flops = sample_flops(q)
    nets = [ask("update", batch=b, q=q, evaluations=evaluations, zones=False, repeats=repeats) for b in (small, large)]
    rate, fixed = rate_and_fixed([small * flops, large * flops], [net["seconds"] for net in nets])
    zones = [ask("zones", n=n, q=q, evaluations=evaluations, repeats=repeats) for n in (small, large)]
    zone_rate, zone_fixed = rate_and_fixed([zone_flops(n, n, q, evaluations) for n in (small, large)], zones)
    exchange = ask("exchange", ranks=2, numbers=nets[0]["parameters"], repeats=repeats)
    found = Machine(rate, zone_rate, nets[0]["parameters"] * 4 / exchange, fixed, zone_fixed / evaluations)
    return found, {"flops": flops, "parameters": nets[0]["parameters"], "network_seconds": [net["seconds"] for net in nets], "zone_seconds": zones, "exchange_seconds": exchange}


def measure(updates: list = UPDATES, small: int = 64, large: int = 512, repeats: int = 9, tell: Callable = lambda text: None) -> dict:
    "The table `scaling`."
    tell("scaling: rates")
    rates, found = calibrate(small, large, 32, 10, repeats)
    rows = []
    for batch, q, evaluations, ranks in updates:
        tell(f"scaling: batch {batch}, q = {q}, {evaluations} evaluations, {ranks} ranks")
        seconds = ask("update", ranks=ranks, batch=batch, q=q, evaluations=evaluations, zones=True, repeats=repeats)
        said = Update(batch, sample_flops(q), seconds["parameters"], q, evaluations, flows=2, square=1, ranks=ranks).seconds(rates)
        rows.append({"batch": batch, "q": q, "evaluations": evaluations, "ranks": ranks, "seconds": seconds["seconds"], "predicted": said})
    protocol = {"small": small, "large": large, "repeats": repeats, "threads": 1, "shape": list(SHAPE), "preset": "cpu"}
    return {"table": "scaling", **machine.describe("cpu"), "protocol": protocol, "rates": dataclasses.asdict(rates), **found, "rows": rows}


if __name__ == "__main__":
    answer = work(**json.loads(sys.argv[2]))
    if rank_and_world()[0] == 0: Path(sys.argv[1]).write_text(json.dumps(answer))
    if dist.is_initialized(): dist.destroy_process_group()
