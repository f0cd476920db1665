"The scenario with sentences: settings, losses, what a decoder hears, searching, mixed tasks, runs."
import copy
import dataclasses
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lzn_nb.captioned import captioned, digits_in, packed, unpacked
from lzn_nb.captions import caption, facts_in, is_grammatical, words_in
from lzn_nb.data import load_data
from lzn_nb.measures import ATTRIBUTES, Facts
from lzn_nb.saved import load, save
from lzn_nb.scenarios import base, text
from lzn_nb.scenarios.text import TEXT, TEXT_PRESETS, common, edited, evaluate_text, in_both, load_text, plan_text, run_text, says_digit, scores_of, text_components, text_losses, text_network, turned_round, worded
from lzn_nb.text import heard_by
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
def run(tmp_path_factory): return run_text("digits", "tiny", tmp_path_factory.mktemp("text") / "run", progress=False)


# -- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize("changes, words", [
    ({"without": "sound"}, "without: got 'sound', wanted one of image, label, text"), ({"contrastive": True, "without": "image"}, "without: got 'image' with contrastive=True"),
    ({"zones": False}, "zones: got False"), ({"crossed": 1.5}, "crossed: got 1.5"), ({"heard": -0.1}, "heard: got -0.1"), ({"mention": math.nan}, "mention: got nan"),
    ({"temperature": 0.0}, "temperature: got 0.0"), ({"text_sharpness": 0.0}, "text_sharpness: got 0.0"), ({"text_weight": math.inf}, "text_weight: got inf"),
    ({"text_width": 30}, "text_width: got 30, wanted a multiple of the 4 heads"), ({"text_layers": 0}, "text_layers: got 0"), ({"ear_dim": 0}, "ear_dim: got 0"),
    ({"guidance": -1.0}, "guidance: got -1"), ({"back_weight": -1.0}, "back_weight: got -1")])
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


def test_guidance_leads_on_by_what_the_sentence_changes(network):
    image, z, said = network["image"], network.prior(3, seeded(1)), ["a thick seven", "an 8", None]
    x, t, labels = torch.randn(3, *SHAPE, generator=seeded(2)), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([7, 8, 1])
    at = lambda text, **more: image.flow(x, t, **image.given(z, labels, text, **more))
    silent, heard, loud = at(None), at(said, guidance=1.0), at(said, guidance=3)
    torch.testing.assert_close(loud - silent, 3 * (heard - silent), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(said, guidance=0), silent)
    torch.testing.assert_close(loud[2], silent[2])  # of nothing said, nothing is made more
    assert not torch.allclose(loud[0], heard[0]) and torch.equal(heard, image.decoder(x, t, **image.given(z, labels, heard_by(image.ear, said))))


def test_guidance_is_as_built_unless_another_is_asked_for(network, tmp_path):
    assert network["image"].guidance == TINY.guidance == 2.0
    draw = lambda net, **more: net.translate(["a thick seven", "an 8"], "text", "image", generator=seeded(3), **more)
    assert torch.equal(draw(network), draw(network, guidance=2)) and not torch.allclose(draw(network), draw(network, guidance=1))
    labels = lambda net: net.generate("image", label=[3, 4], generator=seeded(4))
    plain = awake(dataclasses.replace(TINY, guidance=1.0)).eval()
    assert torch.equal(draw(plain), draw(network, guidance=1)) and torch.equal(labels(plain), labels(network))
    save(awake(dataclasses.replace(TINY, guidance=3.0)), file := tmp_path / "loud.safetensors")
    assert load(file)["image"].guidance == 3.0


@pytest.mark.parametrize("guidance", [-0.1, math.nan, math.inf, "loud", True])
def test_guidance_out_of_range_is_named(network, guidance):
    with pytest.raises(ValueError, match="guidance: got"): network.translate("a seven", "text", "image", guidance=guidance)


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
    scores = scores_of(network, dataclasses.replace(TINY, text_sharpness=400.0), torch.zeros(4, *SHAPE), said)
    assert torch.equal(scores.argmax(1), order) and torch.allclose(scores.exp().sum(1), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("contrastive", [False, True])
def test_a_search_takes_what_the_network_takes_and_names_the_rest(contrastive):
    config = configured("contrastive") if contrastive else TINY
    network, images = text_network(config, SHAPE, 10).eval(), batch(3)[0]
    assert torch.equal(scores_of(network, config, images, "a thick seven"), alone := scores_of(network, config, images, ["a thick seven"])) and alone.shape == (3, 1)
    for wrong, words in (([], "text: got no samples"), (7, "text: got int"), (["an 8", ""], "text: got an empty sentence"), ("purple elephants", "no word is known")):
        with pytest.raises(ValueError, match=words): scores_of(network, config, images, wrong)
    for wrong, words in ((images[:0], "image: got no samples"), (images[:, :, :4], "image: got .* of shape"), ("image", "image: got str"), (images * torch.nan, "image: number 0 holds NaN")):
        with pytest.raises(ValueError, match=words): scores_of(network, config, wrong, ["an 8", "zero"])
    with pytest.warns(UserWarning, match="purple") as told: scores_of(network, config, images, ["a purple seven", "an 8"])
    assert len(told) == 1


@pytest.mark.parametrize("better, first, five", [(0, 1.0, 1.0), (3, 0.0, 1.0), (4, 0.0, 1.0), (5, 0.0, 0.0), (7, 0.0, 0.0)])
def test_recall_is_counted(network, monkeypatch, better, first, five):
    "Of eight, so many others score better than one's own."
    said, k = ["a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven"], torch.arange(8)
    trial = text.Trial(torch.zeros(8, *SHAPE), packed([Facts(digit=d) for d in range(8)]), said, None, None, seeded(), TINY)
    away = (k[None] - k[:, None]) % 8  # 0: one's own, 1 to 7: the others, from either side
    monkeypatch.setattr(text, "scores_of", lambda *given: torch.where(away == 0, 0.5, torch.where(away <= better, 1.0, 0.0)))
    found = {key: result.value for key, result in text.judge_search(network, trial).items()}
    for way in ("image_by_caption", "caption_by_image"):
        assert found[f"{way}_own_1"] == found[f"{way}_fits"] == first and found[f"{way}_own_5"] == five


def test_of_equal_captions_any_is_the_own_one(network, monkeypatch):
    codes, said = packed([Facts(digit=1)] * 6), ["a one"] * 6
    trial = text.Trial(torch.zeros(6, *SHAPE), codes, said, None, None, seeded(), TINY)
    monkeypatch.setattr(text, "scores_of", lambda *given: torch.arange(6.0).expand(6, 6))
    found = {key: result.value for key, result in text.judge_search(network, trial).items()}
    assert found["caption_by_image_own_1"] == found["caption_by_image_fits"] == found["image_by_caption_fits"] == 1.0
    assert found["image_by_caption_own_1"] == pytest.approx(1 / 6)


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
CASES += [("none", {"batch": 13, "back_weight": 1.5})]


def gradient(name, changes):
    config = dataclasses.replace(configured(name), **changes)
    return gradient_of("text", config, text_network(config, SHAPE, 10).double(), *batch(config.batch))


def test_ranks_have_the_gradient_of_the_whole_batch(tmp_path):
    "Loss and every gradient on two ranks, with equal and unequal shares, in pieces and accumulated."
    for case, found, wanted in on_ranks_and_here(2, tmp_path, gradient, CASES):
        assert wanted.isfinite().all() and wanted[1:].abs().max() > 1e-3, case
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), case
