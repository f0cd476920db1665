"Words as numbers and back, a reader that padding does not touch, and a writer that looks back only."
import copy
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lzn_nb.captions import LONGEST_CAPTION, VOCABULARY, caption, sentence_of, words_in
from lzn_nb.measures import ATTRIBUTES, Facts
from lzn_nb.saved import made_from, recipe_of
from lzn_nb.words import END, PAD, SPECIAL, START, UNKNOWN, TextDecoder, TextEncoder, Tokenizer, fit_tokenizer, known_sentences, script_of, unknown_words, word_errors

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
Q, LENGTH = 6, 13


def seeded(seed=0): return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(VOCABULARY, LENGTH)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(1)
    return TextEncoder(len(tokenizer), LENGTH, Q, width=16, heads=2)


@pytest.fixture(scope="module")
def decoder(tokenizer):
    torch.manual_seed(1)
    decoder = TextDecoder(len(tokenizer), LENGTH, Q, width=16, heads=2)
    with torch.no_grad(): decoder.head.weight.mul_(4)  # of opinions
    return decoder


SENTENCES = ["a thick seven, leaning left", "an 8", "the 7 is thin", "zero", "a picture of a bold digit 3, at the top"]

known_words = st.lists(st.sampled_from(VOCABULARY), max_size=LENGTH - 2)


