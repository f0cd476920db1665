"""The published metrics: the libraries' own answers from weights in their formats, nothing without weights, no code from a file."""
import os

import numpy as np
import pytest
import torch
from torch import nn

from lzn_nb.metrics import clip_distance, frechet_distance, inception_score, kernel_distance, precision_recall
from lzn_nb.published_metrics import CleanInception, ClipVision, FidelityInception, as_bytes, find_weights, published_figures

CLEAN, FIDELITY = "inception-2015-12-05.pt", "weights-inception-2015-12-05-6726825d.pth"


def images(n, seed=0, channels=3): return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


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
    from PIL import Image
    given = images(5)
    for k, image in enumerate(as_bytes(given)): Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    network = pytest.importorskip("cleanfid.inception_torchscript").InceptionV3W(str(weights), download=False)
    theirs = fid.get_folder_features(str(tmp_path), network, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False)
    ours = CleanInception(weights / CLEAN).features(given, batch=2)
    assert ours.shape == (5, 2048) and np.allclose(ours.numpy(), theirs, atol=1e-6)


def test_other_inception_is_that_of_torch_fidelity(weights):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    given = images(3)
    network = module.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights / FIDELITY))
    features, logits = network(as_bytes(given))
    by = FidelityInception(weights / FIDELITY)
    maps, ours, names = by.look(given, batch=2)
    assert maps.shape == (3, 7 * 17 * 17) and torch.allclose(ours, features, atol=1e-5) and torch.allclose(names, logits, atol=1e-4)
    assert not torch.equal(maps[0], maps[2])


def test_all_figures_by_their_names(weights, monkeypatch):
    drawn, real = images(6), images(7, seed=1)
    results = published_figures(drawn, real, weights, steps=8)
    assert [result.name for result in results] == ["FID", "KID", "sFID", "IS", "precision", "recall", "CMMD"]
    values = {result.name: result.value for result in results}
    a, b = (CleanInception(weights / CLEAN).features(x) for x in (drawn, real))
    (maps, features, logits), (real_maps, real_features, _) = (FidelityInception(weights / FIDELITY).look(x) for x in (drawn, real))
    clip = ClipVision(weights / "clip")
    assert values["FID"] == pytest.approx(frechet_distance(a, b)) and values["KID"] == pytest.approx(kernel_distance(a, b))
    assert values["sFID"] == pytest.approx(frechet_distance(maps, real_maps)) and values["IS"] == pytest.approx(inception_score(logits))
    assert (values["precision"], values["recall"]) == precision_recall(features, real_features)
    assert values["CMMD"] == pytest.approx(clip_distance(clip.features(drawn), clip.features(real)))
    assert all("drawn 6, real 7" in str(result) and "steps 8" in str(result) for result in results)
    monkeypatch.setenv("LZN_WEIGHTS", str(weights))
    assert set(find_weights()) == {CleanInception, FidelityInception, ClipVision}


def test_nothing_without_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("LZN_WEIGHTS", raising=False)
    assert find_weights() == {} == find_weights(tmp_path) and published_figures(images(4), images(4)) == []
    with pytest.raises(ValueError, match="weights: got nowhere, wanted a folder with some of inception"): find_weights("nowhere")


def test_bytes_are_rounded_clipped_and_coloured():
    grey = torch.tensor([-1.0, -0.999, 0.0, 5.0]).reshape(1, 1, 2, 2)
    assert as_bytes(grey)[0].tolist() == [[[0, 0], [128, 255]]] * 3
    with pytest.raises(ValueError, match="NaN"): as_bytes(grey / 0)
    with pytest.raises(ValueError, match="got shape .1, 2, 2, 2."): as_bytes(grey.expand(1, 2, 2, 2))


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


def test_weights_with_code_are_not_run(tmp_path):
    torch.save({"x": Trap(tmp_path / "sprung")}, tmp_path / FIDELITY)
    with pytest.raises(Exception, match="[Ww]eights"): FidelityInception(tmp_path / FIDELITY)
    assert not (tmp_path / "sprung").exists()


def test_missing_library_is_named(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    monkeypatch.setitem(sys.modules, "cleanfid.resize", None)
    with pytest.raises(ImportError, match=r"cleanfid: not installed.*pip install 'lzn_nb\[metrics\]'"): CleanInception(None)
