"""Time and memory of a representation batch, latents then alignment, forward and backward, against its size."""
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.process import fresh, gauge, too_large
from benchmarks.published import euler_alignment, euler_latents
from benchmarks.speed import CUTOFF, inputs, published_bytes
from lzn_nb.alignment import alignment_loss
from lzn_nb.zones import LatentZones

SIZES = (256, 512, 1000, 2048, 4096, 8192, 16384)
CLAIM = {"n": 8192, "bytes": 4e9}  # the paper's batch, forward and backward, in 4 GB


def batch(whose: str, n: int, q: int, steps: int, device: str) -> Callable:
    "Two views of n samples: latents of the first through the zones of the second, each into that of its own sample. Returns both gradients."
    first, noise, second = inputs(n, q, device)
    target = torch.arange(n, device=device)

    def work() -> tuple[Tensor, Tensor]:
        a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
        if whose == "ours":
            z = LatentZones(a, steps=steps).encode(noise=noise)
            loss = alignment_loss(z, LatentZones(b, steps=steps), target, cutoff=CUTOFF)
        else:
            z = euler_latents(a, None, noise, steps)
            loss = euler_alignment(z, b, target, steps, CUTOFF)
        loss.backward()
        return a.grad, b.grad

    return work


def alone(whose: str, n: int, q: int, steps: int, device: str) -> dict:
    "Seconds and peak memory of one batch, after a small one to start the machinery."
    batch(whose, 16, q, 2, device)()
    return gauge(batch(whose, n, q, steps, device), device)


def series(whose: str, sizes: tuple[int, ...], q: int, steps: int, device: str, time_cap: float, tell: Callable) -> dict:
    "{n: seconds and bytes}, the time growing as n²: what would pass the cap is not started."
    found, rate = {}, 0.0
    for n in sizes:
        expected = rate * n * n
        why = too_large(published_bytes(n, q, steps), device) if whose == "published" else None
        if why or expected > time_cap:
            found[str(n)] = {"skipped": why or f"not tried (would take about {expected / 60:.0f} minutes)"}
            continue
        tell(f"memory: {whose}, n = {n}" + (f", about {expected:.0f} s" if expected > 5 else ""))
        row = fresh("benchmarks.memory:alone", whose=whose, n=n, q=q, steps=steps, device=device, time_cap=2 * time_cap)
        if "seconds" in row: rate = row["seconds"] / n**2
        found[str(n)] = row
    return found


def measure(sizes: tuple[int, ...] = SIZES, q: int = 256, steps: int = 20, device: str = "cpu", baseline: bool = True,
            time_cap: float = 900, tell: Callable = lambda text: None) -> dict:
    "The table `memory`, in float32; each point in a process of its own."
    rows = {"ours": series("ours", sizes, q, steps, device, time_cap, tell)}
    if baseline: rows["published"] = series("published", sizes, q, steps, device, time_cap, tell)
    protocol = {"sizes": list(sizes), "q": q, "steps": steps, "dtype": "float32", "device": device, "cutoff": CUTOFF,
                "claim": CLAIM, "time_cap": time_cap}
    return {"table": "memory", **machine.describe(device), "protocol": protocol, "rows": rows}