# -- numbers and back ---------------------------------------------------------------------------
@given(st.lists(known_words, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_known_words_come_back(rows):
    tokenizer, sentences = Tokenizer(VOCABULARY, LENGTH), [sentence_of(row) for row in rows]
    tokens = tokenizer.encode(sentences)
    assert tokens.shape == (len(rows), LENGTH) and tokens.dtype == torch.long and tokenizer.decode(tokens) == sentences
    for row, numbers in zip(rows, tokens.tolist()):
        assert numbers[0] == START and numbers[len(row) + 1] == END and set(numbers[len(row) + 2 :]) <= {PAD} and min(numbers[1 : len(row) + 1], default=4) > UNKNOWN


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_text_fits_a_tokenizer_of_its_own(texts):
    "Whatever is written: words of other scripts, special names, strange spaces. What is said in lower case comes back, but for punctuation."
    if not {word for text in texts for word in words_in(text)} - set(SPECIAL):
        with pytest.raises(ValueError, match="words: got"): fit_tokenizer(texts)
        return
    tokenizer = fit_tokenizer(texts)
    back = tokenizer.decode(tokenizer.encode(texts))
    for text, again in zip(texts, back):
        assert again == sentence_of([word if word in tokenizer.words else "<unknown>" for word in words_in(text)])
    assert fit_tokenizer(texts[::-1]).words == tokenizer.words == tuple(sorted(tokenizer.words))


def test_captions_fit_the_vocabulary():
    generator, made = seeded(), []
    for _ in range(300):
        facts = Facts(*(values[int(u * len(values))] for values, u in zip(ATTRIBUTES.values(), torch.rand(5, generator=generator).tolist())))
        made.append(caption(facts, generator, mention=1))
    tokenizer = Tokenizer(VOCABULARY, LONGEST_CAPTION + 3 + 2)  # up to three commas
    assert tokenizer.decode(tokenizer.encode(made)) == made and not unknown_words(tokenizer, made)


def test_punctuation_makes_no_word_unknown(tokenizer):
    plain = ["a thick seven leaning left", "an 8", "a seven, left-leaning"]
    marked = ["A thick seven; leaning left!", '"an 8"?', "(a seven), left-leaning: …"]
    assert torch.equal(tokenizer.encode(marked), tokenizer.encode(plain)) and not unknown_words(tokenizer, marked) and fit_tokenizer(marked).words == fit_tokenizer(plain).words
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_sentences(tokenizer, marked) == plain


def test_numbers_by_hand():
    tokenizer = Tokenizer((",", "a", "seven"), 6)
    assert tokenizer.encode(["A seven,", "a purple SEVEN."]).tolist() == [[1, 5, 6, 4, 2, 0], [1, 5, 3, 6, 2, 0]] and len(tokenizer) == 7 and tokenizer.limit == 4
    assert tokenizer.decode(torch.tensor([[1, 5, 6, 4, 2, 6], [5, 3, 0, 6, 6, 6]])) == ["a seven,", "a <unknown> seven seven seven"]
    assert tokenizer.encode([]).shape == (0, 6) and tokenizer.decode(torch.zeros(0, 6, dtype=torch.long)) == []


@pytest.mark.parametrize("words, what", [("seven", "'seven', wanted a tuple"), ((), r"\(\), wanted a tuple"), (("a", "b", "a"), "'a' twice"), (("a b",), "'a b', wanted single"), (("A",), "'A'"), (("a,",), "'a,'"),
                                         (("",), "''"), ((3,), "3, wanted single words"), (("<pad>",), "'<pad>'")])
def test_words_are_refused(words, what):
    with pytest.raises(ValueError, match=f"words: got {what}"): Tokenizer(words, 5)


@pytest.mark.parametrize("length", [2, 0, True, 4.0, None])
def test_lengths_are_refused(length):
    with pytest.raises(ValueError, match="length: got"): Tokenizer(("a",), length)


def test_too_many_words_are_counted(tokenizer):
    with pytest.raises(ValueError, match="text: number 1 has 12 words and commas, wanted at most 11"): tokenizer.encode(["a", "a, " * 6])
    with pytest.raises(ValueError, match="text: got 'a seven', wanted a list of sentences"): tokenizer.encode("a seven")
    assert tokenizer.encode(["a, " * 5]).shape == (1, LENGTH)


def test_it_is_kept_with_networks(tokenizer):
    again = made_from(json.loads(json.dumps(recipe_of(tokenizer))))
    assert again.words == tokenizer.words and again.length == tokenizer.length and copy.deepcopy(tokenizer).words == tokenizer.words
    assert torch.equal(again.encode(SENTENCES), tokenizer.encode(SENTENCES)) and not list(tokenizer.state_dict())


# -- what cannot be read ------------------------------------------------------------------------
def test_unknown_words_are_named_and_stand_as_such(tokenizer):
    with pytest.warns(UserWarning, match="^text: unknown words, read as <unknown>: purple, quite$"): read = known_sentences(tokenizer, ["a purple seven", "A quite PURPLE 8."])
    assert read == ["a <unknown> seven", "a <unknown> <unknown> 8"] and (tokenizer.encode(read) == UNKNOWN).sum() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_sentences(tokenizer, read) == read and known_sentences(tokenizer, SENTENCES) == SENTENCES and known_sentences(tokenizer, []) == []
    assert unknown_words(tokenizer, ["purple x", "a x"]) == ("purple", "x")


@pytest.mark.parametrize("text, what", [("жирная семёрка", "in Cyrillic letters"), ("太い", "in CJK and Hiragana letters"), ("επτά", "in Greek letters"), ("elephants", r"number 1\)"), (", ,", r"', ,' \(number 1\)"),
                                        ("<unknown>", "'<unknown>'"), ("", "''"), ("12345", "12345"), ("\U0001f600", "number 1")])
def test_nothing_known_is_refused(tokenizer, text, what):
    with pytest.raises(ValueError, match=f"text: got .*{what}.*of which no word is known, wanted words such as [a-z, ]+$"): known_sentences(tokenizer, ["a seven", text])


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_scripts_of_any_text(text):
    assert isinstance(script_of(text), str) and not script_of("plain, words 12")


# -- reading ------------------------------------------------------------------------------------
@pytest.mark.parametrize("train", [True, False])
def test_padding_does_not_matter(encoder, tokenizer, train):
    encoder.train(train)
    tokens = tokenizer.encode(SENTENCES)
    with torch.no_grad():
        whole = encoder(tokens)
        for k, row in enumerate(tokens): torch.testing.assert_close(encoder(row[None, : int((row != PAD).sum())])[0], whole[k], atol=1e-5, rtol=1e-4)
    assert torch.cdist(whole, whole).add(torch.eye(5)).min() > 1e-3


def test_the_order_of_words_matters_and_that_of_sentences_does_not(encoder, tokenizer):
    a, b = encoder(tokenizer.encode(["a thick seven, leaning left", "a left seven, leaning thick"]))
    assert (a - b).norm() > 1e-3
    tokens = tokenizer.encode(SENTENCES)
    torch.testing.assert_close(encoder(tokens).flip(0), encoder(tokens.flip(0)), atol=1e-5, rtol=1e-4)


def test_training_and_eval_agree_and_every_weight_learns(encoder, tokenizer):
    tokens = tokenizer.encode(SENTENCES)
    anchors = encoder.train()(tokens)
    with torch.no_grad(): torch.testing.assert_close(encoder.eval()(tokens), anchors, atol=1e-5, rtol=1e-4)
    anchors.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())
    encoder.zero_grad()


def test_layers_start_apart():
    first, second = TextEncoder(9, 5, 4, width=8, heads=2).trunk.layers.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize("shape", [(3, LENGTH + 1), (3, 0), (3,)])
def test_rows_of_another_length_are_refused(encoder, decoder, shape):
    with pytest.raises(ValueError, match="tokens: got shape|z: got shape"): decoder(torch.ones(shape, dtype=torch.long), torch.zeros(3, Q))
    if len(shape) == 2:
        with pytest.raises(ValueError, match="tokens: got shape"): encoder(torch.ones(shape, dtype=torch.long))


def test_width_and_heads_must_fit():
    with pytest.raises(ValueError, match="width: got 10, wanted a multiple of the 4 heads"): TextEncoder(9, 5, 4, width=10)


# -- writing ------------------------------------------------------------------------------------
@pytest.mark.parametrize("train", [True, False])
def test_a_later_word_changes_no_earlier_answer(decoder, tokenizer, train):
    decoder.train(train)
    tokens, z = tokenizer.encode(SENTENCES[:1]).repeat(LENGTH, 1), torch.randn(1, Q, generator=seeded()).repeat(LENGTH, 1)
    other = tokens.clone()
    for k in range(LENGTH): other[k, k] = 40
    with torch.no_grad(): change = (decoder(other, z) - decoder(tokens, z)).nan_to_num(0).abs().amax(2)
    assert change.tril(-1).max() == 0 and (change.diagonal() > 0).all()


def test_padding_behind_changes_nothing(decoder, tokenizer):
    tokens, z = tokenizer.encode(SENTENCES), torch.randn(5, Q, generator=seeded())
    short = tokens[:, : int((tokens != PAD).sum(1).max())]
    torch.testing.assert_close(word_errors(decoder, tokens, z), word_errors(decoder, short, z), atol=1e-4, rtol=1e-5)


def test_writing_and_training_see_the_same(decoder, tokenizer):
    tokens, z = tokenizer.encode(SENTENCES), torch.randn(5, Q, generator=seeded())
    errors = word_errors(decoder.train(), tokens, z)
    with torch.no_grad(): torch.testing.assert_close(word_errors(decoder.eval(), tokens, z), errors.detach(), atol=1e-4, rtol=1e-5)
    errors.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters()) and decoder.told[0].weight.grad.any()
    decoder.zero_grad()


