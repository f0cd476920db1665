"""Networks: at any size that fits, with samples kept apart and clear answers to what does not fit."""
import math

import pytest
import torch
from torch import nn

from lzn_nb.nets import LogTime, ResBlock, SelfAttention, UNetDecoder, UNetEncoder, fit_levels, group_norm, resample, time_embedding


@torch.no_grad()
def filled(network):
    "Weights that leave no branch asleep, from a formula rather than a generator, so that they are the same under any version; float64."
    for k, weight in enumerate(network.double().eval().parameters()):
        wave = torch.sin(torch.arange(1, weight.numel() + 1, dtype=torch.float64) * (1 + 0.1 * k) + k).reshape(weight.shape)
        weight.copy_(wave * (2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.1 * wave + (weight == 1))
    return network


def inputs(b=2, channels=3, size=16, q=12, classes=5):
    wave = torch.sin(torch.arange(b * channels * size**2, dtype=torch.float64) * 0.7).reshape(b, channels, size, size)
    latent = torch.cos(torch.arange(b * q, dtype=torch.float64)).reshape(b, q)
    return wave, torch.linspace(0.3, 0.9, b, dtype=torch.float64), latent, torch.eye(classes, dtype=torch.float64)[torch.arange(b) % classes]


def small(kind, attention=(8,), **changes):
    options = dict(width=16, mults=(1, 2), blocks=1, attention=attention) | changes
    return UNetEncoder(3, 16, 12, tap=4, hidden=24, **options) if kind == "encoder" else UNetDecoder(3, 16, latent_dim=12, classes=5, **options)


# -- architecture -----------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 18, 50, 127, 128, 144, 200, 512])
def test_groups_divide_any_width_and_are_the_published_ones_where_those_divide(channels):
    groups, published = group_norm(channels).num_groups, max(1, min(channels // 4, 32))
    assert channels % groups == 0 and groups <= published
    assert groups == published or channels % published


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 12, 14, 20, 28, 32, 36])
def test_levels_that_fit_make_networks_that_work(size):
    mults = fit_levels(size, (1, 2, 2, 2))
    assert mults == (1, 2, 2, 2)[:len(mults)] and (len(mults) == 1 or size // 2 ** (len(mults) - 1) >= 4)
    options = dict(width=6, mults=mults, blocks=2, attention=(size, size // 2))
    x = torch.zeros(2, 1, size, size)
    assert UNetDecoder(1, size, **options)(x, torch.zeros(2)).shape == x.shape
    assert UNetEncoder(1, size, 3, **options)(x).shape == (2, 3)


def test_attention_is_the_softmax_formula_and_blind_to_order():
    block = filled(SelfAttention(8))
    x = inputs(channels=8, size=4)[0]
    h = block.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (h @ layer.weight[:, :, 0, 0].T + layer.bias for layer in (block.query, block.key, block.value))
    h = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v
    wanted = (x.flatten(2).transpose(1, 2) + h @ block.out.weight[:, :, 0, 0].T + block.out.bias) / math.sqrt(2)
    assert torch.allclose(block(x).flatten(2).transpose(1, 2), wanted, atol=1e-12)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = block(x.flatten(2)[:, :, order].reshape(x.shape)).flatten(2)
    assert torch.allclose(shuffled, block(x).flatten(2)[:, :, order], atol=1e-12)


def test_weights_start_with_the_published_variances():
    torch.manual_seed(0)
    block, attention = ResBlock(64, 64, embed=256), SelfAttention(64)
    maps = (attention.query, attention.key, attention.value)
    fans = [(block.conv1.weight, 9 * 128, 1), (block.embed.weight, 320, 1), *[(layer.weight, 128, 0.1) for layer in maps]]
    for weight, fan_sum, scale in fans: assert weight.var().item() == pytest.approx(2 * scale / fan_sum, rel=0.06)
    assert max(block.conv2.weight.abs().max(), attention.out.weight.abs().max()) < 1e-5
    assert not any(w.any() for name, w in (*block.named_parameters(), *attention.named_parameters()) if name.endswith("bias"))


def test_untrained_decoder_is_silent_and_encoder_is_not():
    torch.manual_seed(0)
    x, t, latent, label = (v.float() for v in inputs())
    assert small("decoder")(x, t, latent, label).abs().max() < 1e-3
    assert small("encoder")(x).std() > 1e-2


def large(kind, **changes): return small(kind, smooth=True, pyramid=True, **({"log_time": True} if kind == "decoder" else {"tap_sizes": (8,)}) | changes)


@pytest.mark.parametrize("how", ["up", "down"])
def test_smooth_resampling_is_the_filter_written_out(how):
    x = inputs(channels=2, size=6)[0]
    row = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
    kernel = torch.outer(row, row) / row.sum() ** 2
    if how == "up":
        spread = torch.zeros(2, 2, 12, 12, dtype=torch.float64)
        spread[:, :, ::2, ::2] = 4 * x
        padded = nn.functional.pad(spread, (2, 1, 2, 1))
        wanted = sum(kernel[i, j] * padded[:, :, i:i + 12, j:j + 12] for i in range(4) for j in range(4))
    else:
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        wanted = sum(kernel[i, j] * padded[:, :, i:i + 6:2, j:j + 6:2][:, :, :3, :3] for i in range(4) for j in range(4))
    assert torch.allclose(resample(x, how, smooth=True), wanted, atol=1e-12)
    assert resample(x, None, smooth=True) is x


def test_log_time_is_the_formula_and_fixed():
    time, t = LogTime(8).double(), torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    angles = 2 * math.pi * torch.log(999 * t)[:, None] * time.frequencies
    assert torch.allclose(time(t), torch.cat([angles.sin(), angles.cos()], 1)) and not time.frequencies.requires_grad


def test_large_decoder_answers_finely_late_and_says_when_it_can_be_asked():
    torch.manual_seed(0)
    decoder, (x, t, latent, label) = filled(large("decoder")), inputs()
    decoder.log_time.frequencies.data.zero_()  # then time enters by the division alone
    half, whole = (decoder(x, torch.full_like(t, v), latent, label) for v in (0.5, 1.0))
    assert torch.allclose(half, 2 * whole) and decoder.t_min == 1e-3 and small("decoder").t_min == 0
    assert decoder(x, torch.full_like(t, 1e-3), latent, label).isfinite().all()


# -- behaviour --------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [small, large])
def test_every_weight_and_every_input_counts(make):
    x, t, latent, label = (v.requires_grad_() for v in inputs())
    decoder, encoder = filled(make("decoder")), filled(make("encoder"))
    (decoder(x, t, latent, label).square().sum() + encoder(x).square().sum()).backward()
    for name, value in {"x": x, "t": t, "latent": latent, "label": label, **dict(decoder.named_parameters()), **dict(encoder.named_parameters())}.items():
        if not value.requires_grad: continue
        assert value.grad is not None and value.grad.abs().max() > 0, name


def test_no_sample_reaches_another():
    x, t, latent, label = (v.requires_grad_() for v in inputs(b=3))
    filled(small("decoder"))(x, t, latent, label)[0].sum().backward()
    for value in (x, t, latent, label): assert value.grad[0].any() and not value.grad[1:].any()
    x.grad = None
    filled(small("encoder"))(x)[0].sum().backward()
    assert x.grad[0].any() and not x.grad[1:].any()


class Silent(nn.Module):
    def forward(self, h): return torch.zeros(len(h), 12, dtype=h.dtype)


def test_each_tap_speaks():
    encoder, x = filled(small("encoder")), inputs()[0]
    whole = encoder(x)
    for k, tap in list(encoder.taps.items()):
        encoder.taps[k] = Silent()
        assert not torch.allclose(encoder(x), whole), k
        encoder.taps[k] = tap


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    decoder, given = filled(small("decoder", dropout=0.5)), inputs()
    assert torch.equal(decoder(*given), decoder(*given))
    decoder.train()
    assert not torch.equal(decoder(*given), decoder(*given))


def test_latents_of_width_nothing_are_no_latents():
    decoder, x = filled(UNetDecoder(3, 16, width=16, mults=(1, 2), blocks=1)), inputs()[0]
    assert torch.equal(decoder(x, torch.ones(2).double()), decoder(x, torch.ones(2).double(), latent=torch.zeros(2, 0), label=torch.zeros(2, 0)))


def test_empty_batch_gives_empty_answers():
    x, t, latent, label = (v[:0] for v in inputs())
    assert filled(small("decoder"))(x, t, latent, label).shape == (0, 3, 16, 16)
    assert filled(small("encoder"))(x).shape == (0, 12)


def test_time_embedding_clamps_keeps_precision_and_tells_times_apart():
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    waves = time_embedding(t, 64)
    assert waves.dtype == torch.float64 and waves.shape == (1000, 64)
    apart = torch.cdist(waves, waves) + 9 * torch.eye(1000)
    assert apart.min() > 0.5
    assert torch.equal(time_embedding(torch.tensor([-0.5, 1.5]), 8), time_embedding(torch.tensor([0.0, 1.0]), 8))
    assert time_embedding(torch.tensor([0.3]), 8)[0, [0, 3, 4]].tolist() == pytest.approx(
        [math.sin(299.7), math.sin(0.02997), math.cos(299.7)], abs=1e-4)


def test_saved_weights_give_the_same_network():
    torch.manual_seed(0)
    first, second, given = small("decoder"), small("decoder"), [v.float() for v in inputs()]
    with torch.no_grad(): [w.add_(0.1) for w in first.parameters()]
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*given), second(*given))


# -- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("message", "build"), [
    ("size: got 14 pixels, wanted a multiple of 4", lambda: UNetEncoder(1, 14, 3, mults=(1, 2, 2), width=8)),
    ("size: got 7 pixels, wanted a multiple of 2", lambda: UNetDecoder(1, 7, mults=(1, 2), width=8)),
    ("size: got 0", lambda: UNetDecoder(1, 0, mults=(1,), width=8)),
    (r"mults: got \(\)", lambda: UNetDecoder(1, 8, mults=(), width=8)),
    (r"mults: got \(1, 0\)", lambda: UNetEncoder(1, 8, 3, mults=(1, 0), width=8)),
    ("blocks: got 0", lambda: UNetEncoder(1, 8, 3, mults=(1,), width=8, blocks=0)),
    ("width: got 0", lambda: UNetEncoder(1, 8, 3, mults=(1,), width=0)),
    ("width: got 0, wanted whole numbers ≥ 1", lambda: UNetDecoder(1, 8, mults=(1,), width=0)),
    ("classes: got -1, wanted a whole number ≥ 0", lambda: UNetDecoder(1, 8, mults=(1,), width=8, classes=-1)),
    ("latent_dim: got -1, wanted a whole number ≥ 0", lambda: UNetDecoder(1, 8, mults=(1,), width=8, latent_dim=-1)),
    ("width: got 15, wanted an even number", lambda: UNetDecoder(1, 8, mults=(1,), width=15)),
    (r"tap_sizes: got \(3,\), wanted some of the sizes .4, 8.", lambda: UNetEncoder(1, 8, 3, mults=(1, 1), width=8, tap_sizes=(3,))),
])
def test_networks_that_cannot_be_are_refused(message, build):
    with pytest.raises(ValueError, match=message): build()


