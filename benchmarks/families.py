"""Six families of anchors on which solvers are compared, and their exact latents."""
import math

import torch
from torch import Tensor

N = 300  # anchors in each


def gaussian(q: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    "Anchors `[n,q]` without structure."
    return scale * torch.randn(N, q, generator=generator, dtype=torch.float64)


def clusters(q: int, generator: torch.Generator) -> Tensor:
    "Anchors `[n,q]` in ten clusters: two scales of distance."
    centres = 1.5 * torch.randn(10, q, generator=generator, dtype=torch.float64)
    return centres.repeat(N // 10, 1) + gaussian(q, generator, 0.3)


FAMILIES = {
    "gaussian-q200": lambda g: gaussian(200, g),
    "small-q200": lambda g: gaussian(200, g, 0.3),
    "clusters-q200": lambda g: clusters(200, g),
    "gaussian-q16": lambda g: gaussian(16, g),
    "clusters-q16": lambda g: clusters(16, g),
    "gaussian-q2": lambda g: gaussian(2, g),  # crowded: some neighbours are nearly the same point
}


def family(name: str, seed: int) -> tuple[Tensor, Tensor]:
    "Anchors and noise, both `[n,q]` float64, of the family called `name`; `ValueError` for a name that is none."
    if name not in FAMILIES: raise ValueError(f"name: got {name!r}, wanted one of {list(FAMILIES)}")
    generator = torch.Generator().manual_seed(seed)
    anchors = FAMILIES[name](generator)
    return anchors, torch.randn(anchors.shape, generator=generator, dtype=torch.float64)


def truth(
    anchors: Tensor,      # `[n,q]` float64, n ≥ 2, all distinct, equal weights
    noise: Tensor,        # `[n,q]` float64
    steps: int = 500,     # of four evaluations each; 250 would do for 1e-8
    reach: float = 12.0,  # zones compete for λ up to reach / (distance of the nearest other anchor)
) -> Tensor:              # latents `[n,q]`
    """Exact latents of all anchors, as far as float64 goes: classical Runge–Kutta of fourth order in λ = t/(1-t).

    The state is the noise that the position implies, u = s/(1-t) - λ·own: it stands still, du/dλ = m - own = 0, wherever
    the own zone is certain. Each sample starts at the end of its own window. Nodes are uniform in log(1 + λ·spread), so
    that the scales at which far and near neighbours compete get their equal shares. `ValueError` for copies among the
    anchors, or a single one.
    """
    with torch.no_grad():
        x = anchors - anchors.mean(0)
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        half_squares = distances.square() / 2
        nearest = distances.fill_diagonal_(math.inf).amin(1, keepdim=True)
        if not (0 < nearest).all() or nearest.isinf().any():
            raise ValueError(f"anchors: got {len(x)}, nearest distance {float(nearest.min()):g}, wanted at least two, all distinct")
        spread = x.square().sum(1).mean().sqrt()
        far = torch.log1p(reach / nearest * spread)
        eye = torch.eye(len(x), dtype=x.dtype)

        def slope(u: Tensor, lam: Tensor) -> Tensor:
            return ((lam * (u @ x.T) - lam**2 * half_squares).softmax(1) - eye) @ x

        u = noise
        for k in range(steps):
            lam, stop = (torch.expm1(far * (1 - j / steps)) / spread for j in (k, k + 1))
            h, middle = stop - lam, (lam + stop) / 2
            k1 = slope(u, lam)
            k2 = slope(u + h / 2 * k1, middle)
            k3 = slope(u + h / 2 * k2, middle)
            k4 = slope(u + h * k3, stop)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return u


def relative_error(z: Tensor, true: Tensor) -> float:
    "‖z - true‖ / ‖true‖, both norms over all samples together."
    return float((z - true).norm() / true.norm())
