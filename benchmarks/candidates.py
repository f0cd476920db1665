"""Ways to compute one evaluation of the slope, and its way back: candidates for a GPU.

Each takes a `Question` and returns the posterior mean `[m,q]` and each sample's log-probability of its target `[m]`, or
None for the second where the interface does not give the log-sum-exp. All are differentiable in `y` and `anchors`, the
anchors' part in the bias included. A candidate that cannot do something raises `NotImplementedError`.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lzn_nb.flow import block_size, integrate, plan_course

PRECISIONS = ("fp32", "tf32", "bf16")
Answer = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Question:
    "Samples `y` `[m,q]` at `lam` among `anchors` `[n,q]` of equal weight, and whose probability is asked for."
    y: Tensor
    lam: float
    anchors: Tensor
    target: Tensor  # `[m]`

    @property
    def bias(self) -> Tensor:
        "-λ²‖a‖²/2 `[n]`, in the precision of the anchors."
        return -(self.lam**2) / 2 * self.anchors.square().sum(1)

    def log_prob(self, log_sum: Tensor) -> Tensor:
        "From the log-sum-exp `[m]`: the target's logit needs one dot product, in full precision."
        own = self.lam * torch.linalg.vecdot(self.y, self.anchors[self.target])
        return own + self.bias[self.target] - log_sum

    def fresh(self, dtype: torch.dtype = torch.float32, grad: bool = True) -> "Question":
        "A copy to differentiate."
        y, anchors = (x.detach().to(dtype, copy=True).requires_grad_(grad) for x in (self.y, self.anchors))
        return replace(self, y=y, anchors=anchors)


def make_question(m: int, n: int, q: int, device: str) -> Question:
    "Gaussian anchors, and samples on their way to the first m of them, at a λ where many zones compete."
    generator = torch.Generator().manual_seed(0)
    anchors, noise = torch.randn(n, q, generator=generator), torch.randn(m, q, generator=generator)
    lam = math.sqrt(2 * math.log(n) / (2 * q))  # the own anchor is about as likely as all others together
    target = torch.arange(m) % n
    return Question((noise + lam * anchors[target]).to(device), lam, anchors.to(device), target.to(device))


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    "a @ b with a result in the precision of `a`; bf16 rounds the factors, and adds up in float32."
    if precision != "bf16": return a @ b
    a, b = a.bfloat16(), b.bfloat16()
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


# -- products, block by block ----------------------------------------------------------------------

class Blocked(torch.autograd.Function):
    "A block of rows at a time, nothing of the size `[m,n]` kept: posterior mean and log-sum-exp, and both backwards."
    @staticmethod
    def forward(ctx, query, anchors, bias, precision, block):
        means, sums = torch.empty_like(query), query.new_empty(len(query))
        for start in range(0, len(query), block):
            rows = slice(start, start + block)
            logits = product(query[rows], anchors.T, precision) + bias
            sums[rows] = logits.logsumexp(1)
            means[rows] = product(torch.exp_(logits - sums[rows, None]), anchors, precision)
        ctx.save_for_backward(query, anchors, bias, means, sums)
        ctx.precision, ctx.block = precision, block
        return means, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_sum):
        return *pull_back(*ctx.saved_tensors, g, g_sum, ctx.precision, ctx.block), None, None


def pull_back(query: Tensor, anchors: Tensor, bias: Tensor, means: Tensor, sums: Tensor, g: Tensor, g_sum: Tensor,
              precision: str, block: int) -> tuple[Tensor, Tensor, Tensor]:
    "From the derivatives by mean and log-sum-exp to those by query `[m,q]`, anchors `[n,q]` and bias `[n]`: five products a block."
    by_query, by_anchors, by_bias = torch.empty_like(query), torch.zeros_like(anchors), torch.zeros_like(bias)
    for start in range(0, len(query), block):
        rows = slice(start, start + block)
        prob = torch.exp_(product(query[rows], anchors.T, precision) + bias - sums[rows, None])
        along = (torch.linalg.vecdot(g[rows], means[rows]) - g_sum[rows])[:, None]
        by_logits = product(g[rows], anchors.T, precision).sub_(along).mul_(prob)
        by_query[rows] = product(by_logits, anchors, precision)
        by_anchors += product(prob.T, g[rows], precision) + product(by_logits.T, query[rows], precision)
        by_bias += by_logits.sum(0)
    return by_query, by_anchors, by_bias


def blocked(question: Question, precision: str) -> Answer:
    "Two matrix products a block of rows, softmax between them."
    block = block_size(len(question.anchors), question.y.device)
    mean, log_sum = Blocked.apply(question.lam * question.y, question.anchors, question.bias, precision, block)
    return mean, question.log_prob(log_sum)


def library(question: Question, precision: str) -> Answer:
    "What `LatentZones` calls, with its bookkeeping of states and steps."
    if precision == "bf16": raise NotImplementedError("the library has no bf16")
    course, n = plan_course([question.lam]), len(question.anchors)
    log_weights, block = question.anchors.new_zeros(n), block_size(n, question.y.device)
    ways = [integrate(y, course, question.anchors, log_weights, target=target)
            for y, target in zip(question.y.split(block), question.target.split(block))]
    return torch.cat([way.slope for way in ways]), torch.cat([way.log_prob[0] for way in ways])


# -- attention of PyTorch --------------------------------------------------------------------------

def as_heads(*tensors: Tensor, precision: str) -> list[Tensor]:
    "One batch, one head: `[1,1,m,q]`."
    return [(x.bfloat16() if precision == "bf16" else x)[None, None] for x in tensors]


def sdpa(question: Question, precision: str) -> Answer:
    "`scaled_dot_product_attention` with the bias as an additive mask; it keeps the log-sum-exp to itself."
    query, keys, bias = as_heads(question.lam * question.y, question.anchors, question.bias[None], precision=precision)
    mask = bias.expand(1, 1, query.shape[2], -1)
    return F.scaled_dot_product_attention(query, keys, keys, mask, scale=1.0)[0, 0].to(question.y.dtype), None


def sdpa_columns(question: Question, precision: str) -> Answer:
    "The same without a mask: the bias as three more columns of the keys, each what bf16 left of it, beside ones in the query."
    query, keys, rest = question.lam * question.y, question.anchors, question.bias
    parts = []
    for _ in range(3):
        parts.append(rest.bfloat16().to(rest.dtype))
        rest = rest - parts[-1]
    pad = -(query.shape[1] + 3) % 8  # fused kernels want multiples of 8
    more = torch.stack([*parts, *[torch.zeros_like(rest)] * pad], 1)
    query = torch.cat([query, query.new_ones(len(query), 3), query.new_zeros(len(query), pad)], 1)
    query, keys, values = as_heads(query, torch.cat([keys, more], 1), F.pad(keys, (0, 3 + pad)), precision=precision)
    mean = F.scaled_dot_product_attention(query, keys, values, scale=1.0)[0, 0]
    return mean[:, :question.y.shape[1]].to(question.y.dtype), None


def flex_call(compiled: bool) -> Callable:
    "FlexAttention, compiled anew for a GPU; without compilation it builds all logits."
    from torch.nn.attention import flex_attention as module

    with_sum = {"return_aux": module.AuxRequest(lse=True)} if hasattr(module, "AuxRequest") else {"return_lse": True}
    attention = module.flex_attention
    if compiled:
        torch._dynamo.reset()  # what was compiled before keeps its precision of matrix products
        attention = torch.compile(attention, dynamic=False)

    def call(*args, **options) -> tuple[Tensor, Tensor]:
        mean, more = attention(*args, **options, **with_sum)
        return mean, getattr(more, "lse", more)

    return call


def flex(question: Question, precision: str, call: Callable) -> Answer:
    "FlexAttention with the bias added to the scores; it returns the log-sum-exp."
    query, keys = as_heads(question.lam * question.y, question.anchors, precision=precision)
    bias = question.bias
    add_bias = lambda score, batch, head, row, column: score + bias[column]
    mean, log_sum = call(query, keys, keys, score_mod=add_bias, scale=1.0)
    return mean[0, 0].to(question.y.dtype), question.log_prob(log_sum[0, 0].to(question.y.dtype))


# -- a Triton kernel -------------------------------------------------------------------------------

def triton(question: Question, precision: str) -> Answer:
    "Our own fused forward pass; on the way back the blocked products, from its log-sum-exp."
    try: from benchmarks.triton_kernel import Fused
    except ImportError as error: raise NotImplementedError(f"no Triton here ({error})") from None
    block = block_size(len(question.anchors), question.y.device)
    mean, log_sum = Fused.apply(question.lam * question.y, question.anchors, question.bias, precision, block)
    return mean, question.log_prob(log_sum)


CANDIDATES = {"library": library, "blocked": blocked, "sdpa": sdpa, "sdpa-columns": sdpa_columns, "flex": flex, "triton": triton}


def prepared(name: str, gpu: bool = False) -> Callable:
    "The candidate called `name`, with what has to happen only once done."
    return partial(flex, call=flex_call(compiled=gpu)) if name == "flex" else CANDIDATES[name]
