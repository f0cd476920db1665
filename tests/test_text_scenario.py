"The scenario with sentences: settings, losses, what a decoder hears, searching, mixed tasks, runs."
import copy
import dataclasses
import math
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lzn_nb.captioned import captioned, digits_in, packed, unpacked
from lzn_nb.captions import DIGITS, caption, facts_in, is_grammatical, words_in
from lzn_nb.data import load_data
from lzn_nb.measures import ATTRIBUTES, Facts
from lzn_nb.saved import load, save
from lzn_nb.scenarios import base, text
from lzn_nb.scenarios.text import TEXT, TEXT_PRESETS, common, edited, evaluate_text, in_both, load_text, plan_text, run_text, says_digit, scores_of, text_components, text_losses, text_network, turned_round, worded
from lzn_nb.text import HearingImage, heard_by
from test_ranks import gradient_of, on_ranks_and_here

TINY, SHAPE = TEXT_PRESETS["tiny"], (1, 8, 8)
FACTS = st.builds(Facts, **{name: st.sampled_from([*values, None]) for name, values in ATTRIBUTES.items()})


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def batch(n=24, seed=0):
    "Images of noise, and facts of digits 0, 1, 2, …"
    g = seeded(seed)
    facts = [Facts(k % 10, ATTRIBUTES["thickness"][k % 3], ATTRIBUTES["slant"][k // 3 % 3], ATTRIBUTES["shape"][k // 2 % 3]) for k in range(n)]
    return torch.rand(n, *SHAPE, generator=g) * 2 - 1, packed(facts)


def losses(config, network, images, codes, seed=0): return text_losses(config, network, images, codes, seeded(seed))


def awake(config=TINY):
    "A network whose image decoder, which starts at zero, passes something on."
    network = text_network(config, SHAPE, 10)
    torch.nn.init.normal_(network["image"].decoder.heads[0][-1].weight, generator=seeded())
    return network


@pytest.fixture(scope="module")
def network(): return awake().eval()


@pytest.fixture(scope="module")
def named(): return awake(dataclasses.replace(TINY, unnamed=0.0)).eval()  # whose decoder has always been told the class


@pytest.fixture(scope="module")
def run(tmp_path_factory): return run_text("digits", "tiny", tmp_path_factory.mktemp("text") / "run", progress=False)


# -- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize("changes, words", [
    ({"without": "sound"}, "without: got 'sound', wanted one of image, label, text"), ({"contrastive": True, "without": "image"}, "without: got 'image' with contrastive=True"),
    ({"zones": False}, "zones: got False"), ({"crossed": 1.5}, "crossed: got 1.5"), ({"heard": -0.1}, "heard: got -0.1"), ({"unnamed": 1.5}, "unnamed: got 1.5"), ({"heard": 0.75, "unnamed": 0.5}, "unnamed: got 0.5, wanted at most 0.25"), ({"mention": math.nan}, "mention: got nan"),
    ({"temperature": 0.0}, "temperature: got 0.0"), ({"text_sharpness": 0.0}, "text_sharpness: got 0.0"), ({"text_weight": math.inf}, "text_weight: got inf"),
    ({"text_width": 30}, "text_width: got 30, wanted a multiple of the 4 heads"), ({"text_layers": 0}, "text_layers: got 0"), ({"ear_dim": 0}, "ear_dim: got 0"),
    ({"alpha_from": 0.6, "alpha": 0.5}, "alpha_from: got 0.6, wanted at most alpha, which is 0.5"), ({"guidance": -1.0}, "guidance: got -1"), ({"class_guidance": math.nan}, "class_guidance: got nan"), ({"back_weight": -1.0}, "back_weight: got -1")])
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words): dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("data", ["folder", "colour"])
def test_images_of_which_there_are_no_words_are_refused_before_anything_is_written(tmp_path, data, monkeypatch):
    digits = load_data("digits")
    wrong = dataclasses.replace(digits, classes=digits.classes[:9] + ("ten", "eleven")) if data == "folder" else dataclasses.replace(
        digits, **{part: dataclasses.replace(split := getattr(digits, part), pixels=split.pixels.expand(-1, 3, -1, -1)) for part in ("train", "valid", "test")})
    monkeypatch.setattr(base, "load_data", lambda name, **options: wrong)
    with pytest.raises(ValueError, match="data: got .* wanted grey images of the ten digits"): run_text("digits", "tiny", tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# -- captions and losses ------------------------------------------------------------------------
def test_captions_are_made_of_the_facts_by_the_generator():
    codes = batch(40)[1]
    said = worded(TINY, codes, seeded(3))
    assert said == worded(TINY, codes, seeded(3)) != worded(TINY, codes, seeded(4))
    for one, facts in zip(said, unpacked(codes)):
        told = facts_in(one)
        assert is_grammatical(one) and all(value in (None, getattr(facts, name)) for name, value in dataclasses.asdict(told.facts).items())
    assert says_digit(said) == [k for k, one in enumerate(said) if facts_in(one).facts.digit is not None]


PARTS = {"none": ({"flow", "words", "alignment", "text_alignment"}, {"encoder", "decoder", "ear", "label", "text"}), "contrastive": ({"contrast"}, {"encoder", "text"}),
         "without-label": ({"flow", "words", "text_alignment"}, {"encoder", "decoder", "ear", "text"}), "without-text": ({"flow", "alignment"}, {"encoder", "decoder", "label"}),
         "without-image": ({"words", "alignment"}, {"label", "text"})}


def configured(name): return dataclasses.replace(TINY, **TEXT.baselines.get(name, {}))


@pytest.mark.parametrize("name", PARTS)
def test_every_part_that_takes_part_is_taught(name):
    config, (wanted, parts) = configured(name), PARTS[name]
    network = awake(config) if name not in ("contrastive", "without-image") else text_network(config, SHAPE, 10)
    network.requires_grad_(False)
    components = text_components(config, network)
    for part in components.values(): part.module.requires_grad_(True)
    found = losses(config, network, *batch())
    assert found.keys() == wanted | {"loss"} and components.keys() == parts and set(network.types) == set(config.kinds)
    found["loss"].backward()
    for key, part in components.items():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.module.parameters()), key
        assert any(p.grad.abs().sum() > 0 for p in part.module.parameters()), key
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


