"Text in the network: what can be read and what not, equal sentences as one zone, nine directions, files, and other people's encoders."
import builtins
import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lzn_nb.alignment import alignment_loss
from lzn_nb.captions import VOCABULARY, facts_in
from lzn_nb.nets import UNetDecoder, UNetEncoder
from lzn_nb.network import ImageType, LabelType, LatentZoningNetwork
from lzn_nb.saved import load, made_from, recipe_of, save
from lzn_nb.text import SentenceEncoder, TextInput, TextType, cleaned, distinct, make_text, sentence_model, strings_of
from lzn_nb.words import PAD, Tokenizer, word_errors
from lzn_nb.zones import LatentZones

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
Q, CLASSES, SHAPE, LENGTH = 6, 4, (1, 8, 8), 14
SENTENCES = ["a thick seven, leaning left", "an 8", "the 7 is thin", "zero", "a picture of a bold digit 3, at the top"]
REPEATED = ["an 8", "zero", "an 8", "the 7 is thin", "an 8", "zero"]


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def wide_awake(text):
    "A text type with anchors apart and a decoder of opinions."
    with torch.no_grad():
        text.encoder.head.weight.mul_(10)
        text.decoder.head.weight.mul_(6)
    return text


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(VOCABULARY, LENGTH)


@pytest.fixture(scope="module")
def trio(tokenizer):
    torch.manual_seed(0)
    body = dict(width=8, mults=(1, 2), blocks=1, attention=(4,))
    image = ImageType(UNetEncoder(1, 8, Q, tap=2, hidden=8, **body), UNetDecoder(1, 8, latent_dim=Q, classes=CLASSES, **body), SHAPE, Q, sample_steps=2)
    return LatentZoningNetwork({"image": image, "label": LabelType(CLASSES, Q), "text": wide_awake(make_text(tokenizer, Q, width=16, heads=2))})


@pytest.fixture
def text(trio):
    return trio["text"]


SAMPLES = {"image": torch.rand(5, *SHAPE, generator=seeded()) * 2 - 1, "label": torch.tensor([0, 3, 1, 2, 2]), "text": SENTENCES}


# -- what is a sentence -------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["An 8. ", "An 8!", '"An 8?"', ["an  8"], ("AN 8",), np.array(["an 8"]), np.array("an 8"), np.str_("an 8"), np.array(["an 8"], dtype=object)])
def test_sentences_in_any_form(text, form):
    assert text.check(form) == ["an 8"] and isinstance(text.check(form)[0], str)


@pytest.mark.parametrize("wrong, what", [
    (7, "got int, wanted a string or a list of strings"), (None, "got NoneType"), ({"an 8"}, "got set"), (b"an 8", "got bytes"), ((one for one in SENTENCES), "got generator"), (torch.zeros(2), r"got float \(number 0\), wanted strings"),
    (["an 8", 7], r"got int \(number 1\), wanted strings"), (["an 8", None], "got NoneType"), (["an 8", ["zero"]], "got list"), ("", r"got an empty sentence \(number 0\)"), (["an 8", " . "], r"empty sentence \(number 1\)"), (["an 8", "?!"], r"empty sentence \(number 1\)"),
    (["zero", "an " * 13], "number 1 has 13 words and commas, wanted at most 12"), (["zero", "жирная семёрка"], r"got 'жирная семёрка' \(number 1, in Cyrillic letters\), of which no word is known, wanted words such as"),
    ("purple elephants", "no word is known"), (", ,", "no word is known"),
])
def test_what_cannot_be_read_is_told_why(trio, wrong, what):
    asks = [trio["text"].check, lambda x: trio.embed("text", x), lambda x: trio.translate(x, "text", "label", among=SENTENCES), lambda x: trio.translate(SENTENCES, "text", "label", among=x)]
    for ask in asks[: 3 if wrong is None else 4]:  # among nobody is fine
        with pytest.raises(ValueError, match=f"text: .*{what}"): ask(wrong)


def test_no_sentence_at_all(trio):
    assert trio["text"].check([]) == []
    with pytest.raises(ValueError, match="text: got no samples"): trio.embed("text", [])


