"Images with facts: numbers and back, terms of the training split, the cache."
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from lzn_nb import captioned as module
from lzn_nb.captioned import RADIX, captioned, fits, packed, unpacked
from lzn_nb.data import ImageData, load_data
from lzn_nb.measures import ATTRIBUTES, Facts, facts_of, fit_terms

FACTS = st.builds(Facts, **{name: st.sampled_from((None, *values)) for name, values in ATTRIBUTES.items()})


@given(st.lists(FACTS, max_size=6))
def test_facts_are_numbers_and_back(facts):
    codes = packed(facts)
    assert codes.shape == (len(facts),) and codes.dtype == torch.long and unpacked(codes) == facts
    assert all(0 <= code < torch.tensor(RADIX).prod() for code in codes)


def test_every_combination_has_a_number_of_its_own():
    everything = torch.arange(int(torch.tensor(RADIX).prod()))
    assert torch.equal(packed(unpacked(everything)), everything)


@pytest.mark.parametrize("code", [-1, int(torch.tensor(RADIX).prod())])
def test_other_numbers_are_refused(code):
    with pytest.raises(ValueError, match="codes: got"): unpacked([code])


@given(FACTS, FACTS)
def test_what_is_not_said_fits_everything(said, seen):
    wanted = all(getattr(said, name) in (None, getattr(seen, name)) for name in ATTRIBUTES)
    assert bool(fits(packed([said]), packed([seen]))) == wanted


def test_labels_become_facts_measured_in_the_training_splits_terms(tmp_path):
    data = load_data("digits")
    found = captioned(data, tmp_path)
    terms = fit_terms(data.train.images)
    assert found.terms == terms and found.classes == data.classes and isinstance(found, ImageData)
    images, labels = data.test.tensors()
    assert unpacked(found.test.labels) == facts_of(images, labels, terms)
    assert torch.equal(found.test.images, images) and f"thickness {terms.thickness[0]:.3g} and" in found.describe()
    for name in ("thickness", "slant", "shape"):  # thirds of the training images
        values = [getattr(facts, name) for facts in unpacked(found.train.labels)]
        assert all(0.25 < values.count(value) / len(values) < 0.42 for value in ATTRIBUTES[name])


def test_what_was_measured_is_kept_by_content(tmp_path, monkeypatch):
    data = load_data("digits")
    small = replace(data, **{part: replace(getattr(data, part), pixels=getattr(data, part).pixels[:60], labels=getattr(data, part).labels[:60]) for part in module.PARTS})
    first, calls, measured = captioned(small, tmp_path), [], module._measured
    monkeypatch.setattr(module, "_measured", lambda data: calls.append(1) or measured(data))
    again = captioned(small, tmp_path)
    assert not calls and again.terms == first.terms and torch.equal(again.valid.labels, first.valid.labels)
    other = replace(small, train=replace(small.train, pixels=small.train.pixels.flip(0)))
    captioned(other, tmp_path)
    assert len(calls) == 1 and len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir(): file.write_text("{")
    with pytest.warns(UserWarning, match="damaged"): assert torch.equal(captioned(small, tmp_path).train.labels, first.train.labels)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    data = load_data("digits")
    small = replace(data, **{part: replace(getattr(data, part), pixels=getattr(data, part).pixels[:60], labels=getattr(data, part).labels[:60]) for part in module.PARTS})
    with pytest.warns(UserWarning, match="cache"): assert captioned(small, tmp_path / "file" / "below").terms == captioned(small, None).terms


def test_images_for_which_there_are_no_words_are_refused():
    data = load_data("digits")
    with pytest.raises(ValueError, match="grey images of the ten digits"): captioned(replace(data, classes=("a", "b")))
