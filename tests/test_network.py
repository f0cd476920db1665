"""The network: compositions that do what their parts do, on any device, in any form of asking, and clear answers to wrong questions."""
import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lzn_nb.nets import UNetDecoder, UNetEncoder
from lzn_nb.network import DataType, ImageType, LabelType, LatentZoningNetwork, reading
from lzn_nb.zones import LatentZones

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
Q, CLASSES, SHAPE = 6, 4, (1, 8, 8)


def generator(seed=0): return torch.Generator().manual_seed(seed)


@torch.no_grad()
def build(dropout=0.0, latent_dim=Q, classes=CLASSES, encoder=True):
    "An untrained network with all branches awake."
    torch.manual_seed(0)
    body = dict(width=8, mults=(1, 2), blocks=1, attention=(4,), dropout=dropout)
    coder = UNetEncoder(1, 8, Q, tap=2, hidden=8, **body) if encoder else None
    image = ImageType(coder, UNetDecoder(1, 8, latent_dim=latent_dim, classes=classes, **body), SHAPE, Q, sample_steps=3)
    network = LatentZoningNetwork({"image": image, "label": LabelType(CLASSES, Q)})
    for weight in image.parameters(): weight += 0.1 * torch.randn(weight.shape)
    for tap in image.encoder.taps.values() if encoder else (): tap[-1].weight *= 20      # anchors well apart
    return network


@pytest.fixture(scope="module")
def trained_like():
    return build()


@pytest.fixture
def network(trained_like):
    return copy.deepcopy(trained_like)


@pytest.fixture(scope="module")
def x():
    return torch.rand(12, *SHAPE, generator=generator(5)) * 2 - 1


# -- tasks are compositions -------------------------------------------------------------------
def test_embed_gives_the_encoders_anchors(network, x):
    assert torch.equal(network.embed("image", x), network["image"].encoder(x))
    assert torch.equal(network.embed("label", [2, 0]), network["label"].matrix[[2, 0]])
    assert torch.allclose(network.embed("image", x)[:1], network.embed("image", x[:1]), atol=1e-4)      # each by itself


def test_latents_are_those_of_the_zones(network, x):
    zones = LatentZones(network.embed("image", x), steps=10)
    assert torch.equal(network.latents("image", x, generator=generator()), zones.encode(generator=generator()))
    assert torch.equal(network.latents("image", x, alpha=0.0), zones.encode(alpha=0.0))
    labels, matrix = torch.tensor([3, 3, 0]), LatentZones(network["label"].matrix, steps=10)
    assert torch.equal(network.latents("label", labels, generator=generator()), matrix.encode(labels, generator=generator()))


def test_classify_reads_the_label_zone_of_the_centre(network, x):
    wanted = LatentZones(network["label"].matrix).decode(network.latents("image", x, alpha=0.0))
    assert torch.equal(network.classify(x), wanted) and torch.equal(network.translate(x, "image", "label", alpha=0.0), wanted)
    assert len(wanted.unique()) > 1


def test_labels_come_back(network):
    asked = torch.arange(CLASSES).repeat(100)
    assert (network.translate(asked, "label", "label", generator=generator()) == asked).float().mean() > 0.98
    assert network.translate(asked, "label", "label", alpha=0.0).equal(asked)


def test_generation_with_labels_is_label_zone_then_decoder(network):
    labels, g = torch.tensor([1, 0, 3]), generator(7)
    drawn = network.generate("image", label=labels, generator=g, steps=2)
    g = generator(7)
    z = network.latents("label", labels, generator=g)
    noise = torch.randn(3, *SHAPE, generator=g)
    one_hot, decoder, t = F.one_hot(labels, CLASSES).float(), network["image"].decoder, 1e-3
    for _ in range(2):
        noise = noise + 0.4995 * decoder(noise, torch.full((3,), t), z, one_hot).detach()
        t += 0.4995
    assert torch.allclose(drawn, noise, atol=1e-5)


