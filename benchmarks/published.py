"""The published implementation's solvers, written in the straightforward way: what the library is measured against.

Time runs from 0 (the Gaussian) to 1 (the anchors). States are positions s on the path s = (1-t) noise + t anchor.
Everything computes in the precision of its arguments and is differentiable in the anchors, the noise and z.
`form` chooses how the posterior is computed: "broadcast" as published, with a tensor of all differences `[m,n,q]`, or
"attention", two matrix products. The second gives the same numbers in float64 for a fraction of the work, and serves to
measure accuracy; in float32 it can lose close neighbours, as it takes the difference of numbers up to 1e8 large.
"""
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

FORMS = ("broadcast", "attention")


def uniform_log_weights(anchors: Tensor) -> Tensor:
    "Equal weights `[n]`: only differences of log-weights count, so zeros."
    return anchors.new_zeros(len(anchors))


def logits_broadcast(s: Tensor, t: float, anchors: Tensor, log_weights: Tensor) -> Tensor:
    "log w_l - ‖s - t a_l‖²/(2(1-t)²), `[m,n]`, from all differences `[m,n,q]`."
    differences = s[:, None, :] - t * anchors[None, :, :]
    return log_weights - differences.square().sum(2) / (2 * (1 - t) ** 2)


def logits_attention(s: Tensor, t: float, anchors: Tensor, log_weights: Tensor) -> Tensor:
    "The same, multiplied out, less the part ‖s‖²/(2(1-t)²) that all anchors share."
    return log_weights + (t * (s @ anchors.T) - t**2 * anchors.square().sum(1) / 2) / (1 - t) ** 2


def posterior(s: Tensor, t: float, anchors: Tensor, log_weights: Tensor, form: str = "broadcast") -> tuple[Tensor, Tensor]:
    "Posterior mean of the anchor `[m,q]` and the anchors' probabilities `[m,n]` at positions `s` `[m,q]`, 0 ≤ `t` < 1 [§2.2.1]."
    if form not in FORMS: raise ValueError(f"form: got {form!r}, wanted one of {FORMS}")
    if form == "attention":
        prob = logits_attention(s, t, anchors, log_weights).softmax(1)
        return prob @ anchors, prob
    prob = logits_broadcast(s, t, anchors, log_weights).softmax(1)
    return (prob[:, :, None] * anchors[None, :, :]).sum(1), prob


def posterior_mean_broadcast(s: Tensor, t: float, anchors: Tensor, log_weights: Tensor) -> Tensor:
    "Posterior mean of the anchor `[m,q]`, by way of all differences `[m,n,q]`."
    return posterior(s, t, anchors, log_weights, "broadcast")[0]


def evaluate(checkpoint: bool, function, *args):
    "`function(*args)`; with `checkpoint` its intermediate tensors are thrown away and computed again in the backward pass."
    return recompute(function, *args, use_reentrant=False) if checkpoint else function(*args)


def start_near_anchors(anchors: Tensor, index: Tensor | None, noise: Tensor, gap: float) -> Tensor:
    "Positions `[m,q]` at t = 1 - gap: `gap` parts of noise, the rest the own anchor. `index` None: all anchors in order."
    own = anchors if index is None else anchors[index]
    return gap * noise + (1 - gap) * own


# -- Euler -----------------------------------------------------------------------------------------

def velocity(s: Tensor, t: float, anchors: Tensor, log_weights: Tensor, form: str = "broadcast") -> tuple[Tensor, Tensor]:
    "ds/dt `[m,q]` at positions `s` `[m,q]`, and the probabilities `[m,n]` that it came from."
    mean, prob = posterior(s, t, anchors, log_weights, form)
    return (mean - s) / (1 - t), prob


def euler_latents(
    anchors: Tensor,         # `[n,q]`
    index: Tensor | None,    # `[m]`: of which anchors (None: all)
    noise: Tensor,           # `[m,q]`
    steps: int = 20,         # as many evaluations
    gap: float = 1e-4,       # start at t = 1 - gap
    checkpoint: bool = True, # recompute each evaluation in the backward pass, as published
    form: str = "broadcast",
) -> Tensor:                 # latents `[m,q]`
    "Anchors to Gaussian by Euler with equal steps in time, from t = 1 - gap to 0 [App. A]."
    log_weights = uniform_log_weights(anchors)
    s, h = start_near_anchors(anchors, index, noise, gap), (1 - gap) / steps
    for k in range(steps):
        t = (1 - gap) * (1 - k / steps)
        s = s - h * evaluate(checkpoint, velocity, s, t, anchors, log_weights, form)[0]
    return s


def euler_decode(z: Tensor, anchors: Tensor, steps: int, log_weights: Tensor | None = None,
                 checkpoint: bool = True, form: str = "broadcast") -> tuple[Tensor, Tensor]:
    "Gaussian to anchors by Euler: the end points `[m,q]` at t = 1, and the probabilities `[r,m,c]` at t = k/r, k < r."
    if log_weights is None: log_weights = uniform_log_weights(anchors)
    s, probs = z, []
    for k in range(steps):
        v, prob = evaluate(checkpoint, velocity, s, k / steps, anchors, log_weights, form)
        s = s + v / steps
        probs.append(prob)
    return s, torch.stack(probs)


