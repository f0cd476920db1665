"""The same comparison on a GPU, and a race of ways to compute one evaluation there."""
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks import machine, speed
from benchmarks.candidates import CANDIDATES, PRECISIONS, Question, make_question, prepared
from benchmarks.process import fresh, gauge, on_gpu, seconds

SHAPES = ((2000, 200), (8192, 256))
BARE = "products"  # the row of the matrix products alone


def set_precision(precision: str, device: str) -> None:
    "TF32 for float32 products, or not; `NotImplementedError` where the device has none."
    if precision == "tf32" and not (on_gpu(device) and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise NotImplementedError("no TF32 on this device")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def repeated(function: Callable, device: str, repeats: int) -> float:
    "Median seconds of a call; on a GPU ten calls are timed together."
    count = 10 if on_gpu(device) else 1
    def calls() -> None:
        for _ in range(count): function()
    calls()
    return median(seconds(calls, device) for _ in range(repeats)) / count


# -- one candidate in one precision ----------------------------------------------------------------

def weights_like(question: Question) -> tuple[Tensor, Tensor]:
    "Of a random linear function of the answer: `[m,q]` for the mean, `[m]` for the log-probability."
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator).to(question.y) for shape in (question.y.shape, len(question.y)))


@torch.no_grad()
def forwards(call: Callable, question: Question, precision: str) -> tuple[Tensor, Tensor | None]: return call(question, precision)


def gradients(call: Callable, question: Question, precision: str, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    "Forward and backward: derivatives by `y` and `anchors` of the answer times its weights; what there is no answer for is left out."
    parts = zip(call(question, precision), weights)
    score = sum((x * w).sum() for x, w in parts if x is not None)
    return torch.autograd.grad(score, (question.y, question.anchors))


def relative(found: Tensor, true: Tensor) -> float: return float((found.double() - true).norm() / true.norm())


def errors(call: Callable, question: Question, precision: str) -> dict:
    "Relative distances to blocked products in float64; without the gradients where the candidate has none."
    exact, trial = question.fresh(torch.float64), question.fresh()
    answer = forwards(call, question, precision)
    has = [x is not None for x in answer]
    reference = lambda *args: [x if there else None for x, there in zip(prepared("blocked")(*args), has)]
    pairs = dict(zip(("mean", "log_prob"), zip(answer, forwards(reference, exact, "fp32"))))
    no_gradient = {}
    try: mine = gradients(call, trial, precision, weights_like(trial))
    except NotImplementedError as error: no_gradient = {"no_gradient": reason(error)}
    else: pairs |= zip(("by_y", "by_anchors"), zip(mine, gradients(reference, exact, "fp32", weights_like(exact))))
    return {name: relative(*pair) for name, pair in pairs.items() if pair[0] is not None} | no_gradient


def timed(call: Callable, question: Question, precision: str, repeats: int) -> dict:
    "Errors, seconds forward, seconds and peak memory forward and backward."
    device = str(question.y.device)
    row = {"errors": errors(call, question, precision)}
    row["forward_seconds"] = repeated(lambda: forwards(call, question, precision), device, repeats)
    if "no_gradient" in row["errors"]: return row
    trial = question.fresh()
    weights = weights_like(trial)
    both = lambda: gradients(call, trial, precision, weights)
    row["both_seconds"] = repeated(both, device, repeats)
    row["peak_bytes"] = gauge(both, device)["peak_bytes"]
    return row


def bare(question: Question, precision: str, repeats: int) -> dict:
    "The seven matrix products into tensors that are there already, factors and results in one precision."
    dtype, device = torch.bfloat16 if precision == "bf16" else torch.float32, str(question.y.device)
    x, a = question.y.to(dtype), question.anchors.to(dtype)
    p = torch.rand(len(x), len(a), dtype=torch.float32, device=device).to(dtype)
    wide, long, back = torch.empty_like(p), torch.empty_like(x), torch.empty_like(a)

    def forward() -> None:
        torch.mm(x, a.T, out=wide)
        torch.mm(p, a, out=long)

    def both() -> None:
        forward()
        torch.mm(x, a.T, out=wide)
        torch.mm(x, a.T, out=wide)
        torch.mm(p, a, out=long)
        torch.mm(p.T, x, out=back)
        torch.mm(p.T, x, out=back)

    return {"errors": {}, "forward_seconds": repeated(forward, device, repeats), "both_seconds": repeated(both, device, repeats)}


def reason(error: Exception) -> str:
    "The first line of what went wrong, short enough for a table."
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= 160 else text[:160] + " …"


def try_candidate(name: str, n: int, q: int, device: str, repeats: int) -> dict:
    "{precision: numbers, or why there are none} of one candidate, n samples among n anchors."
    rows, question = {}, make_question(n, n, q, device)
    for precision in PRECISIONS:
        try:
            set_precision(precision, device)
            rows[precision] = bare(question, precision, repeats) if name == BARE else timed(prepared(name, on_gpu(device)), question, precision, repeats)
        except Exception as error: rows[precision] = {"skipped": reason(error)}  # whatever a library throws belongs into the table
    return rows


# -- the table -------------------------------------------------------------------------------------

def race(n: int, q: int, device: str, repeats: int, time_cap: float, tell: Callable) -> dict:
    "{candidate: {precision: numbers}}, each candidate in a process of its own."
    environment = {} if on_gpu(device) else {"TRITON_INTERPRET": "1"}
    found = {}
    for name in (BARE, *CANDIDATES):
        tell(f"gpu: candidate {name}, n = {n}, q = {q}")
        try: found[name] = fresh("benchmarks.gpu:try_candidate", name=name, n=n, q=q, device=device, repeats=repeats,
                                 time_cap=time_cap, environment=environment)
        except RuntimeError as error: found[name] = {"skipped": reason(error)}
        if "skipped" in found[name]: found[name] = {precision: found[name] for precision in PRECISIONS}
    return found


def measure(shapes=SHAPES, steps: int = 20, pairs: int = 9, device: str = "cuda", repeats: int = 7, baseline: bool = True,
            time_cap: float = 300, tell: Callable = lambda text: None) -> dict:
    "The table `gpu`: the comparison of the table `speed` for each shape [n,q], then the candidates for one evaluation."
    found = [speed.measure(n, q, steps, pairs, device, baseline, time_cap, tell, baseline_runs=1) for n, q in shapes]
    races = [{"n": n, "q": q, "rows": race(n, q, device, repeats, time_cap, tell)} for n, q in shapes]
    protocol = {"shapes": [list(shape) for shape in shapes], "steps": steps, "pairs": pairs, "repeats": repeats, "device": device}
    return {"table": "gpu", **machine.describe(device), "protocol": protocol,
            "speed": [{"protocol": one["protocol"], "rows": one["rows"]} for one in found], "candidates": races}