def test_a_network_without_text_says_so(trio):
    with pytest.raises(ValueError, match=r"data type: got 'text', wanted one of \['label'\]"): LatentZoningNetwork({"label": trio["label"]}).translate("an 8", "text", "label")


def test_unknown_words_in_a_known_sentence(trio):
    with pytest.warns(UserWarning, match="text: unknown words, read as <unknown>: purple") as told: read = trio["text"].check(["a purple seven", "an 8"])
    assert read == ["a <unknown> seven", "an 8"] and len(told) == 1
    with pytest.warns(UserWarning) as told: anchors = trio.embed("text", ["a purple seven", "an 8"])
    assert len(told) == 1  # once, though several look at it
    assert torch.equal(anchors, trio.embed("text", ["a <unknown> seven", "an 8"])) and not torch.equal(anchors[0], trio.embed("text", ["a seven", "an 8"])[0])
    with pytest.warns(UserWarning, match="purple"): assert len(trio.translate("a purple seven", "text", "text", among=SENTENCES)) == 1


@given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused(texts):
    "Never another error; and what is read is read the same when it is given again."
    text = make_text(Tokenizer(VOCABULARY, LENGTH), 2, width=8, layers=1, heads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: read = text.check(texts)
        except ValueError as refusal: assert str(refusal).startswith("text: ")
        else: assert text.check(read) == read and len(read) == len(texts) and text.anchors(texts).shape == (len(texts), 2)


# -- anchors, errors, sentences -----------------------------------------------------------------
def test_a_sentence_has_its_anchor_in_any_company(text):
    whole = text.anchors(SENTENCES)
    for k, one in enumerate(SENTENCES): torch.testing.assert_close(text.anchors(one)[0], whole[k], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text.encoder(text.tokenizer.encode(SENTENCES)), whole, atol=1e-4, rtol=1e-4)  # padded to the limit
    assert text.tokens(SENTENCES[1]).shape == (1, 4) and (text.tokens(SENTENCES) != PAD).all(0).sum() == 3


def test_errors_are_those_of_the_decoder(text):
    z = torch.randn(5, Q, generator=seeded(), requires_grad=True)
    errors = text.errors(SENTENCES, z)
    torch.testing.assert_close(errors, word_errors(text.decoder, text.tokenizer.encode(SENTENCES), z), atol=1e-4, rtol=1e-5)
    errors.sum().backward()
    assert z.grad.any() and errors.shape == (5,)
    text.zero_grad()
    with pytest.raises(ValueError, match="z: got shape"): text.errors(SENTENCES, z[:4])


def test_decoding_leaves_the_mode_and_takes_no_gradient(text):
    text.train()
    z = torch.randn(4, Q, generator=seeded(), requires_grad=True)
    assert text.decode(z) == text.tokenizer.decode(text.decoder.write(z)) and text.training and text.decoder.training
    assert text.decode(3 * z, seeded(), temperature=1.0) == text.decode(3 * z, seeded(), temperature=1.0) != text.decode(3 * z, seeded(1), temperature=1.0)
    text.eval()


def test_what_is_written_can_be_read(trio):
    "As long as it has a word: commas alone are a sentence that an untrained network may write."
    written = trio.generate("text", 40, generator=seeded(), temperature=1.0)
    assert len(written) == 40 and not any(facts_in(one).unknown for one in written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trio["text"].check([one for one in written if one.strip(", ")])


def test_halves_are_missed_only_where_they_are_needed(text):
    writer, reader = TextType(None, text.decoder, text.tokenizer, Q), TextType(text.encoder, None, text.tokenizer, Q)
    z = torch.randn(3, Q, generator=seeded())
    assert writer.decode(z) == text.decode(z) and writer.check("an 8") == ["an 8"] and torch.equal(reader.anchors(SENTENCES), text.anchors(SENTENCES))
    for ask in (lambda: writer.anchors(SENTENCES), lambda: writer.zones(SENTENCES), lambda: reader.decode(z), lambda: reader.errors(SENTENCES[:3], z)):
        with pytest.raises(NotImplementedError, match="TextType has no (en|de)coder"): ask()


@pytest.mark.parametrize("other, what", [(dict(latent_dim=Q + 1), "encoder: got latent_dim 6, wanted 7"), (dict(words=VOCABULARY[1:]), "encoder: got vocabulary 81, wanted 80"), (dict(length=LENGTH + 1), "encoder: got length 14, wanted 15")])
def test_parts_must_fit(text, other, what):
    given = dict(words=VOCABULARY, length=LENGTH, latent_dim=Q) | other
    with pytest.raises(ValueError, match=what): TextType(text.encoder, text.decoder, Tokenizer(given["words"], given["length"]), given["latent_dim"])
    with pytest.raises(ValueError, match=what.replace("encoder", "decoder")): TextType(None, text.decoder, Tokenizer(given["words"], given["length"]), given["latent_dim"])


# -- sentences that repeat ----------------------------------------------------------------------
@given(st.lists(st.sampled_from(SENTENCES), max_size=20))
@settings(deadline=None)
def test_distinct(sentences):
    different, counts, index = distinct(sentences)
    assert [different[k] for k in index.tolist()] == sentences and len(set(different)) == len(different)
    assert counts.tolist() == [sentences.count(one) for one in different] and counts.dtype == index.dtype == torch.long
    assert different == list(dict.fromkeys(sentences))


def test_equal_sentences_are_one_zone_of_their_weight(text):
    zones, index = text.zones(REPEATED)
    assert len(zones) == 3 and index.tolist() == [0, 1, 0, 2, 0, 1]
    torch.testing.assert_close(zones.log_weights.exp(), torch.tensor([3, 2, 1]) / 6)
    torch.testing.assert_close(zones.anchors, text.anchors(REPEATED[:2] + REPEATED[3:4]), atol=1e-4, rtol=1e-4)
    held = zones.decode(torch.randn(20_000, Q, generator=seeded())).bincount(minlength=3) / 20_000
    assert (held - torch.tensor([3, 2, 1]) / 6).abs().max() < 0.015


def test_case_and_spaces_make_no_difference(text):
    assert text.zones(["an 8", "An  8.", "AN 8 "])[1].tolist() == [0, 0, 0]


def test_the_merged_zone_is_that_of_its_copies(text):
    "The flow through three anchors in one place is that through one of weight three; told from Euler, which needs no distances."
    noise = torch.randn(6, Q, generator=seeded())
    zones, index = text.zones(REPEATED)
    copies = LatentZones(text.anchors(REPEATED), solver="euler", steps=400)
    merged = LatentZones(zones.anchors, torch.tensor([3.0, 2.0, 1.0]), solver="euler", steps=400)
    torch.testing.assert_close(merged.encode(index, noise), copies.encode(noise=noise), atol=1e-3, rtol=1e-3)
    z = torch.randn(200, Q, generator=seeded())
    assert torch.equal(merged.decode(z), index[copies.decode(z)])
    adams = zones.encode(index, noise)
    assert (adams - merged.encode(index, noise)).norm(dim=1).mean() < 0.05 * adams.norm(dim=1).mean()


def test_the_order_of_sentences_makes_no_difference(text):
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    noise = torch.randn(6, Q, generator=seeded())
    (zones, index), (shuffled, there) = text.zones(REPEATED), text.zones([REPEATED[k] for k in order])
    torch.testing.assert_close(zones.encode(index, noise)[order], shuffled.encode(there, noise[order]), atol=1e-3, rtol=1e-3)
    z = torch.randn(500, Q, generator=seeded())
    names = [[different[k] for k in which.decode(z)] for which, different in ((zones, distinct(REPEATED)[0]), (shuffled, distinct([REPEATED[k] for k in order])[0]))]
    assert sum(a == b for a, b in zip(*names)) >= 499


def test_without_repetitions_zones_are_those_of_any_type(text):
    zones, index = text.zones(SENTENCES)
    assert index.tolist() == [0, 1, 2, 3, 4] and torch.equal(zones.anchors, text.anchors(SENTENCES))
    noise = torch.randn(5, Q, generator=seeded())
    torch.testing.assert_close(zones.encode(noise=noise), LatentZones(text.anchors(SENTENCES)).encode(noise=noise), atol=1e-4, rtol=1e-4)


def test_weights_of_equal_sentences_add_up(text):
    weights = torch.tensor([1.0, 2, 3, 4, 0, 5], requires_grad=True)
    zones, _ = text.zones(REPEATED, weights)
    torch.testing.assert_close(zones.log_weights.exp(), torch.tensor([4.0, 7, 4]) / 15)
    zones.encode([0, 1, 2], torch.randn(3, Q, generator=seeded())).sum().backward()
    assert weights.grad.any()
    text.zero_grad()
    torch.testing.assert_close(text.zones(REPEATED, [1, 1, 1, 1, 1, 1])[0].log_weights, text.zones(REPEATED)[0].log_weights)
    with pytest.raises(ValueError, match=r"weights: got shape \[5\], wanted \[6\]"): text.zones(REPEATED, torch.ones(5))


def test_latents_of_repeated_sentences_lie_in_their_zone(trio):
    z = trio.latents("text", REPEATED * 20, generator=seeded())
    zones, index = trio["text"].zones(REPEATED * 20)
    assert (zones.decode(z) == index).float().mean() > 0.97 and len(z) == 120
    centres = trio.latents("text", REPEATED, alpha=0.0)
    assert torch.equal(centres[0], centres[2]) and torch.equal(centres[1], centres[5]) and not torch.equal(centres[0], centres[1])


def test_only_one_sentence_many_times_warns(trio):
    with pytest.warns(UserWarning, match="text: a single sample owns the whole latent space"): z = trio.latents("text", ["an 8", "an 8"], alpha=0.0)
    assert z.shape == (2, Q) and not z.any()


def test_the_alignment_reaches_encoders_of_both_sides(trio):
    "Images into the zones of their captions, two of which are the same."
    image, text = trio["image"], trio["text"]
    said = ["an 8", "zero", "an 8", "the 7 is thin", "zero"]
    zones, index = text.zones(said)
    loss = alignment_loss(image.zones(SAMPLES["image"])[0].encode(generator=seeded()), zones, index)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in text.encoder.parameters()) and image.encoder.taps["0"][-1].weight.grad.any()
    trio.zero_grad()


# -- nine directions ----------------------------------------------------------------------------
@pytest.mark.parametrize("source", SAMPLES)
@pytest.mark.parametrize("target", SAMPLES)
@pytest.mark.parametrize("among", [None, "samples", "zones"])
def test_every_way_through_the_space(trio, source, target, among):
    x, others = SAMPLES[source][:3], SAMPLES[source][3:]
    company = others if among == "samples" else trio.zones_of(source, others, batch=1) if among == "zones" and source != "label" else None
    out = trio.translate(x, source, target, among=company, generator=seeded())
    again = trio.translate(x, source, target, among=company, generator=seeded())
    assert len(out) == 3 and (torch.equal(out, again) if isinstance(out, torch.Tensor) else out == again)
    if target == "text": assert all(isinstance(one, str) and one for one in out)
    else: assert out.shape == (3, *SHAPE) if target == "image" else out.shape == (3,)


def test_translation_is_latent_and_decoder(trio):
    generator = seeded()
    z = trio.latents("text", SENTENCES, generator=generator)
    drawn = trio.decode("image", z, generator=generator)
    assert torch.equal(trio.translate(SENTENCES, "text", "image", generator=seeded()), drawn)
    assert trio.translate(SAMPLES["image"], "image", "text", alpha=0.0) == trio["text"].decode(trio.latents("image", SAMPLES["image"], alpha=0.0))
    assert trio.translate("an 8", "text", "text", alpha=0.0, among=SENTENCES[2:]) == trio.translate(["an 8"], "text", "text", alpha=0.0, among=tuple(SENTENCES[2:]))


def test_options_reach_the_decoder(trio):
    hot = lambda seed: trio.translate(SAMPLES["image"], "image", "text", alpha=0.0, temperature=2.0, generator=seeded(seed))
    assert hot(0) == hot(0) != hot(1) and trio.generate("text", label=2, generator=seeded(), temperature=1.0)
    free = trio.generate("text", 7, generator=seeded())
    assert free == trio.decode("text", torch.randn(7, Q, generator=seeded())) and len(set(free)) > 1
    with pytest.raises(ValueError, match="temperature: got -1"): trio.generate("text", 2, temperature=-1)


def test_latents_depend_on_company_only(trio):
    one, mates = SENTENCES[:1], SENTENCES[1:]
    with_mates = trio.latents("text", SENTENCES, alpha=0.0)[:1]
    assert torch.allclose(trio.latents("text", one, alpha=0.0, among=mates), with_mates, atol=1e-3)
    assert torch.allclose(trio.latents("text", one, alpha=0.0, among=trio.zones_of("text", mates, batch=2)), with_mates, atol=2e-3)
    assert not torch.allclose(trio.latents("text", one, alpha=0.0, among=mates[:2]), with_mates, atol=1e-2)
    assert trio.latents("text", "an 8", among=trio.zones_of("text", REPEATED), generator=seeded()).isfinite().all()  # one that is there already


@pytest.mark.parametrize("device", DEVICES)
def test_devices(trio, device):
    there = copy.deepcopy(trio).to(device)
    assert there.embed("text", SENTENCES).device.type == device and there["text"].zones(REPEATED)[1].device.type == device
    assert there["text"].errors(SENTENCES, there.prior(5)).isfinite().all() and len(there.translate(SENTENCES, "text", "text", generator=seeded())) == 5


# -- files --------------------------------------------------------------------------------------
def test_it_is_saved_with_its_words(trio, tmp_path):
    again = load(save(trio, tmp_path / "trio.safetensors"))
    assert recipe_of(again) == recipe_of(trio) and again["text"].tokenizer.words == VOCABULARY and not again.training
    assert torch.equal(again.embed("text", SENTENCES), trio.embed("text", SENTENCES))
    for target in SAMPLES:
        a, b = (network.translate(SENTENCES, "text", target, generator=seeded()) for network in (trio, again))
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    half = load(save(trio, tmp_path / "half.safetensors", dtype=torch.float16))
    assert half.embed("text", SENTENCES).dtype == torch.float32


def test_a_file_with_text_is_read_where_nobody_has_asked_for_text(trio, tmp_path):
    path = save(LatentZoningNetwork({"text": trio["text"]}), tmp_path / "a.safetensors")
    code = f"from lzn_nb.saved import load; print(load({str(path)!r}).embed('text', ['an 8', 'zero']).shape)"
    assert "torch.Size([2, 6])" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_recipes_of_the_types(text, tokenizer):
    for kind in (text, TextInput(text.encoder, None, tokenizer, Q, zone_steps=4, solver="euler"), TextType(None, text.decoder, tokenizer, Q)):
        again = made_from(json.loads(json.dumps(recipe_of(kind))))
        assert type(again) is type(kind) and recipe_of(again) == recipe_of(kind) and (again.zone_steps, again.solver) == (kind.zone_steps, kind.solver)


# -- other people's encoders --------------------------------------------------------------------
class Letters:
    "A stand-in with the interface of a model of sentence-transformers; its features come from inference mode, as theirs do."
    max_seq_length = 45
    def tokenizer(self, sentence): return {"input_ids": [101, *sentence.encode(), 102]}

    @torch.inference_mode()
    def encode(self, sentences, convert_to_tensor=False, show_progress_bar=None, device=None):
        found = [[one.count(letter) / len(one) for letter in "abcdefghijklmnopqrstuvwxyz "] for one in sentences]
        return torch.tensor(found, device=device) if convert_to_tensor else np.array(found)


@pytest.fixture
def fluent(text, tokenizer):
    torch.manual_seed(0)
    return TextType(SentenceEncoder(Letters(), Q), text.decoder, tokenizer, Q)


def test_another_encoder_takes_the_place(fluent, trio):
    network = LatentZoningNetwork({**trio.types, "text": fluent})
    assert network.embed("text", SENTENCES).shape == (5, Q) and network.translate(SENTENCES, "text", "image", generator=seeded()).shape == (5, *SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network.embed("text", ["a fat seven", "жирная семёрка"]).isfinite().all()  # words are its own business


def test_only_its_head_learns(fluent):
    assert [name for name, _ in fluent.encoder.named_parameters()] == ["head.1.weight", "head.1.bias"] == list(fluent.encoder.state_dict())
    fluent.train()
    fluent.zones(SENTENCES)[0].encode(generator=seeded()).square().sum().backward()
    assert all(p.grad.any() for p in fluent.encoder.parameters())
    assert copy.deepcopy(fluent).double().anchors(SENTENCES).dtype == torch.float64


def test_its_own_limits_are_kept(fluent):
    with pytest.raises(ValueError, match="text: number 1 has 46 tokens of its model, wanted at most 45"): fluent.check(["an 8", "a" * 44])
    with pytest.raises(ValueError, match="text: got an empty sentence"): fluent.check([""])
    fluent.encoder.frozen[0].max_seq_length = None
    assert fluent.check(["a" * 44]) == ["a" * 44]
    fluent.encoder.frozen[0].max_seq_length = 45


def test_what_is_to_be_written_is_judged_by_the_tokenizer(fluent):
    with pytest.raises(ValueError, match="of which no word is known"): fluent.errors(["жирная"], torch.zeros(1, Q))
    with pytest.warns(UserWarning, match="fat"): assert fluent.errors(["a fat 8"], torch.zeros(1, Q)).isfinite().all()


def test_a_model_without_name_is_not_saved(fluent, tmp_path):
    with pytest.raises(ValueError, match="types.text.encoder.model: got Letters, wanted modules and plain values"): save(LatentZoningNetwork({"text": fluent}), tmp_path / "a.safetensors")


def test_without_the_library(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest, **options: (_ for _ in ()).throw(ImportError(name)) if name.startswith("sentence_transformers") else real(name, *rest, **options))
    with pytest.raises(ImportError, match=r"sentence-transformers: not installed, wanted for pretrained text encoders: pip install 'lzn_nb\[text\]'"): SentenceEncoder("all-MiniLM-L6-v2", Q)


def test_the_library_is_not_imported_before_it_is_asked_for():
    code = "import sys, lzn_nb.text, lzn_nb.saved; print([m for m in ('sentence_transformers', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    "A tiny model of sentence-transformers: one layer, letters as tokens."
    library, models = pytest.importorskip("sentence_transformers"), pytest.importorskip("sentence_transformers.models")
    from transformers import BertConfig, BertModel, BertTokenizerFast
    folder, letters = tmp_path_factory.mktemp("model"), "abcdefghijklmnopqrstuvwxyz0123456789,-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + one for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder / "bert")
    BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)).save_pretrained(folder / "bert")
    body = models.Transformer(str(folder / "bert"), max_seq_length=48)
    library.SentenceTransformer(modules=[body, models.Pooling(16)], device="cpu").save(str(folder / "tiny"))
    return str(folder / "tiny")


def test_a_model_of_the_library(model_folder, trio, tokenizer, tmp_path):
    torch.manual_seed(0)
    network = LatentZoningNetwork({"text": TextType(SentenceEncoder(model_folder, Q), trio["text"].decoder, tokenizer, Q)}).cpu()
    anchors = network["text"].train().anchors(SENTENCES)
    anchors.square().sum().backward()
    assert anchors.shape == (5, Q) and torch.cdist(anchors, anchors).add(torch.eye(5)).min() > 1e-4 and network["text"].encoder.head[1].weight.grad.any()
    with pytest.raises(ValueError, match="number 0 has 62 tokens of its model, wanted at most 48"): network.embed("text", "a" * 60)
    again = load(save(network, tmp_path / "a.safetensors"), allow=["SentenceEncoder"])
    assert torch.equal(again.embed("text", SENTENCES), network.embed("text", SENTENCES)) and len(again["text"].encoder.state_dict()) == 2


def test_nothing_is_downloaded(model_folder):
    with pytest.raises(Exception, match="(?i)local|cache|offline|found"): sentence_model("nobody/has-such-a-model")
