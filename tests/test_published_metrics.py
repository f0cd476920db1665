"""The published metrics: the libraries' own answers from weights in their formats, nothing without weights, no code from a file."""
import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from PIL import Image

from lzn_nb.metrics import Judge, clip_distance, frechet_distance, inception_score, kernel_distance, precision_recall
from lzn_nb.published_metrics import (CleanInception, ClipVision, FidelityInception, JudgeExtractor, as_bytes, check_weights, clean_distance, clean_features, clean_fid,
                                      find_weights, published_figures)

CLEAN, FIDELITY = "inception-2015-12-05.pt", "weights-inception-2015-12-05-6726825d.pth"


def images(n, seed=0, channels=3): return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def write(images, folder):
    "The images as PNG files."
    folder.mkdir(exist_ok=True)
    for k, image in enumerate(as_bytes(images)): Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k:03}.png")


class Averages(nn.Module):
    def forward(self, x): return nn.functional.adaptive_avg_pool2d(x, (26, 27)).flatten(1)[:, :2048]


class Stand(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Averages()

    def forward(self, x): return self.layers(x)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A folder with random networks in the three formats."
    folder = tmp_path_factory.mktemp("weights")
    torch.jit.script(Stand()).save(folder / CLEAN)
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        torch.save(module.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), folder / FIDELITY)
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=8)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return folder


def test_clean_inception_is_that_of_clean_fid(weights, tmp_path):
    "The library's own way: files on disk, its data set, its features."
    fid = pytest.importorskip("cleanfid.fid")
    given = images(5)
    write(given, tmp_path)
    network = pytest.importorskip("cleanfid.inception_torchscript").InceptionV3W(str(weights), download=False)
    theirs = fid.get_folder_features(str(tmp_path), network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False)
    ours = CleanInception(weights / CLEAN).features(given, batch=2)
    assert ours.shape == (5, 2048) and np.allclose(ours.numpy(), theirs, atol=1e-6)


# -- clean-fid's code with features of another kind ----------------------------------------------
class Patches:
    "An extractor: brightness and contrast of patches, in float64, so that nothing but the distance rounds."
    def __init__(self, size=None):
        if size: self.size = size
        self.seen = []

    def __call__(self, images):
        self.seen.append((tuple(images.shape), images.dtype, float(images.min()), float(images.max())))
        small = nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)
        return torch.cat([small, images.double().std((2, 3))], 1)


@pytest.mark.parametrize("size", [None, 24, 7])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20)])
def test_proxy_fid_is_what_clean_fid_computes_from_files(tmp_path, size, shape):
    "compute_fid of the library itself, between two folders of PNG files; at another size by its own resizer for that size."
    fid, resize = pytest.importorskip("cleanfid.fid"), pytest.importorskip("cleanfid.resize")
    drawn, real = (torch.rand(n, *shape, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (41, 50))
    real = real * 0.8 + 0.1
    write(drawn, tmp_path / "drawn"), write(real, tmp_path / "real")
    theirs = fid.compute_fid(str(tmp_path / "drawn"), str(tmp_path / "real"), mode="clean", custom_feat_extractor=Patches(), num_workers=0, device=torch.device("cpu"), verbose=False,
                             custom_fn_resize=size and resize.make_resizer("PIL", False, "bicubic", (size, size)))
    extractor = Patches(size)
    ours = clean_fid(drawn, real, extractor, batch=20, steps=8)
    assert theirs > 1 and ours.value == pytest.approx(theirs, rel=1e-9)
    assert {shape for shape, *_ in extractor.seen} == {(n, 3, size or 299, size or 299) for n in (20, 1, 10)}
    assert all(kind == torch.float32 and 0 <= low < 100 and 155 < high <= 255 for _, kind, low, high in extractor.seen)
    assert str(ours) == f"| proxy-FID (clean) | {theirs:.4g} | drawn 41, real 50, features Patches, pixels {size or 299}, steps 8 |"


def test_only_inception_is_called_fid(weights, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("cleanfid.fid"), "fid_from_feats", lambda a, b: float(len(a) + 100 * len(b) + 1e4 * a.shape[1]))
    drawn, real, inception = images(6), images(7, seed=1), CleanInception(weights / CLEAN)
    found = clean_fid(drawn, real, inception)
    assert (found.name, found.value) == ("FID", 6 + 700 + 2048e4) and found.protocol["features"] == "Inception-v3 of clean-fid, mode clean"
    by = lambda x: x.flatten(1)[:, :5]
    by.description = "five pixels"
    for extractor in (by, Patches(), lambda x: inception(x)):
        assert clean_fid(drawn, real, extractor).name == "proxy-FID (clean)"
    assert clean_fid(drawn, real, by).protocol["features"] == "five pixels"
    del by.description
    assert clean_fid(drawn, real, by).protocol["features"] == "<lambda>"


def normal(n, d, seed=0): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n, d, change", [(200, 2, lambda x: x), (500, 64, lambda x: x), (50, 64, lambda x: x), (20, 30, torch.relu), (300, 20, lambda x: x * (torch.arange(20) > 4)),
                                          (300, 20, lambda x: 1000 * x), (300, 20, lambda x: x.float())], ids=["plane", "many", "few", "very few", "dead", "large", "float32"])
