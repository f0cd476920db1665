"The network that ships with the package: small, ready, as good as its notes say, and made anew by the script."
import json
import re
import subprocess
import sys
from pathlib import Path

import make_pretrained
import pytest
import torch

import lzn_nb
from lzn_nb.checkpoints import read_state, write_state
from lzn_nb.data import load_data
from lzn_nb.metrics import Judge, accuracy
from lzn_nb.saved import load, load_pretrained, pretrained_names, save

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def network(): return load_pretrained("digits-joint")


def test_it_is_small_and_there():
    assert pretrained_names() == ["digits-joint", "digits-text"] == sorted(make_pretrained.SHIPPED) and lzn_nb.load_pretrained is load_pretrained
    for name in pretrained_names(): assert (ROOT / "lzn_nb" / "pretrained" / f"{name}.safetensors").stat().st_size < 3_000_000


def test_it_draws_and_names_as_well_as_its_notes_say(network):
    data, told = load_data("digits"), network.notes["figures of the test split, before rounding"]
    (images, labels), judge = data.test.tensors(), Judge(*data.train.tensors())
    assert accuracy(network.classify(images), labels) == pytest.approx(told["accuracy"], abs=0.01) and told["accuracy"] > 0.97
    asked = torch.arange(200) % 10
    assert accuracy(judge.labels(network.generate("image", label=asked, generator=torch.Generator().manual_seed(0))), asked) > 0.9
    assert "digits: 1,258 train" in network.notes["trained"] and "seed 0" in network.notes["trained"]


def test_the_one_with_sentences_draws_and_tells_as_well_as_its_notes_say():
    from lzn_nb.captioned import captioned
    from lzn_nb.scenarios.text import TEXT_PRESETS, judge_captions, judge_drawn, make_trial
    network = load_pretrained("digits-text")
    trial = make_trial(captioned(load_data("digits")), TEXT_PRESETS["cpu"], "test", 5, 359, torch.device("cpu"))
    told, found = network.notes["figures of the test split, before rounding"], judge_captions(network, trial) | judge_drawn(network, trial)
    for name, apart in (("told_digit", 0.02), ("told_thickness", 0.06), ("told_slant", 0.06), ("drawn_digit", 0.03), ("drawn_thickness", 0.1), ("drawn_slant", 0.1)):
        assert found[name].value == pytest.approx(told[name], abs=apart), name
    assert told["told_digit"] > 0.97 and told["drawn_digit"] > 0.94 and min(told["drawn_thickness"], told["drawn_slant"]) > 0.65


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="device: got 'foo', wanted one such as"): load_pretrained("digits-joint", device="foo")
    with pytest.raises(ValueError, match="name: got 'cats', wanted one of \\['digits-joint', 'digits-text'\\]"): load_pretrained("cats")
    with pytest.raises(AttributeError, match="'lzn_nb' has no attribute 'load_trained'"): lzn_nb.load_trained


def test_importing_the_package_loads_nothing():
    said = subprocess.run([sys.executable, "-c", "import sys, lzn_nb; print('torch' in sys.modules)"], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.strip() == "False", said.stderr


@pytest.mark.parametrize("name", list(make_pretrained.SHIPPED))
def test_the_script_makes_the_same_again(tmp_path, name):
    first, second = (make_pretrained.make(tmp_path / place, name, "tiny", progress=False) for place in ("a", "b"))
    a, b = (make_pretrained_weights(path) for path in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert first.read_bytes() == second.read_bytes()
    assert "preset tiny" in json.dumps(lzn_nb.saved.load(first).notes)


@pytest.mark.parametrize("wrong, words", [(["--preset", "huge"], "argument --preset: invalid choice: 'huge'"), (["--out", "FILE", "--preset", "tiny"], "--out: .*file is no folder and cannot be made one")])
def test_the_script_refuses_what_it_cannot_do_before_it_trains(wrong, words, tmp_path):
    (tmp_path / "file").touch()
    told = subprocess.run([sys.executable, "tools/make_pretrained.py", *(str(tmp_path / "file") if word == "FILE" else word for word in wrong)], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert told.returncode == 2 and re.search(words, told.stderr) and "Traceback" not in told.stderr and not told.stdout


def make_pretrained_weights(path):
    return lzn_nb.saved.load(path).state_dict()


def test_devices_that_are_not_there_are_named():
    for device in ("meta", 5, "cuda:77"):
        with pytest.raises(ValueError, match="device: got .*, wanted one such as"): load_pretrained("digits-joint", device=device)


def test_what_reads_more_than_the_file_is_made_for_those_who_allow_it(tmp_path, monkeypatch):
    "A recipe may name a sentence encoder, whose model is a folder, in which code may lie: it is not even looked for."
    asked = []
    monkeypatch.setattr("lzn_nb.text.sentence_model", lambda name: asked.append(name) or (_ for _ in ()).throw(ImportError("no such library")))
    network = load_pretrained("digits-joint")
    state = read_state(save(network, tmp_path / "good.safetensors"), "network", "cpu")
    state["recipe"]["given"]["types"]["parts"]["image"]["given"]["encoder"] = {"make": "SentenceEncoder", "given": {"model": "./folder", "latent_dim": 32}}
    write_state(path := tmp_path / "bad.safetensors", state, "network")
    with pytest.raises(ValueError, match=r"SentenceEncoder reads what is not in the file .*\./folder.* wanted allow=\['SentenceEncoder'\]"): load(path)
    assert not asked
    with pytest.raises(ValueError, match="no such library"): load(path, allow=["SentenceEncoder"])
    assert asked == ["./folder"]