def test_free_generation_reads_the_class_off_its_latent(network):
    g = generator(3)
    drawn, g2 = network.generate("image", 6, generator=g), generator(3)
    z = torch.randn(6, Q, generator=g2)
    known = {"label": network.decode("label", z)}
    assert torch.equal(drawn, network.decode("image", z, known=known, generator=g2))
    other = {"label": (known["label"] + 1) % CLASSES}
    assert not torch.equal(drawn, network.decode("image", z, known=other, generator=generator(3)))
    assert network.generate("label", 50, generator=generator()).unique().tolist() == list(range(CLASSES))


def test_reconstruct_uses_own_latent_and_known_class(network, x):
    y = torch.arange(12) % CLASSES
    z = network.latents("image", x, generator=generator())
    wanted = network["image"].reconstruct(x, z, y, steps=4)
    assert torch.equal(network.reconstruct(x, known={"label": y}, generator=generator(), steps=4), wanted)
    read = network["image"].reconstruct(x, z, network.decode("label", z), steps=4)
    assert torch.equal(network.reconstruct(x, generator=generator(), steps=4), read)
    errors = [(network.reconstruct(x, generator=generator(), steps=n) - x).square().mean() for n in (4, 64)]
    assert errors[1] < 0.02 * errors[0]


def test_every_task_is_one_call(network, x):
    y, g = torch.arange(12) % CLASSES, generator
    ways = {"image": x, "label": y, None: 12}
    for source, given in ways.items():
        z = network.prior(12, g()) if source is None else network.latents(source, given, generator=g())
        assert torch.equal(network.translate(given, source, None, generator=g()), z)
        known = {} if source is None else {source: given}
        assert torch.equal(network.translate(given, source, "label", generator=g()), network.decode("label", z))
        after = g(); network.translate(given, source, None, generator=after)
        assert torch.equal(network.translate(given, source, "image", generator=g(), steps=2), network.decode("image", z, known=known, generator=after, steps=2))
    assert torch.equal(network.translate(12, None, "image", generator=g()), network.generate("image", 12, generator=g()))


def test_many_images_are_drawn_some_at_a_time(network, monkeypatch):
    counts = []
    monkeypatch.setattr(ImageType, "at_once", 5)
    z, noise = network.prior(12, generator()), torch.randn(12, *SHAPE, generator=generator(1))
    drawn = network.decode("image", z, noise=noise, steps=2, tell=lambda evaluations, images: counts.append(images))
    assert counts == [5, 5, 2] and torch.allclose(drawn, network.decode("image", z, noise=noise, steps=2, chunk=None), atol=1e-5)
    monkeypatch.undo()
    at_once = lambda *shape: ImageType(None, network["image"].decoder, shape, Q).at_once
    assert at_once(1, 8, 8) == 1000 and at_once(3, 256, 256) == 16 and at_once(3, 2048, 2048) == 1


# -- company ----------------------------------------------------------------------------------
def test_latent_depends_on_company_and_on_nothing_else(network, x):
    one, mates = x[:1], x[1:]
    with_mates = network.latents("image", x, alpha=0.0)[:1]
    assert torch.allclose(network.latents("image", one, alpha=0.0, among=mates), with_mates, atol=1e-3)
    assert torch.allclose(network.latents("image", one, alpha=0.0, among=mates.flip(0)), with_mates, atol=1e-3)
    assert not torch.allclose(network.latents("image", one, alpha=0.0, among=mates[:3]), with_mates, atol=1e-2)
    assert network.latents("image", x[:5], among=mates).shape == (5, Q)
    assert network.classify(one, among=mates).equal(network.classify(x)[:1])