def test_both_distances_agree(n, d, change):
    pytest.importorskip("cleanfid.fid")
    a, b = change(normal(n, d)), change(1.3 * normal(n + 7, d, seed=1) + 0.2)
    assert clean_distance(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-6) == pytest.approx(clean_distance(b, a), rel=1e-6)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clean_distance(a, b)
    assert not told  # neither a singular product nor how clean-fid calls SciPy is news to the user
    assert 0 <= clean_distance(a, a) < 1e-6 * float(a.double().square().sum(1).mean())  # what the root leaves below 0 is 0


def test_dust_of_the_root_is_left_out_and_more_is_refused(monkeypatch):
    linalg = pytest.importorskip("cleanfid.fid").linalg
    a, b = normal(40, 3), normal(50, 3, seed=1)
    expected, root = frechet_distance(a, b), linalg.sqrtm
    def with_dust(size):
        class Linalg: sqrtm = staticmethod(lambda x, disp=True: (root(x) + 1j * size, 0.0))
        monkeypatch.setattr("cleanfid.fid.linalg", Linalg)
    with_dust(1e-4)
    assert type(clean_distance(a, b)) is float and clean_distance(a, b) == pytest.approx(expected)
    with_dust(1e-2)
    with pytest.raises(ValueError, match="a, b: 40 and 50 rows of width 3 leave clean-fid a root that is not real .*0.01.*wanted more rows"): clean_distance(a, b)


@pytest.mark.parametrize("a, b, words", [((1, 3), (5, 3), "a: got shape"), ((5, 3), (1, 3), "b: got shape"), ((5, 3), (5, 2), "b: got width 2, wanted 3"), ((5, 1), (5, 1), "a: got features of width 1")])
def test_clean_distance_refuses(a, b, words):
    with pytest.raises(ValueError, match=words): clean_distance(torch.ones(a), torch.ones(b))
    with pytest.raises(ValueError, match="b: 2 of 5 rows hold NaN"): clean_distance(normal(5, 2), torch.tensor([[0.0, 1], [1, 0], [2, 3], [torch.nan, 0], [0, torch.inf]]))


@pytest.mark.parametrize("extractor, words", [(lambda x: x, r"extractor: gave shape \[3, 3, 299, 299\] for 3 images, wanted \[3,d\]"), (lambda x: x.flatten(1)[:1], r"extractor: gave shape \[1, 268203\] for 3")])
def test_extractors_that_are_none(extractor, words):
    pytest.importorskip("cleanfid.resize")
    with pytest.raises(ValueError, match=words): clean_features(images(3), extractor)
    for size in (0, 7.5, "8"):
        with pytest.raises(ValueError, match=f"size of the extractor: got {size!r}"): clean_features(images(3), Patches(size) if size else type("Zero", (), {"size": 0})())
    with pytest.raises(ValueError, match="batch: got 0"): clean_features(images(3), Patches(), batch=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_judge_as_an_extractor(channels):
    "Where nothing is resized, it is the judge's own look at the eight bits; large images come to it at 32 pixels."
    pytest.importorskip("cleanfid.resize")
    given, labels = images(30, channels=channels), torch.arange(30) % 3
    judge = Judge(given, labels, cache=None, updates=3)
    eight = as_bytes(given)[:, :channels] / 127.5 - 1
    assert torch.allclose(clean_features(given, JudgeExtractor(judge, 16)), judge.features(eight), atol=1e-5) and not torch.allclose(judge.features(eight), judge.features(given), atol=1e-5)
    assert clean_features(given, JudgeExtractor(judge)).shape == (30, 64) and JudgeExtractor(judge).size == 32
    found = clean_fid(given, given.flip(3), JudgeExtractor(judge, 16))
    assert found.name == "proxy-FID (clean)" and found.protocol["features"] == judge.description
    assert found.value == pytest.approx(frechet_distance(judge.features(eight), judge.features(eight.flip(3))), rel=1e-3)


# -- the other networks ---------------------------------------------------------------------------
def test_other_inception_is_that_of_torch_fidelity(weights):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    given = images(3)
    network = module.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights / FIDELITY))
    features, logits = network(as_bytes(given))
    by = FidelityInception(weights / FIDELITY)
    maps, ours, names = by.look(given, batch=2)
    assert maps.shape == (3, 7 * 17 * 17) and torch.allclose(ours, features, atol=1e-5) and torch.allclose(names, logits, atol=1e-4)
    assert not torch.equal(maps[0], maps[2])


