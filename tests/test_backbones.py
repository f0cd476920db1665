"""Backbones: whatever turns an image into features can be an encoder, and says so by name."""
import math

import pytest
import torch
from torch import nn

from lzn_nb import backbones
from lzn_nb.backbones import BackboneEncoder, ResNetEncoder, SmallCNN, make_encoder, projection_head, register_backbone


def images(channels=3, size=32, n=2): return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def own_names(monkeypatch):
    "Names that a test registers are gone after it."
    monkeypatch.setattr(backbones, "BACKBONES", dict(backbones.BACKBONES))


def test_resnet_has_features_heads_and_stems():
    torch.manual_seed(0)
    x = images()
    for depth, width in ((18, 512), (50, 2048)):
        for stem in ("imagenet", "small"):
            encoder = ResNetEncoder(24, depth=depth, stem=stem, head_layers=2).eval()
            assert encoder.features(x).shape == (2, width) and encoder(x).shape == (2, 24)
            assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-4)  # no sample sees another
    grey = ResNetEncoder(24, depth=18, image_channels=1)
    assert grey(x[:, :1]).shape == (2, 24)
    assert (encoder(x).norm(dim=1) - math.sqrt(24)).abs().max() < 1e-2


@pytest.mark.parametrize("name, shape, width", [("cnn", (1, 8, 8), 128), ("cnn", (3, 1, 1), 128), ("cnn", (1, 28, 28), 128), ("vit", (1, 28, 28), 192), ("vit", (3, 32, 32), 192), ("resnet18", (1, 28, 28), 512),
                                                ("resnet50_imagenet", (3, 64, 64), 2048), ("torchvision:mobilenet_v3_small", (1, 64, 64), 1024), ("torchvision:swin_t", (3, 64, 64), 768)])
def test_every_name_makes_an_encoder_that_trains(name, shape, width):
    torch.manual_seed(0)
    encoder = make_encoder(name, shape, 16, head_layers=2)
    x = images(shape[0], shape[1])
    assert encoder.training and encoder.width == width
    encoder.eval()  # torchvision has batch norms
    assert encoder.features(x).shape == (2, width)
    (anchors := encoder(x)).square().sum(1).add(anchors[:, 0]).sum().backward()
    assert anchors.shape == (2, 16) and any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.head.parameters())
    assert torch.allclose(encoder(x[:1]), anchors[:1], atol=1e-4)


def test_stem_follows_the_size_unless_named():
    first = lambda name, size: make_encoder(name, (3, size, size), 8).trunk.conv1.stride[0]
    assert first("resnet18", 32) == 1 and first("resnet18", 64) == 2
    assert first("resnet18_imagenet", 32) == 2 and first("resnet18_small", 64) == 1


def test_head_ends_in_a_norm_or_not():
    torch.manual_seed(0)
    x = 5 * torch.randn(7, 40)
    with_norm, without = projection_head(40, 16, 2)(x), projection_head(40, 16, 2, norm=False)(x)
    assert (with_norm.norm(dim=1) - 4).abs().max() < 1e-2 and without.norm(dim=1).std() > 0.05
    assert [type(m).__name__ for m in projection_head(40, 16, 3, norm=False)] == ["Linear", "GroupNorm", "ReLU"] * 2 + ["Linear"]


def test_own_module_by_a_registered_name(own_names):
    @register_backbone("mine")
    def mine(channels, size): return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 5))

    assert make_encoder("mine", (3, 8, 8), 4).features(images(3, 8)).shape == (2, 5)
    for taken in ("mine", "cnn", "resnet34_small", "torchvision:resnet18"):
        with pytest.raises(ValueError, match="is taken"): register_backbone(taken)(lambda channels, size: None)


@pytest.mark.parametrize("message, build", [
    ("depth: got 7", lambda: ResNetEncoder(8, depth=7)), ("stem: got 'tiny'", lambda: ResNetEncoder(8, stem="tiny")),
    ("got 0, 1, wanted both at least 1", lambda: ResNetEncoder(0)), ("got 3, 0, wanted both", lambda: projection_head(4, 3, 0)),
    *((rf"shape: got {got}, wanted .c, s, s. of images", lambda shape=shape: make_encoder("cnn", shape, 8)) for got, shape in ((r"\(\)", ()), ("None", None), (r"\(1, 8\)", (1, 8)))),
    ("backbone: got 'resnet19', wanted one of", lambda: make_encoder("resnet19", (3, 32, 32), 8)),
    ("torchvision has no 'resnet19'", lambda: make_encoder("torchvision:resnet19", (3, 32, 32), 8)),
    ("'torchvision:squeezenet1_0' does not turn .* has no linear layer to take off", lambda: make_encoder("torchvision:squeezenet1_0", (3, 64, 64), 8)),
    ("'torchvision:vit_b_32' does not turn images of .3, 32, 32. into features", lambda: make_encoder("torchvision:vit_b_32", (3, 32, 32), 8)),
    ("image: got torch.float32 of shape .2, 1, 32, 32., wanted floating .b,3,h,w.", lambda: make_encoder("cnn", (3, 32, 32), 8)(images(1))),
    ("image: got torch.int64", lambda: make_encoder("cnn", (3, 32, 32), 8)(images().long())),
    (r"backbone: it gave shape \[2, 3, 32, 32\], wanted features \[2,3\]", lambda: BackboneEncoder(nn.Identity(), 3, 8)(images())),
    ("backbone: it gave tuple, wanted features", lambda: BackboneEncoder(Pair(), 3, 8)(images())),
])
def test_what_cannot_be_is_refused(message, build):
    with pytest.raises(ValueError, match=message): build()


class Pair(nn.Module):
    def forward(self, x): return x, x


def test_a_map_is_no_feature(own_names):
    register_backbone("map")(lambda channels, size: nn.Identity())
    with pytest.raises(ValueError, match=r"'map' does not turn images of \[3, 8, 8\] into features \[b,f\] \(it gives shape"): make_encoder("map", (3, 8, 8), 4)


def test_small_network_sees_each_corner():
    torch.manual_seed(0)
    network, x = SmallCNN(1, 16), images(1, 16).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad.abs().amin(dim=0).min() >= 0 and (x.grad.abs().sum((0, 1))[[0, 0, -1, -1], [0, -1, 0, -1]] > 0).all()