def test_among_ready_zones_batch_mates_play_no_part(network, x):
    zones = network.zones_of("image", x[1:], batch=4)
    assert torch.allclose(zones.anchors, network.embed("image", x[1:]), atol=1e-5)
    one = network.latents("image", x[:1], alpha=0.0, among=zones)
    assert torch.allclose(network.latents("image", x, alpha=0.0, among=zones)[:1], one, atol=1e-5)
    assert torch.allclose(one, network.latents("image", x[:1], alpha=0.0, among=x[1:]), atol=1e-3)  # joining is being one more
    assert torch.equal(network.classify(x, among=zones)[:1], network.classify(x[:1], among=zones))
    assert network.reconstruct(x[:2], among=zones, generator=generator(), steps=2).shape == x[:2].shape


def test_zones_of_refuses(network, x):
    with pytest.raises(ValueError, match="batch: got 0"): network.zones_of("image", x, batch=0)
    with pytest.raises(ValueError, match="image: got"): network.zones_of("image", x[:, :, 0])
    with pytest.raises(ValueError, match=f"among: got zones of 3 dimensions, wanted {Q}"): network.latents("image", x, among=LatentZones(torch.randn(4, 3, generator=generator())))


def test_one_sample_alone_warns_and_company_silences(network, x):
    with pytest.warns(UserWarning, match="image: a single sample owns the whole latent space"): z = network.latents("image", x[:1], alpha=0.0)
    assert not z.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.latents("image", x[:1], among=x[1:3])
        network.latents("label", 2)      # a class is never alone
        network.generate("image", label=1)


# -- forms of asking --------------------------------------------------------------------------
@pytest.mark.parametrize("form", [2, [2], (2,), np.int64(2), np.array(2), np.array([2], dtype=np.uint8), torch.tensor(2), torch.tensor([2], dtype=torch.int16)])
def test_label_in_any_form(network, form):
    wanted = network.generate("image", label=torch.tensor([2]), generator=generator())
    assert torch.equal(network.generate("image", label=form, generator=generator()), wanted)
    assert network.embed("label", form).shape == (1, Q)
    assert network.generate("image", 3, label=form, generator=generator()).shape == (3, *SHAPE)


@pytest.mark.parametrize("n", [3, np.int32(3), torch.tensor(3)])
def test_number_in_any_form(network, n):
    assert network.generate("image", n, generator=generator()).shape == (3, *SHAPE)
    assert network.generate("label", n, label=[1, 2, 3], generator=generator()).shape == (3,)


def test_images_in_any_form_and_network_in_any_precision(network, x):
    anchors = network.embed("image", x)
    assert torch.allclose(network.embed("image", x.numpy().astype(np.float64)), anchors) and anchors.dtype == torch.float32
    network.double()
    assert network.embed("image", x).dtype == torch.float64 and torch.allclose(network.embed("image", x).float(), anchors, atol=1e-4)
    for drawn in (network.generate("image", 2), network.generate("image", label=[0, 1]), network.reconstruct(x[:3])): assert drawn.dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_means_the_same_on_every_device(network, x, device):
    here = network.generate("image", 4, generator=generator()), network.generate("image", label=[1, 2], generator=generator()), network.classify(x)
    network.to(device)
    there = network.generate("image", 4, generator=generator()), network.generate("image", label=[1, 2], generator=generator()), network.classify(x)
    for a, b in zip(here, there): assert b.device.type == device and torch.allclose(a, b.cpu(), atol=1e-2)


def test_draws_leave_the_global_generator_alone(network, x):
    state = torch.get_rng_state()
    network.generate("image", 2, generator=generator()); network.generate("image", label=1, generator=generator())
    network.latents("image", x, generator=generator()); network.reconstruct(x, generator=generator()); network.classify(x)
    assert torch.equal(state, torch.get_rng_state())