def test_maps_are_seven_channels_of_the_seventh_block(weights, tmp_path):
    "sFID looks at mixed_6/conv of TensorFlow's graph, in which the blocks are called mixed, mixed_1, …: here its channel c is c + 1 everywhere."
    blocks = [name for name, _ in FidelityInception(weights / FIDELITY).network.named_children() if name.startswith("Mixed")]
    state = torch.load(weights / FIDELITY, weights_only=True)
    conv = f"{blocks[6]}.branch1x1"
    state[f"{conv}.conv.weight"] *= 0
    state[f"{conv}.bn.running_mean"] *= 0
    state[f"{conv}.bn.bias"] = torch.arange(1.0, len(state[f"{conv}.bn.bias"]) + 1)
    torch.save(state, tmp_path / FIDELITY)
    maps, _, _ = FidelityInception(tmp_path / FIDELITY).look(images(2))
    assert torch.equal(maps, torch.arange(1.0, 8).repeat_interleave(17 * 17).expand(2, -1))


class Kept(nn.Module):
    "In place of CLIP: keeps what it is given."
    def forward(self, x):
        self.given = x
        return type("Output", (), {"image_embeds": x.flatten(1)[:, :2]})


def test_clip_is_given_what_it_was_trained_on(weights):
    "Scaled by the mean and deviation of CLIP's images, after the bicubic filter that Pillow has."
    mean, std = (np.array(value) for value in (pytest.importorskip("transformers.image_utils").OPENAI_CLIP_MEAN, pytest.importorskip("transformers.image_utils").OPENAI_CLIP_STD))
    by = ClipVision(weights / "clip")
    by.network = Kept()
    for level, value in ((-1.0, 0.0), (0.0, 128 / 255), (1.0, 1.0)):
        by.features(torch.full((1, 1, 8, 8), level))
        assert by.network.given.shape == (1, 3, 32, 32) and np.allclose(by.network.given[0].numpy().transpose(1, 2, 0), (value - mean) / std, atol=1e-5)
    for size in (16, 50):
        given = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        by.features(given)
        channels = [np.asarray(Image.fromarray(channel.float().numpy()).resize((32, 32), Image.Resampling.BICUBIC)).clip(0, 255) / 255 for channel in as_bytes(given)[0]]
        assert np.allclose(by.network.given[0].numpy().transpose(1, 2, 0), (np.stack(channels, 2) - mean) / std, atol=1e-4)


def test_all_figures_by_their_names(weights, monkeypatch):
    drawn, real, theirs = images(6), images(7, seed=1), []
    monkeypatch.setattr("cleanfid.fid.fid_from_feats", lambda a, b: theirs.append((a, b)) or 12.5)  # FID is the number that clean-fid says
    results = published_figures(drawn, real, weights, steps=8)
    assert [result.name for result in results] == ["FID", "KID", "sFID", "IS", "precision", "recall", "CMMD"]
    values = {result.name: result.value for result in results}
    a, b = (CleanInception(weights / CLEAN).features(x) for x in (drawn, real))
    (maps, features, logits), (real_maps, real_features, _) = (FidelityInception(weights / FIDELITY).look(x) for x in (drawn, real))
    clip = ClipVision(weights / "clip")
    assert values["FID"] == 12.5 and [np.allclose(*pair) for pair in zip(theirs.pop(), (a, b))] == [True, True] and not theirs and values["KID"] == pytest.approx(kernel_distance(a, b))
    assert values["sFID"] == pytest.approx(frechet_distance(maps, real_maps)) and values["IS"] == pytest.approx(inception_score(logits))
    assert (values["precision"], values["recall"]) == precision_recall(features, real_features)
    assert values["CMMD"] == pytest.approx(clip_distance(clip.features(drawn), clip.features(real)))
    assert all("drawn 6, real 7" in str(result) and "steps 8" in str(result) for result in results)
    monkeypatch.setenv("LZN_WEIGHTS", str(weights))
    assert set(find_weights()) == {CleanInception, FidelityInception, ClipVision}


