"""One evaluation as a single Triton kernel: a flash-style pass over the anchors with a bias for each of them.

Needs the package `triton` and a GPU, or `TRITON_INTERPRET=1` in the environment before the first import, which runs the
kernel slowly on the CPU to check its numbers.
"""
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.candidates import Blocked

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward_kernel(query, anchors, bias, mean, log_sum, m, n, q,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """ROWS samples go over all anchors, COLUMNS at a time, keeping the running maximum, sum and weighted mean.

    WIDTH is q filled up to a power of two. Exponentials are of base 2, so logits come times log2(e): the query already,
    the bias here. HALF rounds the factors of both products to bf16; they are added up in float32.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    width, columns = tl.arange(0, WIDTH), tl.arange(0, COLUMNS)
    x = tl.load(query + rows[:, None] * q + width[None, :], mask=(rows[:, None] < m) & (width[None, :] < q), other=0.0)
    if HALF: x = x.to(tl.bfloat16)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, n, COLUMNS):
        inside = start + columns < n
        a = tl.load(anchors + (start + columns)[:, None] * q + width[None, :], mask=inside[:, None] & (width[None, :] < q), other=0.0)
        if HALF: a = a.to(tl.bfloat16)
        b = tl.load(bias + start + columns, mask=inside, other=float("-inf"))
        logits = tl.dot(x, tl.trans(a), input_precision=PRECISION) + b[None, :]
        higher = tl.maximum(top, tl.max(logits, 1))
        prob = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(prob, 1)
        found = found * shrink[:, None]
        if HALF: prob = prob.to(tl.bfloat16)
        found = tl.dot(prob, a, found, input_precision=PRECISION)
        top = higher
    tl.store(mean + rows[:, None] * q + width[None, :], found / total[:, None], mask=(rows[:, None] < m) & (width[None, :] < q))
    tl.store(log_sum + rows, (top + tl.log2(total)) / LOG2_E, mask=rows < m)


def forward(query: Tensor, anchors: Tensor, bias: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    "Posterior mean `[m,q]` and log-sum-exp `[m]` of float32 `query` `[m,q]`, `anchors` `[n,q]` and `bias` `[n]`."
    if not query.is_cuda:
        if os.environ.get("TRITON_INTERPRET") != "1": raise NotImplementedError("Triton on the CPU wants TRITON_INTERPRET=1")
        if precision == "bf16": raise NotImplementedError("Triton's interpreter has no bf16")
    (m, q), n = query.shape, len(anchors)
    mean, log_sum = torch.empty_like(query), query.new_empty(m)
    half, width = precision == "bf16", max(16, triton.next_power_of_2(q))
    rows, columns = (128, 64) if half else (64, 32)  # what fits into a processor's shared memory at q = 256
    forward_kernel[(triton.cdiv(m, rows),)](
        (query * LOG2_E.value).contiguous(), anchors.contiguous(), (bias * LOG2_E.value).contiguous(), mean, log_sum, m, n, q,
        ROWS=rows, COLUMNS=columns, WIDTH=width, HALF=half, PRECISION="tf32" if precision == "tf32" else "ieee", num_warps=8, num_stages=2)
    return mean, log_sum


class Fused(Blocked):
    "The kernel forwards, blocked matrix products backwards."
    @staticmethod
    def forward(ctx, query, anchors, bias, precision, block):
        mean, log_sum = forward(query, anchors, bias, precision)
        ctx.save_for_backward(query, anchors, bias, mean, log_sum)
        ctx.precision, ctx.block = precision, block
        return mean, log_sum
