"""Zones of a whole data set: latents and assignments of many queries among very many anchors, without gradients."""
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.process import fresh, gauge, seconds
from lzn_nb.flow import block_size
from lzn_nb.zones import LatentZones


def block_rate(block: int, n: int, q: int, device: str, repeats: int) -> float:
    "Floating-point operations a second of the two products of one block of queries in one evaluation, X Aᵀ and P A."
    x, a, p = torch.randn(block, q, device=device), torch.randn(n, q, device=device), torch.rand(block, n, device=device).div_(n)
    wide, long = torch.empty(block, n, device=device), torch.empty(block, q, device=device)

    def products() -> None:
        torch.mm(x, a.T, out=wide)
        torch.mm(p, a, out=long)

    products()
    return 4 * block * n * q / median(seconds(products, device) for _ in range(repeats))


@torch.no_grad()
def run(m: int, n: int, q: int, steps: int, device: str, repeats: int) -> dict:
    "Rate of the bare products before and after, and in between the latents of m anchors, of m guests, and the former's way back, each gauged."
    generator = torch.Generator().manual_seed(0)
    anchors, noise, guests = (torch.randn(k, q, generator=generator).to(device) for k in (n, m, m))
    index = torch.randperm(n, generator=generator)[:m].to(device)
    block, kept = min(m, block_size(n, anchors.device)), {}
    small = LatentZones(anchors[:16], steps=steps)
    small.decode(small.encode(noise=anchors[:16]))  # starts the machinery
    rates, zones = [block_rate(block, n, q, device, repeats)], LatentZones(anchors, steps=steps)

    def encode() -> None: kept["z"] = zones.encode(index, noise, progress=True)
    def outside() -> None: zones.encode(points=guests, noise=noise, progress=True)
    def distances() -> Tensor: return zones.distances
    def decode() -> None: kept["index"] = zones.decode(kept["z"], progress=True)

    parts = {}
    for name, function in (("encode", encode), ("guests", outside), ("distances", distances), ("decode", decode)):
        parts[name] = gauge(function, device)
        rates.append(block_rate(block, n, q, device, repeats))
    at_home = float((kept["index"] == index).float().mean())
    return {"parts": parts, "flops_per_second": rates, "block": block, "at_home": at_home}


def measure(m: int = 10_000, n: int = 50_000, q: int = 200, steps: int = 10, device: str = "cpu", repeats: int = 5, time_cap: float = 3600,
            tell: Callable = lambda text: None) -> dict:
    "The table `full-set`, in float32. The time of the bare products is that of a few blocks, scaled up to all 4 m n q operations an evaluation."
    tell(f"full-set: {m} queries among {n} anchors")
    found = fresh("benchmarks.full_set:run", m=m, n=n, q=q, steps=steps, device=device, repeats=repeats, time_cap=time_cap)
    protocol = {"m": m, "n": n, "q": q, "steps": steps, "dtype": "float32", "device": device, "repeats": repeats}
    result = {"table": "full-set", **machine.describe(device), "protocol": protocol, **found}
    if "skipped" in found: return result
    result["flops"] = 4 * m * n * q * steps
    for i, name in enumerate(("encode", "guests", "distances", "decode")):  # each between two measurements of the rate
        if name == "distances": continue
        around = sum(found["flops_per_second"][i:i + 2]) / 2
        result["parts"][name] |= {"bare_seconds": result["flops"] / around, "ratio": result["parts"][name]["seconds"] * around / result["flops"]}
    return result