def test_nothing_without_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("LZN_WEIGHTS", raising=False)
    assert find_weights() == {} == find_weights(tmp_path) and published_figures(images(4), images(4)) == []
    for look in (find_weights, check_weights):
        with pytest.raises(ValueError, match="^weights: got nowhere, wanted a folder with some of inception"): look("nowhere")
    monkeypatch.setenv("LZN_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="^LZN_WEIGHTS: got .*gone, wanted a folder with some of inception"): check_weights()


def test_bytes_are_rounded_clipped_and_coloured():
    grey = torch.tensor([-1.0, -0.999, 0.0, 5.0]).reshape(1, 1, 2, 2)
    assert as_bytes(grey)[0].tolist() == [[[0, 0], [128, 255]]] * 3
    with pytest.raises(ValueError, match="NaN"): as_bytes(grey / 0)
    with pytest.raises(ValueError, match="got shape .1, 2, 2, 2."): as_bytes(grey.expand(1, 2, 2, 2))


# -- weights that cannot be used ------------------------------------------------------------------
def test_good_weights_are_good(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("LZN_WEIGHTS", str(weights))
    assert check_weights() == find_weights() and len(check_weights(weights)) == 3 and check_weights(tmp_path) == {}
    monkeypatch.delenv("LZN_WEIGHTS")
    assert check_weights() == {}


class Narrow(nn.Module):
    def forward(self, x): return x.flatten(1)[:, :7]


class Other(Stand):
    def __init__(self):
        super().__init__()
        self.layers = Narrow()


@pytest.mark.parametrize("name, wanted", [(CLEAN, "the Inception-v3 of clean-fid in TorchScript"), (FIDELITY, "the Inception-v3 of torch-fidelity's releases"), ("clip/model.safetensors", "a folder with CLIP in the format of transformers")])
@pytest.mark.parametrize("harm", ["junk", "empty", "truncated", "another", "a folder"])
def test_weights_that_cannot_be_used_are_named(weights, tmp_path, name, wanted, harm):
    from safetensors.torch import load_file, save_file
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if "clip" in name: (tmp_path / "clip" / "config.json").write_bytes((weights / "clip" / "config.json").read_bytes())
    if harm == "another":  # well formed, and something else
        if name == CLEAN: torch.jit.script(Other()).save(file)
        elif name == FIDELITY: torch.save({"weight": torch.zeros(2)}, file)
        else: save_file(dict(list(load_file(weights / name).items())[:-1]), file)  # one weight is missing
    elif harm == "a folder": file.mkdir()
    else: file.write_bytes({"junk": b"<html>moved</html>" * 100, "empty": b"", "truncated": (weights / name).read_bytes()[:-200]}[harm])
    with pytest.raises(ValueError, match=f"weights: .*{name.split('/')[0]} cannot be used .*; wanted {wanted}") as told: check_weights(tmp_path)
    assert len(str(told.value)) < 600 and "\n" not in str(told.value)


def test_clip_without_a_description(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(ValueError, match="clip cannot be used .*; wanted a folder with CLIP"): check_weights(tmp_path)


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


def test_weights_with_code_are_not_run(tmp_path):
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / FIDELITY)
    with pytest.raises(Exception, match="[Ww]eights"): FidelityInception(tmp_path / FIDELITY)
    with pytest.raises(ValueError, match=f"{FIDELITY} cannot be used .UnpicklingError"): check_weights(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_missing_library_is_named(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    monkeypatch.setitem(sys.modules, "cleanfid.resize", None)
    with pytest.raises(ImportError, match=r"cleanfid: not installed.*pip install 'lzn_nb\[metrics\]'"): CleanInception(None)
    with pytest.raises(ImportError, match="cleanfid: not installed"): clean_fid(images(2), images(2), Patches())
    (tmp_path / CLEAN).write_bytes(b"")
    with pytest.raises(ImportError, match="cleanfid: not installed"): check_weights(tmp_path)