def test_the_loss_is_the_weighted_sum():
    config = dataclasses.replace(TINY, word_weight=0.3, alignment_weight=0.7, text_weight=2.0)
    found = losses(config, awake(config), *batch())
    torch.testing.assert_close(found["loss"], found["flow"] + 0.3 * found["words"] + 0.7 * found["alignment"] + 2.0 * found["text_alignment"])


def test_evaluations_are_counted(monkeypatch):
    from lzn_nb import zones
    for name in PARTS:
        config, asked = configured(name), []
        network = text_network(config, SHAPE, 10)
        with monkeypatch.context() as patch:
            encode, flow = zones.LatentZones.encode, zones.LatentZones.flow
            patch.setattr(zones.LatentZones, "encode", lambda self, *a, **k: asked.append(self.solver.steps) or encode(self, *a, **k))
            patch.setattr(zones.LatentZones, "flow", lambda self, *a, **k: asked.append(self.solver.steps) or flow(self, *a, **k))
            losses(config, network, *batch())
        assert sum(asked) == config.evaluations, name


def test_pieces_change_nothing():
    network, whole = awake(), batch()
    for name in ("none", "contrastive"):
        config = configured(name)
        parts = dataclasses.replace(config, piece=7)
        network = awake(config) if name == "none" else text_network(config, SHAPE, 10)
        torch.testing.assert_close(losses(parts, network, *whole)["loss"], losses(config, network, *whole)["loss"])


def test_repeated_captions_are_one_zone_that_weighs_as_much(monkeypatch):
    "Images with one caption between them: wherever their latents lie, it is its zone, and the alignment to sentences costs nothing."
    monkeypatch.setattr(text, "worded", lambda config, codes, generator: ["a thick seven"] * len(codes))
    found = losses(TINY, awake(), *batch())
    assert float(found["text_alignment"].detach()) == pytest.approx(0, abs=1e-6)


def test_only_captions_of_one_image_are_aligned_to_it(monkeypatch):
    "What is true of several images of the batch is left out; without such captions, or without weight, there is no such loss."
    config, images, codes = dataclasses.replace(TINY, back_weight=2.0), *batch()
    said, seen = [caption(facts, seeded(k), mention=1.0) for k, facts in enumerate(unpacked(codes))], []
    said[1] = "a digit"  # true of all
    zones, own = awake()["text"].zones(said)
    alone = text.only_fit(text.fitting(said, codes, own, len(zones)), own)
    assert 1 not in alone and all(sum(a == b for b in unpacked(codes)) == 1 for a in (unpacked(codes)[k] for k in alone)) and len(alone) > 5
    monkeypatch.setattr(text, "worded", lambda config, codes, generator: said)
    plain = text.alignment_loss
    monkeypatch.setattr(text, "alignment_loss", lambda z, zones, own, **more: seen.append(own) or plain(z, zones, own, **more))
    network = awake()
    found = losses(config, network, images, codes)
    assert torch.equal(seen[-1], alone)
    assert "back_alignment" not in (without := losses(TINY, network, images, codes))
    torch.testing.assert_close(found["loss"], without["loss"] + 2 * found["back_alignment"])
    monkeypatch.setattr(text, "worded", lambda config, codes, generator: ["a digit"] * len(codes))
    assert "back_alignment" not in losses(config, network, images, codes)


def test_images_are_aligned_to_every_sentence_that_fits_them(monkeypatch):
    "Also to those that another image came with, and always to their own; only to that where it is asked for."
    images, codes = batch(6)
    said, seen = ["a zero", "a digit", "a two", "a thick one", "a digit", "a thin one"], []
    monkeypatch.setattr(text, "worded", lambda config, codes, generator: said)
    plain = text.alignment_loss
    monkeypatch.setattr(text, "alignment_loss", lambda z, zones, target, **more: seen.append((target, len(zones))) or plain(z, zones, target, **more))
    network = awake()
    own = network["text"].zones(said)[1]
    loose = losses(TINY, network, images, codes)
    among, zones = seen[-1]
    assert zones == 5  # "a digit" is one
    for k, facts in enumerate(unpacked(codes)):
        fits = {own[j].item() for j, one in enumerate(said) if j == k or all(value in (None, getattr(facts, name)) for name, value in dataclasses.asdict(facts_in(one).facts).items())}
        assert set(among[k].nonzero()[:, 0].tolist()) == fits and own[1].item() in fits
    strict = losses(dataclasses.replace(TINY, own_only=True), network, images, codes)
    assert torch.equal(seen[-1][0], own) and strict["text_alignment"] > loose["text_alignment"]


def test_latents_are_exchanged_in_the_share_asked_for(monkeypatch):
    "With everything crossed, images are drawn by the sentences' latents and sentences are written by those of images; with nothing, by their own."
    seen = {}
    network = awake()
    monkeypatch.setattr(text, "flow_errors", lambda config, image, images, z, *rest: seen.update(image=z) or z.square().mean(1))
    monkeypatch.setattr(network["text"], "errors", lambda said, z: seen.update(text=z) or z.square().mean(1))
    plain, crossed = ({**seen} for share in (0.0, 1.0) if losses(dataclasses.replace(TINY, crossed=share), network, *batch()))
    assert torch.equal(plain["image"], crossed["text"]) and torch.equal(plain["text"], crossed["image"]) and not torch.equal(plain["image"], plain["text"])


def test_a_run_can_be_planned_without_numbers():
    assert plan_text("digits", "tiny", steps=2, back_weight=1.0)["evaluations of zones"] == 2 * dataclasses.replace(TINY, back_weight=1.0).evaluations > 2 * TINY.evaluations
    found = plan_text("digits", "tiny", steps=2)
    assert found["parameters of ear"] > 0 and found["evaluations of zones"] == 2 * TINY.evaluations