def test_every_word_knows_the_latent(decoder, tokenizer):
    tokens = tokenizer.encode(SENTENCES)
    with torch.no_grad(): change = (decoder(tokens, torch.zeros(5, Q)) - decoder(tokens, torch.ones(5, Q))).nan_to_num(0).abs().amax(2)
    assert (change > 1e-3).all()


def test_what_is_never_written_has_no_probability(decoder, tokenizer):
    p = decoder(tokenizer.encode(SENTENCES), torch.randn(5, Q, generator=seeded())).softmax(2)
    assert not p[:, :, [PAD, START, UNKNOWN]].any() and not p[:, 0, END].any() and (p[:, 1:, END] > 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_sentences_have_their_form(decoder, temperature):
    rows = decoder.write(3 * torch.randn(200, Q, generator=seeded()), seeded(), temperature)
    assert rows.shape == (200, LENGTH) and (rows[:, 0] == START).all() and ((rows == END).sum(1) == 1).all() and (rows[:, 1] > UNKNOWN).all()
    ends = (rows == END).int().argmax(1)
    for row, end in zip(rows.tolist(), ends.tolist()): assert min(row[1:end]) > UNKNOWN and set(row[end + 1 :]) <= {PAD}
    assert temperature < 3 or (ends == LENGTH - 1).any() and (ends < LENGTH - 1).any()  # some are cut off, some end


def test_greedy_takes_the_likeliest_each_time(decoder):
    z = 3 * torch.randn(20, Q, generator=seeded())
    rows = decoder.write(z)
    with torch.no_grad(): best = decoder(rows[:, :-1], z).argmax(2)
    for row, likeliest in zip(rows.tolist(), best.tolist()):
        end = row.index(END)
        assert row[1 : min(end, LENGTH - 2) + 1] == likeliest[: min(end, LENGTH - 2)]
    assert torch.equal(rows, decoder.write(z, seeded(5))) and len(rows.unique(dim=0)) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_seeds_and_chunks(decoder, temperature):
    z = 3 * torch.randn(50, Q, generator=seeded())
    write = lambda z, generator, **options: decoder.write(z, generator, temperature, **options)
    whole = write(z, seeded(1))
    assert torch.equal(whole, write(z, seeded(1))) and (temperature == 0 or not torch.equal(whole, write(z, seeded(2))))
    assert torch.equal(whole, write(z, seeded(1), block=7))
    generator = seeded(1)
    assert torch.equal(whole, torch.cat([write(z[:13], generator), write(z[13:14], generator), write(z[14:], generator)]))
    assert write(z[:0], seeded()).shape == (0, LENGTH)
    torch.manual_seed(3); a = write(z, None); torch.manual_seed(3); b = write(z, None)
    assert torch.equal(a, b)


def test_drawn_words_have_their_probabilities(decoder):
    "First words of one latent, against the softmax at that temperature: χ² within five standard deviations."
    z, temperature, n = torch.randn(1, Q, generator=seeded()), 0.7, 6000
    first = decoder.write(z.expand(n, -1), seeded(), temperature)[:, 1]
    with torch.no_grad(): p = (decoder(torch.full((1, 1), START), z)[0, 0] / temperature).softmax(0)
    counts, keep = torch.bincount(first, minlength=len(p)), p * n > 5
    square = ((counts - p * n).square() / (p * n))[keep].sum()
    assert keep.sum() > 10 and abs(square - keep.sum()) < 5 * math.sqrt(2 * keep.sum())


def test_the_coldest_draw_is_greedy(decoder):
    z = 3 * torch.randn(40, Q, generator=seeded())
    assert torch.equal(decoder.write(z, seeded(), 1e-12), decoder.write(z)) and decoder.write(z, seeded(), 1e12).shape == (40, LENGTH)


@pytest.mark.parametrize("temperature", [-1, math.inf, math.nan, "hot", None, True])
def test_temperatures_are_refused(decoder, temperature):
    with pytest.raises(ValueError, match="temperature: got .*, wanted a finite number ≥ 0"): decoder.write(torch.zeros(1, Q), temperature=temperature)


@pytest.mark.parametrize("shape", [(5, Q + 1), (4, Q), (Q,)])
def test_latents_of_another_shape_are_refused(decoder, tokenizer, shape):
    with pytest.raises(ValueError, match=rf"z: got shape .*, wanted \[5, {Q}\]"): decoder(tokenizer.encode(SENTENCES), torch.zeros(shape))


# -- the loss -----------------------------------------------------------------------------------
def test_the_error_is_minus_the_log_probability_of_the_sentence(decoder, tokenizer):
    tokens, z = tokenizer.encode(SENTENCES), torch.randn(5, Q, generator=seeded())
    errors = word_errors(decoder, tokens, z)
    for row, latent, error in zip(tokens, z, errors):
        log_p = decoder(row[None, :-1], latent[None])[0].log_softmax(1)
        wanted = -sum(log_p[k, row[k + 1]] for k in range(LENGTH - 1) if row[k + 1] != PAD)
        torch.testing.assert_close(error, wanted, atol=1e-4, rtol=1e-5)


def test_unknown_words_do_not_count_and_gradients_are_finite(decoder, tokenizer):
    tokens, z = tokenizer.encode(["a purple seven"]), torch.randn(1, Q, generator=seeded(), requires_grad=True)
    error = word_errors(decoder, tokens, z)
    log_p = decoder(tokens[:, :-1], z)[0].log_softmax(1)
    torch.testing.assert_close(error[0], -(log_p[0, tokens[0, 1]] + log_p[2, tokens[0, 3]] + log_p[3, END]))
    error.sum().backward()
    assert z.grad.isfinite().all() and z.grad.any() and all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)
    decoder.zero_grad()