X, T, Z, Y = torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.zeros(2, 12), torch.zeros(2, 5)


@pytest.mark.parametrize(("message", "given"), [
    ("latent: got nothing, wanted .2,12.", (X, T, None, Y)),
    ("label: got nothing, wanted .2,5.", (X, T, Z)),
    ("latent: got shape .2, 13., wanted .2,12.", (X, T, torch.zeros(2, 13), Y)),
    ("latent: got shape .1, 12., wanted .2,12.", (X, T, Z[:1], Y)),
    ("label: got shape .2., wanted .2,5.", (X, T, Z, torch.tensor([1, 2]))),
    ("t: got shape .., wanted .2.", (X, torch.tensor(0.5), Z, Y)),
    ("t: got shape .2, 1., wanted .2.", (X, T[:, None], Z, Y)),
    ("x_t: got torch.float32 of shape .2, 1, 16, 16., wanted floating .b,3,16,16.", (X[:, :1], T, Z, Y)),
    ("x_t: got torch.float32 of shape .2, 3, 8, 8.", (X[:, :, :8, :8], T, Z, Y)),
    ("x_t: got torch.uint8", (X.byte(), T, Z, Y)),
])
def test_decoder_refuses_what_does_not_fit(message, given):
    with pytest.raises(ValueError, match=message): small("decoder")(*given)


def test_condition_that_is_not_taken_is_refused():
    decoder = UNetDecoder(3, 16, width=8, mults=(1,), blocks=1)
    with pytest.raises(ValueError, match="latent: got shape .2, 12., wanted nothing"): decoder(X, T, Z)
    with pytest.raises(ValueError, match="image: got torch.float32 of shape .3, 16, 16."): small("encoder")(X[0])