# -- what the decoder of images hears -------------------------------------------------------------
def test_silence_is_zeros_and_a_sentence_is_its_ears(network):
    image, said = network["image"], ["a thick seven", None, "an 8", None]
    heard = heard_by(image.ear, said)
    assert heard.shape == (4, TINY.ear_dim) and not heard[[1, 3]].any() and torch.equal(heard[[0, 2]], image.ear.anchors(["a thick seven", "an 8"]))
    assert not heard_by(image.ear, [None] * 3).any()
    z, labels = network.prior(2, seeded()), torch.tensor([7, 8])
    told = image.given(z, labels, ["a thick seven", None])["label"]
    assert torch.equal(told[:, :10], torch.nn.functional.one_hot(labels, 10).float()) and torch.equal(told[:, 10:], heard_by(image.ear, ["a thick seven", None]))


def test_what_is_said_reaches_the_picture_only_where_it_is_said(network):
    z, noise = network.prior(3, seeded(1)), torch.randn(3, *SHAPE, generator=seeded(2))
    draw = lambda **known: network.decode("image", z, known={"label": [1, 2, 3]} | known, noise=noise)
    silent, told = draw(), draw(text=["a thick seven", "an 8", "a thin one"])
    assert not torch.allclose(silent, told) and torch.equal(silent, draw())
    torch.testing.assert_close(told[:1], network.decode("image", z[:1], known={"label": [1], "text": "a thick seven"}, noise=noise[:1]))


@pytest.mark.parametrize("call, words", [
    (lambda net: net["image"].given(net.prior(2), None), "label: got nothing"), (lambda net: net["image"].given(net.prior(2), torch.tensor([1, 2]), ["a seven"]), "text: got 1 sentences, wanted 2"),
    (lambda net: net.decode("image", net.prior(1), known={"text": ""}), "text: got an empty sentence"), (lambda net: net.translate("семь", "text", "image"), "Cyrillic"),
    (lambda net: net.translate("a seven " * 30, "text", "image"), "words"), (lambda net: net.translate("a seven", "sound", "image"), "data type: got 'sound'")])
def test_bad_sentences_are_named(network, call, words):
    with pytest.raises(ValueError, match=words): call(network)


def test_a_caption_for_a_network_without_that_type():
    silent = text_network(configured("without-text"), SHAPE, 10)
    with pytest.raises(ValueError, match="data type: got 'text', wanted one of .*image.*label"): silent.translate("a seven", "text", "image")
    with pytest.raises(ValueError, match="data type: got 'text'"): silent.decode("image", silent.prior(1), known={"text": "a seven"})


def test_guidance_leads_on_by_what_the_sentence_changes(named):
    image, z, said = named["image"], named.prior(3, seeded(1)), ["a thick seven", "an 8", None]
    x, t, labels = torch.randn(3, *SHAPE, generator=seeded(2)), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([7, 8, 1])
    at = lambda text, **more: image.flow(x, t, **image.given(z, labels, text, **more))
    silent, heard, loud = at(None), at(said, guidance=1.0), at(said, guidance=3)
    torch.testing.assert_close(loud - silent, 3 * (heard - silent), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(said, guidance=0), silent)
    torch.testing.assert_close(loud[2], silent[2])  # of nothing said, nothing is made more
    assert not torch.allclose(loud[0], heard[0]) and torch.equal(heard, image.decoder(x, t, **image.given(z, labels, heard_by(image.ear, said))))