def test_probabilities_of_all_sentences_sum_to_one():
    "A language of two words and rows of four: every sentence there is."
    torch.manual_seed(0)
    decoder, z = TextDecoder(6, 4, 2, width=8, heads=2), torch.randn(1, 2)
    one, two = [[START, a, END, PAD] for a in (4, 5)], [[START, a, b, END] for a in (4, 5) for b in (4, 5)]
    rows = torch.tensor(one + two)
    with torch.no_grad():
        p = (-word_errors(decoder, rows, z.expand(6, -1))).exp()
        cut = decoder(rows[2:, :3], z.expand(4, -1)).softmax(2)[:, 2, END]  # the end of the longest is not drawn
    torch.testing.assert_close(p[:2].sum() + (p[2:] / cut).sum(), torch.tensor(1.0))


def test_a_few_sentences_are_learned_by_heart():
    torch.manual_seed(0)
    tokenizer = fit_tokenizer(SENTENCES)
    tokens, z = tokenizer.encode(SENTENCES), torch.randn(5, Q)
    decoder = TextDecoder(len(tokenizer), tokenizer.length, Q, width=32, layers=1, heads=2)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(60):
        loss = word_errors(decoder, tokens, z).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert tokenizer.decode(decoder.write(z)) == SENTENCES and loss < 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_devices_and_precisions(encoder, decoder, tokenizer, device, dtype):
    reader, writer = copy.deepcopy(encoder).to(device, dtype), copy.deepcopy(decoder).to(device, dtype)
    tokens = tokenizer.encode(SENTENCES).to(device)
    anchors = reader(tokens)
    assert anchors.dtype == dtype and word_errors(writer, tokens, anchors).isfinite().all()
    rows = writer.write(anchors, seeded(), 1.0)
    assert rows.device.type == device and len(tokenizer.decode(rows)) == 5


@pytest.mark.parametrize("make", [lambda: TextEncoder(9, 5, 4, width=8, layers=1, heads=2), lambda: TextDecoder(9, 5, 4, width=8, layers=3, heads=1, dropout=0.1)])
def test_they_are_made_again_from_their_recipes(make):
    module = make()
    again = made_from(json.loads(json.dumps(recipe_of(module))))
    assert recipe_of(again) == recipe_of(module) and {n: x.shape for n, x in again.state_dict().items()} == {n: x.shape for n, x in module.state_dict().items()}