# -- modes ------------------------------------------------------------------------------------
def test_reading_and_drawing_happen_in_eval_mode_and_leave_every_mode_as_it_was(x):
    network = build(dropout=0.5).train()
    network["image"].encoder.down.eval()      # a frozen part
    modes = [m.training for m in network.modules()]
    tasks = [lambda: network.embed("image", x), lambda: network.latents("image", x, generator=generator()), lambda: network.classify(x),
             lambda: network.generate("image", 2, generator=generator()), lambda: network.generate("image", label=[1], generator=generator()),
             lambda: network.reconstruct(x, generator=generator()), lambda: network["image"].decode(torch.zeros(2, Q), generator(), label=torch.zeros(2).long()),
             lambda: network["image"].reconstruct(x[:2], torch.zeros(2, Q), torch.zeros(2).long())]
    for k, task in enumerate(tasks):
        first, second = task(), task()
        assert torch.equal(first, second) and not first.requires_grad, k
        assert modes == [m.training for m in network.modules()], k
    with pytest.raises(ValueError): network.embed("image", x[:, :, :4])
    assert modes == [m.training for m in network.modules()] and torch.is_grad_enabled()


def test_reading_keeps_name_and_arguments():
    class Part(nn.Module):
        @reading
        def tell(self, a, *, b=1):
            "What it says."
            return a + b, self.training, torch.is_grad_enabled()

    assert Part().tell(1, b=2) == (3, False, False) and Part.tell.__doc__ == "What it says."


def test_training_sees_gradients_in_encoder_and_labels(network, x):
    image, label = network["image"], network["label"]
    z = image.zones(x)[0].encode(generator=generator())
    label.zones()[0].flow(z, torch.arange(12) % CLASSES).log_prob.sum().backward()
    assert label.matrix.grad.abs().max() > 0 and all(w.grad is not None for w in image.encoder.parameters())


# -- other casts ------------------------------------------------------------------------------
def test_decoder_without_classes_asks_for_no_label(x):
    network = build(classes=0)
    alone = LatentZoningNetwork({"image": network["image"]})
    assert alone.generate("image", 2, generator=generator()).shape == (2, *SHAPE)
    assert alone.reconstruct(x, generator=generator()).shape == x.shape
    with pytest.raises(ValueError, match="data type: got 'label', wanted one of ..image.."): alone.classify(x)


def test_decoder_without_latent_draws_by_class_alone(x):
    network = build(latent_dim=0, encoder=False)
    drawn = network.generate("image", label=[1, 1, 2], generator=generator())
    assert drawn.shape == (3, *SHAPE)
    assert network["image"].reconstruct(x, x.new_zeros(12, 0), torch.zeros(12).long()).shape == x.shape
    with pytest.raises(NotImplementedError, match="ImageType has no encoder"): network.embed("image", x)


class Words(LabelType):
    "Labels by name, as lists of text: samples need not be tensors."
    names = ("zero", "one", "two", "three")
    def check(self, x):
        if unknown := [word for word in x if word not in self.names]: raise ValueError(f"word: got {unknown[0]!r}")
        return list(x)
    def anchors(self, x): return self.matrix[[self.names.index(word) for word in x]]
    def zones(self, x=None, weights=None): return DataType.zones(self, x if x is not None else self.names, weights)
    def decode(self, z, generator=None, **given): return [self.names[k] for k in self.zones()[0].decode(z)]


def test_a_type_whose_samples_are_no_tensors(network):
    network.types["word"] = words = Words(CLASSES, Q)
    words.matrix = network["label"].matrix
    assert network.translate([0, 3], "label", "word", alpha=0.0) == ["zero", "three"]
    assert network.translate(["one", "two"], "word", "label", alpha=0.0, among=["zero", "three"]).tolist() == [1, 2]
    assert network.translate(["one", "two"], "word", "image", generator=generator()).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match="word: got 'ten'"): network.embed("word", ["ten"])


def test_a_type_of_ones_own_says_what_it_may_be_asked_for(network):
    "By the arguments that its decoder names, but not what it is told; and what it takes as **options, by `options`."
    class Told(DataType):
        condition, options = ("label",), ("sharp",)
        def decode(self, z, generator=None, *, label, times=1, **given): return times * label, given
    network.types["told"] = Told(Q)
    z = torch.zeros(3, Q)
    value, given = network.decode("told", z, times=4, sharp=True, known={"label": [1, 2, 3]})
    assert value.tolist() == [4, 8, 12] and given == {"sharp": True}
    for odd, wanted in (("label", "known=.'label': …."), ("blunt", ".*'sharp', 'times'"), ("generators", "one of")):
        with pytest.raises(ValueError, match=f"options: got '{odd}' for Told, wanted {wanted}"): network.decode("told", z, **{odd: 1})