def test_class_and_sentence_lead_by_as_much_as_each_is_asked_to(tmp_path):
    "From the velocity of whom nobody tells anything to that of the class, and from there to that of the sentence; by the class alone where no sentence is given; as learned where what was heard is given."
    network = awake(dataclasses.replace(TINY, unnamed=0.25)).eval()
    image, z, said = network["image"], network.prior(3, seeded(1)), ["a thick seven", "an 8", None]
    x, t, labels = torch.randn(3, *SHAPE, generator=seeded(2)), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([7, 8, 1])
    at = lambda text, **more: image.flow(x, t, **image.given(z, labels, text, **more))
    nothing, named, heard = image.decoder(x, t, latent=z, label=torch.zeros(3, image.decoder.classes)), at(None, class_guidance=1.0), at(said, guidance=1.0, class_guidance=1.0)
    for by_text, by_class in ((3.0, 2.0), (2.0, 2.0), (1.0, 2.0), (2.5, 1.0), (0.0, 0.0), (0, 1.5)):
        torch.testing.assert_close(at(said, guidance=by_text, class_guidance=by_class), nothing + by_class * (named - nothing) + by_text * (heard - named), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(None, class_guidance=3.0), nothing + 3 * (named - nothing), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(named, nothing) and not torch.allclose(heard[:2], named[:2]) and torch.equal(at(heard_by(image.ear, said)), heard)
    assert torch.equal(at(said), at(said, guidance=3.0, class_guidance=2.0)) and torch.equal(at(None), at(None, class_guidance=2.0))
    save(network, file := tmp_path / "a.safetensors")
    draw = lambda net: net.generate("image", label=[3, 4], class_guidance=1.5, generator=seeded(4))
    assert torch.equal(draw(load(file)), draw(network)) and network.generate("image", 2).isfinite().all()


def test_what_is_drawn_freely_or_reconstructed_is_not_led_unless_asked(network):
    images, _ = batch(3)
    draw = lambda **more: network.generate("image", 3, generator=seeded(4), **more)
    assert torch.equal(draw(), draw(class_guidance=1.0)) and not torch.allclose(draw(), draw(class_guidance=2.0))
    on = lambda **more: network.translate(images, "image", "image", among=batch(12, 1)[0], generator=seeded(5), **more)
    assert torch.equal(on(), on(class_guidance=1.0)) and not torch.allclose(on(), on(class_guidance=2.0))
    again = lambda **more: network.reconstruct(images, alpha=0.0, among=batch(12, 1)[0], **more)
    assert torch.equal(again(), again(class_guidance=1.0)) and not torch.allclose(again(), again(class_guidance=2.0))


def test_some_decoders_are_told_neither_class_nor_sentence(monkeypatch):
    "In the share asked for, of those that hear nothing; a class that is not told is zeros; and nothing changes where there are no sentences."
    images, codes = batch(400)
    loud, told = text.told_of(dataclasses.replace(TINY, heard=0.5, unnamed=0.2), codes, seeded(5), 400)
    assert 160 < sum(loud) < 240 and 50 < (told == -1).sum() < 110 and not any(one and label == -1 for one, label in zip(loud, told.tolist()))
    assert torch.equal(told[told >= 0], digits_in(codes)[told >= 0])
    for deaf in ({"without": "text"}, {"heard": 0.0}):
        config = dataclasses.replace(TINY, unnamed=0.2, **deaf)
        assert (text.told_of(config, codes, seeded(5), 400)[1] >= 0).all() and losses(config, awake(config), images, codes)["loss"].isfinite()
    image, z = awake()["image"].train(), torch.zeros(400, TINY.latent_dim)
    given = image.given(z, told)["label"][:, :10]
    assert torch.equal(given.sum(1) == 0, told == -1) and torch.equal(given[told >= 0].argmax(1), told[told >= 0])
    with pytest.raises(ValueError, match="label: got -1, wanted a class"): image.eval().given(z, told)


def test_guidance_is_as_built_unless_another_is_asked_for(network, tmp_path):
    assert (network["image"].guidance, network["image"].class_guidance) == (TINY.guidance, TINY.class_guidance) == (3.0, 2.0)
    draw = lambda net, **more: net.translate(["a thick seven", "an 8"], "text", "image", generator=seeded(3), **more)
    assert torch.equal(draw(network), draw(network, guidance=3, class_guidance=2)) and not torch.allclose(draw(network), draw(network, guidance=1))
    labels = lambda net, **more: net.generate("image", label=[3, 4], generator=seeded(4), **more)
    plain = awake(dataclasses.replace(TINY, guidance=1.0, class_guidance=1.0)).eval()
    assert torch.equal(draw(plain), draw(network, guidance=1, class_guidance=1)) and torch.equal(labels(plain), labels(network, class_guidance=1)) and not torch.allclose(labels(plain), labels(network))
    save(awake(dataclasses.replace(TINY, guidance=4.0, class_guidance=1.5)), file := tmp_path / "loud.safetensors")
    assert (load(file)["image"].guidance, load(file)["image"].class_guidance) == (4.0, 1.5)


@pytest.mark.parametrize("guidance", [-0.1, math.nan, math.inf, "loud", True])
def test_guidance_out_of_range_is_named(network, guidance):
    for name in ("guidance", "class_guidance"):
        with pytest.raises(ValueError, match=f"^{name}: got"): network.translate("a seven", "text", "image", **{name: guidance})


def test_a_class_leads_only_where_it_was_not_told_now_and_then(named):
    for ask in (lambda: named.translate("a seven", "text", "image", class_guidance=2.0), lambda: named.generate("image", label=[1], class_guidance=2.0), lambda: HearingImage(None, named["image"].decoder, named["image"].ear, SHAPE, TINY.latent_dim, class_guidance=1.5)):
        with pytest.raises(ValueError, match="class_guidance: got .*, wanted 1: this decoder has not learned to draw without being told a class"): ask()


@pytest.mark.parametrize("silent", [lambda n: n.generate("image", 2, guidance=3.0), lambda n: n.generate("image", label=[1, 2], guidance=3.0),
                                    lambda n: n.reconstruct(batch(2)[0], guidance=3.0)])
def test_guidance_without_a_sentence_is_named(network, silent):
    with pytest.raises(ValueError, match="guidance: got 3.0 without a sentence"): silent(network)


def test_guidance_does_not_change_what_is_learned():
    images, codes = batch()
    one, other = (losses(config, awake(config), images, codes) for config in (TINY, dataclasses.replace(TINY, guidance=5.0)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_reconstruction_takes_the_sentence_too(network):
    images, codes = batch(4)
    z, said = network.latents("image", images, generator=seeded()), worded(TINY, codes, seeded())
    back = network["image"].reconstruct(images, z, digits_in(codes), text=said, steps="rk45")
    assert (back - images).abs().max() < 0.05


def test_a_network_that_hears_is_saved_and_loaded(network, tmp_path):
    save(network, file := tmp_path / "hears.safetensors")
    again = load(file)
    one, other = (net.translate(["a thick seven", "an 8"], "text", "image", generator=seeded(5)) for net in (network, again))
    assert torch.equal(one, other) and again["image"].condition == ("label", "text")


# -- searching ------------------------------------------------------------------------------------
def test_search_finds_what_lies_in_the_zone(network, monkeypatch):
    "Latents put by hand into the zones of the sentences are found there, whatever their order; and the score is a distribution over sentences."
    said = ["a thick seven", "an 8", "a thin one, leaning left", "zero"]
    zones, own = network["text"].zones(said)
    order = torch.tensor([2, 0, 3, 1])
    monkeypatch.setattr(network, "latents", lambda name, x, alpha: zones.encode(own[order], alpha=0.0))
    scores = scores_of(network, torch.zeros(4, *SHAPE), said, sharpness=400.0)
    assert torch.equal(scores.argmax(1), order) and torch.allclose(scores.exp().sum(1), torch.ones(4), atol=1e-5)
    alone = scores_of(network, torch.zeros(4, *SHAPE), said[2], sharpness=400.0, among=[*said[:2], said[3]])
    torch.testing.assert_close(alone, scores[:, 2:3])
    blunt = scores_of(network, torch.zeros(4, *SHAPE), said)  # by itself as sharply as the presets are trained
    assert torch.equal(blunt, scores_of(network, torch.zeros(4, *SHAPE), said, sharpness=text.compared(TINY))) and not torch.allclose(blunt, scores)


def test_a_sentence_without_company_cannot_be_searched_by(network):
    with pytest.warns(UserWarning, match="text: a single sentence fits all images alike; give others in `among`"): found = scores_of(network, batch(3)[0], "a thick seven")
    assert not found.any() and scores_of(network, batch(3)[0], "a thick seven", among="zero").any()
    with pytest.raises(ValueError, match="sharpness: got -1"): scores_of(network, batch(3)[0], "a thick seven", among="zero", sharpness=-1)


def test_what_was_trained_by_contrast_is_compared_by_cosines():
    config = configured("contrastive")
    network, images, said = text_network(config, SHAPE, 10).eval(), batch(3)[0], ["a thick seven", "an 8"]
    wanted = torch.nn.functional.cosine_similarity(network.embed("image", images)[:, None], network.embed("text", said)[None], dim=2)
    torch.testing.assert_close(scores_of(network, images, said, sharpness=text.compared(config)), wanted)


def test_a_search_by_cosine_stands_beside_that_by_zones(monkeypatch):
    "Zones find what fits for each, cosines for one of two sentences, and for no image."
    good, asked = torch.eye(8), trial()
    plain = torch.zeros(8, 8)
    plain[1] = 1.0
    plain[1, 4:] = 2.0  # image 1 is the first of every sentence, and sentence 4 that of every image
    plain[0, :4] = 3.0
    monkeypatch.setattr(text, "scores_of", lambda network, images, said, sharpness: plain if sharpness is None else good)
    found = values(text.judge_search(None, asked))
    assert found["image_by_caption_fits"] == found["caption_by_image_fits"] == 1 and found["image_by_caption_cosine"] == 1 / 8 and found["caption_by_image_cosine"] == 1 / 8


@pytest.mark.parametrize("contrastive", [False, True])
def test_a_search_takes_what_the_network_takes_and_names_the_rest(contrastive):
    config = configured("contrastive") if contrastive else TINY
    network, images = text_network(config, SHAPE, 10).eval(), batch(3)[0]
    search = partial(scores_of, network, sharpness=text.compared(config))
    assert torch.equal(search(images, "a thick seven", among="zero"), alone := search(images, ["a thick seven"], among=["zero"])) and alone.shape == (3, 1)
    for wrong, words in (([], "text: got no samples"), (7, "text: got int"), (["an 8", ""], "text: got an empty sentence"), ("purple elephants", "no word is known")):
        with pytest.raises(ValueError, match=words): search(images, wrong)
    for wrong, words in ((images[:0], "image: got no samples"), (images[:, :, :4], "image: got .* of shape"), ("image", "image: got str"), (images * torch.nan, "image: number 0 holds NaN")):
        with pytest.raises(ValueError, match=words): search(wrong, ["an 8", "zero"])
    with pytest.warns(UserWarning, match="purple") as told: search(images, ["a purple seven", "an 8"])
    assert len(told) == 1


@pytest.mark.parametrize("better, first, five", [(0, 1.0, 1.0), (3, 0.0, 1.0), (4, 0.0, 1.0), (5, 0.0, 0.0), (7, 0.0, 0.0)])
def test_recall_is_counted(network, monkeypatch, better, first, five):
    "Of eight, so many others score better than one's own."
    said, k = ["a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven"], torch.arange(8)
    trial = text.Trial(torch.zeros(8, *SHAPE), packed([Facts(digit=d) for d in range(8)]), said, None, None, seeded(), TINY)
    away = (k[None] - k[:, None]) % 8  # 0: one's own, 1 to 7: the others, from either side
    monkeypatch.setattr(text, "scores_of", lambda *given, **more: torch.where(away == 0, 0.5, torch.where(away <= better, 1.0, 0.0)))
    found = {key: result.value for key, result in text.judge_search(network, trial).items()}
    for way in ("image_by_caption", "caption_by_image"):
        assert found[f"{way}_own_1"] == found[f"{way}_fits"] == first and found[f"{way}_own_5"] == five


def test_of_equal_captions_any_is_the_own_one(network, monkeypatch):
    codes, said = packed([Facts(digit=1)] * 6), ["a one"] * 6
    trial = text.Trial(torch.zeros(6, *SHAPE), codes, said, None, None, seeded(), TINY)
    monkeypatch.setattr(text, "scores_of", lambda *given, **more: torch.arange(6.0).expand(6, 6))
    found = {key: result.value for key, result in text.judge_search(network, trial).items()}
    assert found["caption_by_image_own_1"] == found["caption_by_image_fits"] == found["image_by_caption_fits"] == 1.0
    assert found["image_by_caption_own_1"] == pytest.approx(1 / 6)


def test_a_search_for_one_of_five_among_fewer_is_one_for_one_of_all(network, monkeypatch):
    trial = text.Trial(torch.zeros(3, *SHAPE), packed([Facts(digit=k) for k in range(3)]), ["zero", "a one", "a two"], None, None, seeded(), TINY)
    monkeypatch.setattr(text, "scores_of", lambda *given, **more: -torch.eye(3))
    found = {key: result.value for key, result in text.judge_search(network, trial).items()}
    assert all(found[f"{way}_own_1"] == 0 and found[f"{way}_own_5"] == 1 for way in ("image_by_caption", "caption_by_image"))


# -- judges -----------------------------------------------------------------------------------------
SAID = [Facts(k, ("thin", "thick")[k % 2], ("left", "right")[k // 2 % 2]) for k in range(8)]
SEEN = [dataclasses.replace(one, shape="narrow", place="top") for one in SAID]  # an image shows more than is said of it


def spoken(facts):
    "A sentence that says these facts: digit, thickness and slant as far as they are there."
    noun = "digit" if facts.digit is None else DIGITS[facts.digit]
    return " ".join(filter(None, ("a" + "n" * (noun == "eight" and not facts.thickness), facts.thickness, noun))) + (f", leaning {facts.slant}" if facts.slant else "")


def drawn(facts): return packed(facts).double().reshape(-1, 1, 1, 1)


def but(facts, **changes):
    "These facts with others at some places, as `slant={2: \"left\"}` says."
    return [dataclasses.replace(one, **{name: there[k] for name, there in changes.items() if k in there}) for k, one in enumerate(facts)]


class Shown(text.Trial):
    "A trial whose images are their facts as numbers, and whose judge reads them off."
    def measured(self, images): return unpacked(images.flatten().long())


class Known:
    "A network whose answers are given; what it was asked is kept."
    description, name = "one who knows", "proxy"

    def __init__(self, **answers): self.answers, self.asked = answers, []
    def answer(self, way, *asked, **more):
        self.asked.append((way, *asked, more))
        return self.answers[way]

    def translate(self, x, source, target, **more): return self.answer(f"{source}_{target}", x, **more)
    def generate(self, name, n=None, **more): return self.answer(f"any_{name}" if n else f"label_{name}", n, **more)
    def classify(self, images): return self.answer("image_label", images)
    def decode(self, name, z, **more): return self.answer(f"z_{name}", z, **more)
    def prior(self, n, generator): return torch.zeros(n, 3)
    def labels(self, images): return digits_in(images.flatten().long())
    def look(self, images): return images.flatten(1), images.flatten(1), torch.zeros(len(images), 10)


def trial(said=None, facts=SEEN, **changes):
    config = dataclasses.replace(TINY, alpha_asked=0.25, **changes)
    return Shown(drawn(facts), packed(facts), [spoken(one) for one in SAID] if said is None else said, None, Known(), seeded(), config)


def values(found): return {key: result.value for key, result in found.items()}


def test_what_is_told_of_images_is_held_against_them():
    "Two digits wrong, a slant wrong, two not told, one sentence in no order, and captions that have nothing to do with it."
    written = [spoken(one) for one in but(SAID, digit={0: 9, 1: 9}, slant={2: "left", 3: None})]
    written[4] = "four thin"
    network, asked = Known(image_text=written), trial(["zero"] * 8)
    assert values(text.judge_captions(network, asked)) == {"told_digit": 6 / 8, "told_thickness": 1, "told_slant": 5 / 6, "told_all": 5 / 8, "told_facts": 22 / 8, "told_grammatical": 7 / 8}
    (way, given, more), = network.asked
    assert way == "image_text" and given is asked.images and more["alpha"] == 0


def test_what_is_drawn_is_held_against_what_was_asked_for():
    "Of images that show more than a sentence asks for, which is right whatever it is; a digit is wrong, and two are too thick."
    network, asked = Known(text_image=drawn(but(SEEN, digit={0: 9}, thickness={2: "thick", 4: "thick"}))), trial(facts=[Facts()] * 8)
    assert values(text.judge_drawn(network, asked)) == {"drawn_digit": 7 / 8, "drawn_thickness": 6 / 8, "drawn_slant": 1, "drawn_all": 5 / 8}
    (way, given, more), = network.asked
    assert way == "text_image" and given is asked.said and more["alpha"] == 0.25


def test_what_comes_back_is_counted_by_what_was_said():
    "A sentence told again: two other digits and one other slant. What was said and is left out does not come back; where both speak of it, it may be otherwise; what is added is neither."
    before, again = but(SAID, thickness={0: None, 1: None}, slant={7: None}), but(SAID, digit={0: 9, 2: 9}, slant={4: "right", 5: None}, thickness={6: None})
    asked = trial([spoken(one) for one in before])
    network = Known(text_text=[spoken(one) for one in again], any_text=["an 8", "an 8", "a zero", "an 8", "seven thin", "a 8", "a two", "a two"])
    assert values(text.judge_sentences(network, asked)) == {"again_digit": 6 / 8, "again_thickness": 5 / 6, "again_slant": 5 / 7, "again_all": 3 / 8, "kept_all": 5 / 8, "free_grammatical": 6 / 8, "free_different": 5 / 8}
    (way, given, more), (free, n, _) = network.asked
    assert (way, free, n) == ("text_text", "any_text", 8) and given is asked.said and more["alpha"] == 0.25


def test_ways_to_labels_and_from_them_are_counted_by_labels():
    "Sentences that tell no digit are not asked for one."
    said, wrong = [spoken(one) for one in but(SAID, digit={1: None, 5: None})], torch.arange(8)
    network = Known(label_image=drawn(but(SEEN, digit={0: 9})), image_label=torch.where(wrong < 2, 9, wrong), text_label=torch.tensor([0, 9, 9, 9, 6, 7]),
                    label_text=[spoken(one) for one in but(SAID, digit={1: 9, 2: 9, 3: 9, 4: None})])
    found = text.judge_labels(network, trial(said))
    assert values(found) == {"accuracy": 6 / 8, "agreement": 7 / 8, "text_accuracy": 3 / 6, "label_words": 4 / 8}
    asked = {way: (given, more) for way, given, more in network.asked}
    assert torch.equal(asked["label_image"][1]["label"], torch.arange(8)) and torch.equal(asked["label_text"][0], torch.arange(8))
    assert asked["text_label"][0] == [one for k, one in enumerate(said) if k not in (1, 5)] and asked["text_label"][1]["alpha"] == 0


def test_labels_and_sentences_are_of_different_images_and_both_are_asked_for(monkeypatch):
    "Everything is said but the digit; three zones do not meet, and of what is drawn a digit is wrong and two slants are."
    told = {}
    z = torch.arange(24.0).reshape(8, 3)
    monkeypatch.setattr(text, "in_both", lambda network, said, labels, generator: told.update(said=said, labels=labels) or (z, torch.arange(8) > 2))
    wanted = [dataclasses.replace(one, digit=(k - 1) % 8) for k, one in enumerate(SEEN)]
    network = Known(z_image=drawn(but(wanted, digit={0: 9}, slant={2: "left", 3: "left"})))
    found = text.judge_both(network, trial(["zero"] * 8, mention=1.0))
    assert values(found) == {"both_zones": 5 / 8, "both_digit": 7 / 8, "both_thickness": 1, "both_slant": 6 / 8, "both_shape": 1, "both_place": 1, "both_all": 5 / 8}
    assert [facts_in(one).facts for one in told["said"]] == [dataclasses.replace(one, digit=None) for one in SEEN] and told["labels"].tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    (way, given, more), = network.asked
    assert way == "z_image" and given is z and more["known"] == {"label": told["labels"], "text": told["said"]}


def test_an_edit_is_seen_where_the_new_fact_is_and_the_digit_stays(monkeypatch):
    "Six of eight captions have a word to turn round: thickness comes first. Drawn before, one shows the new fact already; drawn after, four do, and one has become another digit."
    said, told = [spoken(one) for one in but(SAID, thickness={0: None, 1: None}, slant={0: None, 1: None})], {}
    before, turned = SEEN[2:], [dataclasses.replace(one, thickness={"thin": "thick", "thick": "thin"}[one.thickness]) for one in SEEN[2:]]
    pictures = drawn(but(before, thickness={0: "thick"})), drawn(but(turned, digit={3: 9}, thickness={0: "thin", 5: "thick"}, slant={4: "upright"}))
    monkeypatch.setattr(text, "edited", lambda network, before, after, **more: told.update(before=before, after=after, **more) or pictures)
    found = text.judge_edits(None, trial(said))
    assert values(found) == {"edited_new": 4 / 6, "edited_old": 1 / 6, "edited_digit": 5 / 6} and found["edited_new"].protocol["sentences"] == "6"
    assert list(told["before"]) == said[2:] and list(told["after"]) == [turned_round(one) for one in said[2:]] and told["alpha"] == 0.25 and told["among"] == said


def test_where_nothing_can_be_turned_round_nothing_is_edited(): assert text.judge_edits(None, trial(["a seven"] * 8)) == {}


def test_images_not_asked_for_are_compared_with_real_ones():
    "Each pixel two off: a distance of four a pixel, squared."
    real = torch.rand(60, 1, 2, 2, generator=seeded())
    network = Known(z_image=real.flip(0) + 2)
    asked = dataclasses.replace(trial(), images=real)
    found = values(text.judge_images(network, asked))
    assert found["free_proxy_fid"] == pytest.approx(16, rel=1e-4) and found["free_proxy_recall"] == 0
    (way, z, _), = network.asked
    assert way == "z_image" and z.shape == (60, 3)


def test_what_is_measured_is_read_off_the_images():
    "The digit by the judge, who is wrong about two; the rest as it was measured when the data were."
    data = captioned(load_data("digits"))
    images, codes = data.valid.take(range(40))
    judge = SimpleNamespace(labels=lambda seen: torch.where(torch.arange(len(seen)) < 2, 9 - digits_in(codes), digits_in(codes)))
    found = text.Trial(images, codes, [], data.terms, judge, seeded(), TINY).measured(images)
    assert found == but(unpacked(codes), digit={k: 9 - int(digits_in(codes)[k]) for k in range(2)})


# -- mixed tasks ------------------------------------------------------------------------------------
@settings(max_examples=200)
@given(FACTS, st.integers(0, 2**31))
def test_one_word_turned_round_is_one_fact_changed_and_turned_again_nothing(facts, seed):
    before = caption(facts, seeded(seed), mention=0.9)
    after = turned_round(before)
    told = dataclasses.asdict(facts_in(before).facts)
    if after is None: assert told["thickness"] not in ("thin", "thick") and told["slant"] not in ("left", "right") and told["place"] not in ("left", "right"); return
    new = dataclasses.asdict(facts_in(after).facts)
    assert is_grammatical(after) and sum(a != b for a, b in zip(words_in(before), words_in(after))) == 1
    assert sum(told[name] != new[name] for name in told) == 1 and turned_round(after) == before


@given(FACTS, FACTS)
def test_common_facts_are_those_that_both_speak_of(one, other):
    found = dataclasses.asdict(common([one], [other])[0])
    for name, value in found.items(): assert value == (None if getattr(other, name) is None else getattr(one, name))


def test_a_latent_in_both_zones_lies_in_both(network):
    said, labels, network = ["a thick seven", "an 8", "a thin one", "zero, leaning left"], torch.tensor([1, 2, 3, 4]), copy.deepcopy(network)
    network["text"].zone_steps = network["label"].zone_steps = 40
    z, found = in_both(network, said, labels, seeded(), tries=256)
    zones, own = network["text"].zones(said)
    assert found.any() and torch.equal(zones.decode(z), own) and torch.equal(network.decode("label", z)[found], labels[found])
    with pytest.raises(ValueError, match="labels: got 3, wanted 4, one for each sentence"): in_both(network, said, labels[:3])


@pytest.mark.parametrize("tries", [0, -1, 2.5, True, None])
def test_tries_are_a_number_of_them(network, tries):
    with pytest.raises(ValueError, match="tries: got .*, wanted an integer ≥ 1"): in_both(network, ["a thick seven", "an 8"], torch.tensor([0, 5]), tries=tries)


def test_zones_that_do_not_meet_are_reported(monkeypatch):
    network = awake().eval()
    monkeypatch.setattr(network["label"], "decode", lambda z, generator=None, **given: torch.zeros(len(z), dtype=torch.long))
    assert in_both(network, ["a thick seven", "an 8"], torch.tensor([0, 5]), seeded(), tries=4)[1].tolist() == [True, False]


def test_an_edit_that_changes_nothing_draws_the_same(network):
    said, company = ["a thick seven", "an 8"], ["a thin one", "zero"]
    same = edited(network, said, said, alpha=0.5, generator=seeded(), among=company)
    assert torch.equal(*same)
    before, after = edited(network, said, ["a thin seven", "an 8"], alpha=0.5, generator=seeded(), among=company)
    assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize("before, after, words", [(["a thick seven", "an 8"], ["a thin seven"], "after: got 1 sentences, wanted 2, one for each of those before"), ("an 8", ["an 8", "zero"], "after: got 2 sentences, wanted 1"),
                                                  ([], [], "text: got no samples"), (["an 8"], [7], "text: got int"), (["an 8"], ["purple elephants"], "no word is known")])
def test_edits_of_what_are_no_pairs_of_sentences_are_refused(network, before, after, words):
    with pytest.raises(ValueError, match=words): edited(network, before, after, alpha=0.5)


def test_a_single_edit_may_be_given_as_strings_and_warns_once_of_unknown_words(network):
    lists = edited(network, ["a thick seven"], ["a thin seven"], alpha=0.5, generator=seeded(), among=["zero"])
    strings = edited(network, "a thick seven", "a thin seven", alpha=0.5, generator=seeded(), among="zero")
    assert all(torch.equal(*pair) for pair in zip(lists, strings))
    with pytest.warns(UserWarning, match="unknown") as told: edited(network, ["a purple seven"], ["an 8"], alpha=0.5)
    assert sum("unknown words" in str(one.message) for one in told) == 1


def test_unknown_words_are_told_of_once_by_a_decoder_that_hears_them(network):
    with pytest.warns(UserWarning, match="unknown words, read as <unknown>: purple") as told: drawn = network.translate("a purple seven", "text", "image", among=["an 8"], generator=seeded())
    assert sum("unknown words" in str(one.message) for one in told) == 1
    assert torch.equal(drawn, network.translate("a <unknown> seven", "text", "image", among=["an 8"], generator=seeded()))


@pytest.mark.parametrize("target", ["text", "label", "image"])
def test_unknown_words_are_told_of_once_whatever_the_way(network, target):
    with pytest.warns(UserWarning, match="unknown") as told: network.translate(["a purple seven", "an 8"], "text", target, generator=seeded())
    assert sum("unknown words" in str(one.message) for one in told) == 1


def test_nobody_else_in_the_space_is_none_or_an_empty_list(network):
    said, labels, images = ["a thick seven", "an 8"], torch.tensor([7, 8]), batch(2)[0]
    for call in (lambda **more: scores_of(network, images, said, **more), lambda **more: in_both(network, said, labels, seeded(), **more)[0],
                 lambda **more: edited(network, said, said[::-1], alpha=0.5, generator=seeded(), **more)[1]):
        assert all(torch.equal(call(), call(among=nobody)) for nobody in (None, [], ()))


# -- runs -------------------------------------------------------------------------------------------
def test_a_run_is_judged_on_every_task_and_leaves_what_it_promises(run):
    shares = {key: value for key, value in run.figures.items() if key.split("_")[0] in ("told", "drawn", "kept", "edited", "both", "image", "caption", "accuracy", "agreement", "label")}
    assert len(shares) > 25 and all(0 <= value <= 1 for value in shares.values())
    assert {"told_grammatical", "drawn_digit", "free_grammatical", "free_proxy_fid", "accuracy", "text_accuracy", "agreement", "label_words", "probe", "both_zones", "edited_new", "image_by_caption_own_5"} <= run.figures.keys()
    assert run.figures["protocols"].keys() >= shares.keys()
    assert (run.out / "report.html").exists() and list((run.out / "samples").glob("*.png"))


def test_the_same_seed_is_judged_the_same(run):
    data = captioned(load_data("digits"))
    found = [evaluate_text(run.network, data, run.config, split="valid", limit=40, seed=2) for _ in range(2)]
    assert found[0] == found[1]


def test_captions_of_digits_alone_leave_out_the_edits(tmp_path):
    done = run_text("digits", "tiny", tmp_path / "run", progress=False, steps=2, mention=0.0)
    assert not any(key.startswith("edited") for key in (*done.figures, *done.figures["protocols"])) and done.figures.keys() >= {"told_digit", "drawn_digit", "both_zones", "image_by_caption_own_5"}
    assert (done.out / "report.html").exists()


def test_four_images_are_enough_to_be_judged_on(run):
    found = evaluate_text(run.network, captioned(load_data("digits")), run.config, split="valid", limit=4)
    assert found["image_by_caption_own_5"] == found["caption_by_image_own_5"] == 1.0


def test_interrupted_run_ends_like_an_uninterrupted_one(run, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(run.out, out)
    for file in (out / "checkpoints").glob("*20.*"): file.unlink()
    lines = [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"final"' not in line]
    (out / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert list((out / "checkpoints").iterdir())
    again = run_text("digits", "tiny", out, progress=False, resume=True)
    for name, value in run.network.state_dict().items(): assert torch.equal(value, again.network.state_dict()[name]), name
    same = lambda figures: {key: value for key, value in figures.items() if key not in ("wall_seconds", "protocols")}
    assert same(again.figures) == same(run.figures)


@pytest.mark.parametrize("name, figures", [("contrastive", {"probe", "image_by_caption_fits"}), ("without-label", {"drawn_digit", "free_grammatical", "free_proxy_fid"}),
                                           ("without-text", {"accuracy", "agreement", "free_proxy_fid", "probe"}), ("without-image", {"text_accuracy", "label_words", "free_grammatical"})])
def test_a_baseline_is_judged_by_what_it_can(tmp_path, name, figures):
    done = run_text("digits", "tiny", tmp_path / name, progress=False, steps=2, **TEXT.baselines[name])
    assert figures <= done.figures.keys() and (done.out / "report.html").exists()
    assert ("told_grammatical" in done.figures) == (name == "without-label") and ("accuracy" in done.figures) == (name == "without-text")
    assert set(load_text(done.out).types) == set(done.config.kinds)


# -- ranks --------------------------------------------------------------------------------------------
CASES = [(name, changes) for name in PARTS for changes in ({"batch": 12}, {"batch": 13, "piece": 5, "jitter": 0.5}, {"batch": 14, "accumulate": 2})]
CASES += [("none", {"batch": 13, "back_weight": 1.5, "unnamed": 0.4}), ("none", {"batch": 13, "own_only": True})]


def gradient(name, changes):
    config = dataclasses.replace(configured(name), **changes)
    return gradient_of("text", config, text_network(config, SHAPE, 10).double(), *batch(config.batch))


def test_ranks_have_the_gradient_of_the_whole_batch(tmp_path):
    "Loss and every gradient on two ranks, with equal and unequal shares, in pieces and accumulated."
    for case, found, wanted in on_ranks_and_here(2, tmp_path, gradient, CASES):
        assert wanted.isfinite().all() and wanted[1:].abs().max() > 1e-3, case
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), case