def euler_alignment(
    z: Tensor,         # latents `[m,q]`
    anchors: Tensor,   # `[c,q]`
    target: Tensor,    # `[m]`: into which anchor's zone each latent should fall
    steps: int,
    cutoff: float,     # this share of the steps, the first ones, is ignored
    log_weights: Tensor | None = None,
    log: bool = True,  # log form; False: probability form
    checkpoint: bool = True,
    form: str = "broadcast",
) -> Tensor:           # scalar
    """Alignment loss: -mean log (or -mean) of each target's best probability on the way, from the stack of all `[r,m,c]` [§2.2.2].

    The logarithm is taken of the probability, as published: infinite where the probability underflows.
    """
    probs = euler_decode(z, anchors, steps, log_weights, checkpoint, form)[1]
    best = probs[int(steps * cutoff):, torch.arange(len(z)), target].amax(0)
    return -(best.log() if log else best).mean()


# -- DPM-Solver++, multistep, third order ----------------------------------------------------------

def half_log_ratio(t: float) -> float:
    "log(t/(1-t)): half the log of the signal-to-noise ratio, the solver's own time."
    return float(torch.tensor(t / (1 - t), dtype=torch.float64).log())


def dpm_update(s: Tensor, times: list[float], means: list[Tensor], stop: float, order: int) -> Tensor:
    """One step of `s` `[m,q]` to the time `stop`, from data predictions `means` at `times`, the latest first.

    Order 2 is the midpoint-like form, order 3 the Taylor form. The exact solution for a constant prediction is in all of
    them; the other terms correct for its first and second derivative in the solver's time.
    """
    l = [half_log_ratio(t) for t in times[:order]]
    h = half_log_ratio(stop) - l[0]
    phi1 = float(torch.tensor(-h, dtype=torch.float64).expm1())
    s = (1 - stop) / (1 - times[0]) * s - stop * phi1 * means[0]
    if order == 1: return s
    r0 = (l[0] - l[1]) / h
    slope0 = (means[0] - means[1]) / r0
    if order == 2: return s - stop * phi1 / 2 * slope0
    r1 = (l[1] - l[2]) / h
    slope1 = (means[1] - means[2]) / r1
    first = slope0 + r0 / (r0 + r1) * (slope0 - slope1)
    second = (slope0 - slope1) / (r0 + r1)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 1 / 2
    return s + stop * (phi2 * first - phi3 * second)


def dpm(s: Tensor, times: list[float], anchors: Tensor, log_weights: Tensor, checkpoint: bool, form: str) -> tuple[Tensor, Tensor]:
    "Follow `s` `[m,q]` over `times`, one evaluation a step: the last state, and the probabilities `[r,m,n]`."
    steps, past, means, probs = len(times) - 1, [], [], []
    for k, (t, stop) in enumerate(zip(times, times[1:])):
        mean, prob = evaluate(checkpoint, posterior, s, t, anchors, log_weights, form)
        past, means = [t, *past][:3], [mean, *means][:3]
        order = min(3, k + 1)
        if steps < 10: order = min(order, steps - k)  # few steps: lower order again at the end
        s = dpm_update(s, past, means, stop, order)
        probs.append(prob)
    return s, torch.stack(probs)


def dpm_times(gap: float, steps: int) -> list[float]:
    "Equal steps in time from `gap` to 1 - gap."
    return torch.linspace(gap, 1 - gap, steps + 1, dtype=torch.float64).tolist()


def dpm_latents(anchors: Tensor, index: Tensor | None, noise: Tensor, steps: int = 20, gap: float = 1e-3,
                checkpoint: bool = True, form: str = "broadcast") -> Tensor:
    """Anchors to Gaussian by DPM-Solver++, arguments as in `euler_latents`; equal steps from t = 1 - gap to t = gap.

    As published, the state at t = gap is taken for the latent.
    """
    s = start_near_anchors(anchors, index, noise, gap)
    return dpm(s, dpm_times(gap, steps)[::-1], anchors, uniform_log_weights(anchors), checkpoint, form)[0]


def dpm_decode(z: Tensor, anchors: Tensor, steps: int, log_weights: Tensor | None = None, gap: float = 1e-3,
               checkpoint: bool = True, form: str = "broadcast") -> tuple[Tensor, Tensor]:
    "Gaussian to anchors by DPM-Solver++, `z` `[m,q]` taken at t = gap: states `[m,q]` at t = 1 - gap, and probabilities `[r,m,c]`."
    if log_weights is None: log_weights = uniform_log_weights(anchors)
    return dpm(z, dpm_times(gap, steps), anchors, log_weights, checkpoint, form)