def test_a_network_without_decoder_says_so(network, x):
    network["image"].decoder = None
    for ask in (lambda: network.generate("image", 2), lambda: network.reconstruct(x, known={"label": [0] * 12})):
        with pytest.raises(NotImplementedError, match="ImageType has no decoder"): ask()


def test_anchors_of_the_wrong_width_are_found(network):
    class Wide(DataType):
        def anchors(self, x): return torch.randn(len(x), Q + 1)
    network.types["wide"] = Wide(Q)
    with pytest.raises(ValueError, match="wide: its anchors have 7 dimensions, wanted 6"): network.latents("wide", [1, 2])
    with pytest.raises(NotImplementedError, match="Wide has no decoder"): network.generate("wide", 2)


def test_saved_and_loaded_it_answers_the_same(network, x, tmp_path):
    torch.save(network.state_dict(), tmp_path / "network.pt")
    other = build()
    with torch.no_grad(): [w.zero_() for w in other.parameters()]
    other.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(other.classify(x), network.classify(x))
    assert torch.equal(other.generate("image", 2, generator=generator()), network.generate("image", 2, generator=generator()))


# -- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("message", "ask"), [
    ("data type: got 'sound', wanted one of ..image., .label..", lambda n, x: n.embed("sound", x)),
    ("data type: got 'sound'", lambda n, x: n.translate(x, "image", "sound")),
    ("data type: got 'sound'", lambda n, x: n.generate("sound", 2)),
    ("image: got torch.float32 of shape .12, 1, 4, 8., wanted floating .b,1,8,8.", lambda n, x: n.embed("image", x[:, :, :4])),
    ("image: got torch.float32 of shape .1, 8, 8.", lambda n, x: n.classify(x[0])),
    ("image: got torch.uint8", lambda n, x: n.classify((x > 0).byte())),
    ("image: got no samples", lambda n, x: n.latents("image", x[:0])),
    ("image: got torch.float32 of shape .12, 1, 8., wanted", lambda n, x: n.classify(x, among=x[:, :, 0])),
    ("label: got no samples", lambda n, x: n.generate("image", label=[])),
    ("label: got 4, wanted a class from 0 to 3", lambda n, x: n.generate("image", label=4)),
    ("label: got -1, wanted a class from 0 to 3", lambda n, x: n.generate("image", label=[0, -1])),
    ("label: got torch.float32 of shape .1., wanted integers", lambda n, x: n.generate("image", label=[0.5])),
    ("label: got torch.bool", lambda n, x: n.generate("image", label=True)),
    ("label: got torch.int64 of shape .2, 1.", lambda n, x: n.embed("label", [[1], [2]])),
    ("label: got 'cat', wanted integers", lambda n, x: n.generate("image", label="cat")),
    ("label: got .1, None., wanted integers", lambda n, x: n.generate("image", label=[1, None])),
    ("label: got 9, wanted a class", lambda n, x: n.decode("image", torch.zeros(2, Q), known={"label": [1, 9]})),
    ("n: got None, wanted an integer", lambda n, x: n.generate("image")),
    ("n: got 0, wanted an integer", lambda n, x: n.generate("image", 0)),
    ("n: got 2.5, wanted an integer", lambda n, x: n.generate("image", 2.5)),
    ("n: got True, wanted an integer", lambda n, x: n.generate("image", True)),
    ("n: got 0, wanted an integer", lambda n, x: n.generate("image", 0, label=1)),
    ("n: got 10,000,000,000,000, for which .* GB are needed and .* GB are free; wanted fewer", lambda n, x: n.generate("image", 10**13)),
    ("n: got 10,000,000,000,000, for which .* GB are needed", lambda n, x: n.generate("image", 10**13, label=1)),
    ("n: got 10,000,000,000,000, for which .* GB are needed", lambda n, x: n.generate("label", 10**13)),
    ("x: got 10,000,000,000,000, for which .* GB are needed", lambda n, x: n.translate(10**13, None, None)),
    ("x: got 0, wanted an integer", lambda n, x: n.translate(0, None, "image")),
    ("n: got -1, wanted an integer", lambda n, x: n.prior(-1)),
    ("n: got 10,000,000,000,000, for which .* GB are needed", lambda n, x: n.prior(10**13)),
    ("data type: got '', wanted one of", lambda n, x: n.translate(x, "", "image")),
    ("target: got None beside .'steps'., wanted a data type that is decoded", lambda n, x: n.translate(x, "image", None, steps=2)),
    ("known: got 'abc', wanted a dict of samples by data type", lambda n, x: n.decode("label", torch.zeros(2, Q), known="abc")),
    ("known: got 'abc', wanted a dict of samples by data type", lambda n, x: n.decode("image", torch.zeros(2, Q), known="abc")),
    ("known: got .3., wanted a dict", lambda n, x: n.reconstruct(x, known=[3])),
    ("data type: got 'sound', wanted one of", lambda n, x: n.decode("image", torch.zeros(2, Q), known={"sound": [1, 2]})),
    ("classes: got None, wanted an integer", lambda n, x: LabelType(None, Q)),
    ("latent_dim: got 'x', wanted an integer", lambda n, x: LabelType(CLASSES, "x")),
    ("zone_steps: got 'x', wanted an integer", lambda n, x: LabelType(CLASSES, Q, "x")),
    ("zone_steps: got 0, wanted an integer", lambda n, x: DataType(Q, 0)),
    ("solver: got 'x', wanted one of", lambda n, x: DataType(Q, solver="x")),
    ("shape: got 8, wanted .c, h, w.", lambda n, x: ImageType(None, n["image"].decoder, 8, Q)),
    ("shape: got 'x', wanted an integer", lambda n, x: ImageType(None, n["image"].decoder, (1, 8, "x"), Q)),
    ("sample_steps: got 'x', wanted an integer", lambda n, x: ImageType(None, n["image"].decoder, SHAPE, Q, sample_steps="x")),
    ("n: got 3 with 2 labels", lambda n, x: n.generate("image", 3, label=[1, 2])),
    ("steps: got 0", lambda n, x: n.generate("image", 2, steps=0)), ("steps: got 0", lambda n, x: n.zones_of("image", x, steps=0)),
    ("steps: got 0", lambda n, x: n.reconstruct(x, steps=0)),
    ("alpha: got -1", lambda n, x: n.latents("image", x, alpha=-1)),
    ("z: got torch.float32 of shape .2, 5., wanted a floating tensor .n,6.", lambda n, x: n.decode("label", torch.zeros(2, 5))),
    ("z: got NoneType, wanted a floating tensor .n,6.", lambda n, x: n.decode("image", None)),
    ("image: got NoneType, wanted a tensor .b,1,8,8.", lambda n, x: n.translate(None, "image", "label")),
    ("image: got str, wanted a tensor .b,1,8,8.", lambda n, x: n.translate("a", "image", "label")),
    ("label: got nothing, wanted integers", lambda n, x: n["image"].decode(torch.zeros(2, Q))),
    ("label: got 11, wanted a class from 0 to 3", lambda n, x: n["image"].decode(torch.zeros(2, Q), label=torch.tensor([0, 11]))),
    ("label: got torch.float32 of shape .2., wanted integers", lambda n, x: n["image"].decode(torch.zeros(2, Q), label=torch.tensor([0.0, 1.5]))),
    ("label: got -1, wanted a class from 0 to 3", lambda n, x: n["image"].reconstruct(x[:2], torch.zeros(2, Q), [0, -1])),
    ("label: got 99, wanted a class from 0 to 3", lambda n, x: n["image"].eval().given(torch.zeros(2, Q), [0, 99])),
    ("label: got 3, wanted 2, one for each latent", lambda n, x: n["image"].decode(torch.zeros(2, Q), label=[0, 1, 2])),
    ("options: got 'foo' for ImageType, wanted one of .'chunk', 'noise', 'progress', 'steps'", lambda n, x: n.translate(x, "image", "image", foo=3)),
    ("options: got 'foo' for ImageType, wanted one of", lambda n, x: n["image"].decode(torch.zeros(2, Q), label=[0, 1], foo=3)),
    ("options: got 'foo' for LabelType, wanted none", lambda n, x: n.translate(x, "image", "label", foo=3)),
    ("options: got 'steps' for LabelType, wanted none", lambda n, x: n.generate("label", 2, steps=3)),
    ("options: got 'label' for ImageType, wanted known=.'label': ….", lambda n, x: n.decode("image", torch.zeros(2, Q), label=[0, 1])),
    ("options: got 'label' for ImageType, wanted known=.'label': ….", lambda n, x: n.reconstruct(x, label=[0] * 12)),
    ("options: got 'noise' for ImageType, wanted one of .'chunk', 'progress', 'steps'", lambda n, x: n.reconstruct(x, noise=x)),
    ("options: got 'extrapolate' for ImageType", lambda n, x: n["image"].reconstruct(x, torch.zeros(12, Q), [0] * 12, extrapolate=True)),
    ("image: got values up to 255, wanted .-1, 1.; bytes become that", lambda n, x: n.classify(255 * x.abs() / x.abs().amax())),
    ("noise: holds NaN or infinity", lambda n, x: n.generate("image", 12, noise=x / 0)),
    ("noise: got str, wanted a floating tensor .2, 1, 8, 8.", lambda n, x: n.generate("image", 2, noise="a")),
    ("noise: got torch.float32 of shape .12, 1, 8, 8., wanted a floating tensor .2, 1, 8, 8.", lambda n, x: n.generate("image", 2, noise=x)),
    ("noise: got torch.int64 of shape", lambda n, x: n.generate("image", 12, noise=x.long())),
    ("z: got torch.int64 of shape .2, 6., wanted a floating tensor", lambda n, x: n.decode("image", torch.zeros(2, Q).long())),
    ("z: holds NaN or infinity", lambda n, x: n.decode("image", torch.full((2, Q), math.nan), known={"label": [0, 1]})),
    ("generator: got int, wanted a torch.Generator", lambda n, x: n.generate("image", 2, generator=3)),
    ("types: got latent dimensions .6, 7.", lambda n, x: LatentZoningNetwork({"a": LabelType(2, 6), "b": LabelType(2, 7)})),
    ("types: got latent dimensions ..,", lambda n, x: LatentZoningNetwork({})),
])
def test_wrong_questions_are_refused(network, x, message, ask):
    with pytest.raises(ValueError, match=message): ask(network, x)


@pytest.mark.parametrize("steps", [2, "rk45"])
def test_images_are_drawn_by_any_solver_in_pieces_and_counted(steps):
    network, counts, loose = build(), [], {"tol": 1e-3} if steps == "rk45" else {}
    with torch.no_grad():
        for p in network["image"].decoder.parameters(): p *= 0.5  # a gentle flow, for fewer steps
    draw = lambda **options: network.generate("image", label=[0, 1, 2, 0, 1], generator=torch.Generator().manual_seed(0), steps=steps, **loose, **options)
    pieces = draw(chunk=2, tell=lambda evaluations, images: counts.append((evaluations, images)))
    assert torch.allclose(draw(), pieces, atol=1e-5 if steps == 2 else 2e-2) and [images for _, images in counts] == [2, 2, 1]
    assert all(evaluations == 2 if steps == 2 else evaluations > 10 for evaluations, _ in counts)
    assert network["image"].reconstruct(pieces, torch.randn(5, Q), torch.tensor([0, 1, 2, 0, 1]), steps=steps, chunk=3, **loose).shape == pieces.shape
