"The joint scenario: losses, gradients, runs that resume, loading without data, data of other shapes."
import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lzn_nb.alignment import alignment_loss
from lzn_nb.data import load_data
from lzn_nb.scenarios import base, joint
from lzn_nb.scenarios.base import jittered, results_table
from lzn_nb.metrics import Result
from lzn_nb.network import ImageType, LatentZoningNetwork
from lzn_nb.scenarios.generation import GENERATION, evaluate_generation, generation_network
from lzn_nb.scenarios.joint import (JOINT, JOINT_FIGURES, JOINT_PRESETS, JointConfig, evaluate_joint, joint_components, joint_losses, joint_network, judge_asked, judge_free, judge_reading, judge_way_back,
                                    joint_samples, load_joint, named_classes, plan_joint, run_joint, validate_joint)
from lzn_nb.scenarios.representation import REPRESENTATION, evaluate_representation, representation_network
from lzn_nb.scenarios.text import TEXT, evaluate_text
from lzn_nb.runs import read_metrics
from lzn_nb.saved import load, save
from lzn_nb.training import get_preset
from lzn_nb.zones import LatentZones

TINY = JOINT_PRESETS["tiny"]
ROOT = Path(__file__).resolve().parent.parent


def batch(n=24, shape=(1, 8, 8), classes=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g) * 2 - 1, torch.arange(n) % classes


def losses(config, network, images, labels, seed=0):
    return joint_losses(config, network, images, labels, torch.Generator().manual_seed(seed))


def test_untrained_losses_are_those_of_guessing():
    network = joint_network(TINY, (1, 8, 8), 10)
    images, labels = batch(200)
    values = losses(TINY, network, images, labels)
    # the decoder starts at 0, so the flow loss is the mean square of x1 - x0: that of the images plus 1
    assert float(values["flow"].detach()) == pytest.approx(float(images.square().mean()) + 1, rel=0.05)
    # at λ = 0 everybody has log 10; a first evaluation a quarter of the way on has moved that a little, up or down
    assert math.log(10) / 2 < float(values["alignment"].detach()) < math.log(10) + 1
    assert torch.allclose(values["loss"], values["flow"] + values["alignment"])


def test_both_losses_reach_the_encoder():
    network = joint_network(TINY, (1, 8, 8), 10)
    last = network["image"].decoder.heads[0][-1]
    torch.nn.init.normal_(last.weight, generator=torch.Generator().manual_seed(0))  # it starts at zero and would pass nothing on
    weight = next(network["image"].encoder.parameters())
    values = losses(TINY, network, *batch())
    for name in ("flow", "alignment"):
        gradient, = torch.autograd.grad(values[name], weight, retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


def test_aligned_are_the_zones_centres_and_drawn_is_from_whole_zones(monkeypatch):
    "By default each at its own noise scale; with the published settings from the same latents, which are computed once; and what does not take part needs none."
    from lzn_nb import zones
    network, asked, encode = joint_network(TINY, (1, 8, 8), 10), [], zones.LatentZones.encode
    monkeypatch.setattr(zones.LatentZones, "encode", lambda self, index, noise, alpha: asked.append(alpha) or encode(self, index, noise, alpha))
    for changes, scales in (({}, [0.0, 1.0]), ({"alignment_alpha": 1.0}, [1.0]), ({"drawing": False}, [0.0]), ({"alignment_weight": 0.0}, [1.0])):
        config = dataclasses.replace(TINY, **changes)
        asked.clear()
        losses(config, network, *batch())
        assert asked == scales == sorted(config.scales) and config.evaluations == (len(scales) + config.names) * config.zone_steps


def test_the_alignment_is_asked_as_the_configuration_says():
    "At its sharpness and cut-off, by logarithms or probabilities, and with its weight beside the flow's."
    network, (images, labels), seen = joint_network(TINY, (1, 8, 8), 10), batch(), []
    aligned = lambda **changes: losses(dataclasses.replace(TINY, **changes), network, images, labels)["alignment"].detach()
    z = LatentZones(network["image"].anchors(images), steps=TINY.zone_steps).encode(alpha=0.0)
    zones = LatentZones(network["label"].matrix, torch.bincount(labels, minlength=10), steps=TINY.zone_steps)
    for sharpness, log, cutoff in ((0.0, True, 0.2), (0.5, True, 0.2), (2.0, True, 0.2), (2.0, False, 0.2), (2.0, True, 0.6), (0.0, False, 0.6)):
        wanted = alignment_loss(z, zones, labels, cutoff=cutoff, log=log, sharpness=sharpness or None).detach()
        torch.testing.assert_close(aligned(sharpness=sharpness, log_alignment=log, cutoff=cutoff), wanted)
        seen.append(round(float(wanted), 4))
    assert len(set(seen)) == len(seen)  # each setting tells
    for weight in (0.25, 4.0):
        found = losses(dataclasses.replace(TINY, alignment_weight=weight), network, images, labels)
        assert torch.allclose(found["loss"], found["flow"] + weight * found["alignment"]) and torch.equal(found["alignment"].detach(), aligned())


def test_batch_without_some_classes():
    network = joint_network(TINY, (1, 8, 8), 10)
    images, _ = batch(12)
    values = losses(TINY, network, images, torch.tensor([3] * 6 + [7] * 6))
    values["loss"].backward()
    assert values["loss"].isfinite() and network["label"].matrix.grad.isfinite().all()


def test_flip_and_jitter_are_seeded_and_leave_the_target_alone(monkeypatch):
    "What is drawn is the image as it is, or mirrored; moved is only what the encoder sees."
    images, labels = batch()
    network = joint_network(TINY, (1, 8, 8), 10)
    config = dataclasses.replace(TINY, flip=True, jitter=0.5)
    one, two, other = (losses(config, network, images, labels, seed) for seed in (0, 0, 1))
    assert one["loss"] == two["loss"] != other["loss"]
    turned = jittered(images, 0.5, torch.Generator().manual_seed(0))
    assert turned.shape == images.shape and not torch.equal(turned, images) and turned.min() >= -1.0001 and turned.max() <= 1.0001
    assert torch.equal(jittered(images, 0.0, torch.Generator().manual_seed(0)), images)
    targets, encoded, errors, anchors = [], [], joint.flow_errors, ImageType.anchors
    monkeypatch.setattr(joint, "flow_errors", lambda config, image, x, *rest: targets.append(x) or errors(config, image, x, *rest))
    monkeypatch.setattr(ImageType, "anchors", lambda self, x: encoded.append(x) or anchors(self, x))
    losses(dataclasses.replace(TINY, jitter=0.5), network, images, labels)
    assert torch.equal(targets[0], images) and torch.equal(encoded[0], turned)
    losses(config, network, images, labels)
    either = (targets[1] == images).flatten(1).all(1), (targets[1] == images.flip(3)).flatten(1).all(1)
    assert (either[0] ^ either[1]).all() and either[0].any() and either[1].any()


def test_small_jitter_is_a_small_change():
    smooth = torch.linspace(-1, 0, 8)[None, None, None, :].expand(4, 1, 8, 8).contiguous()
    near = jittered(smooth, 1e-4, torch.Generator().manual_seed(0))
    assert torch.allclose(near[:, :, 1:-1, 1:-1], smooth[:, :, 1:-1, 1:-1], atol=1e-3)


def test_baseline_has_neither_encoder_nor_latent():
    config = dataclasses.replace(TINY, zones=False)
    network = joint_network(config, (1, 8, 8), 10)
    assert network["image"].encoder is None and network["image"].decoder.latent_dim == 0
    assert set(joint_components(config, network)) == {"decoder"} and set(losses(config, network, *batch())) == {"loss", "flow"}


def test_same_decoder_size_up_to_the_latent():
    count = lambda zones: sum(p.numel() for p in joint_network(dataclasses.replace(TINY, zones=zones), (1, 8, 8), 10)["image"].decoder.parameters())
    assert count(True) - count(False) == TINY.latent_dim * 4 * TINY.width  # the first layer's wider input, nothing else


@pytest.mark.parametrize("out", [None, 3])
def test_a_folder_that_is_none_is_named(out):
    with pytest.raises(ValueError, match="out: got .*, wanted the folder of a run"): run_joint("digits", "tiny", out, progress=False)


def test_another_encoder_takes_part_in_everything(tmp_path):
    "All that train with one, the usual classifier included; its batch norms know the batch; and it is saved and loaded."
    config, images = dataclasses.replace(TINY, backbone="resnet18"), batch(16, (3, 32, 32))
    for changes in ({}, {"drawing": False}, {"cross_entropy": True, "drawing": False}):
        network = joint_network(other := dataclasses.replace(config, **changes), (3, 32, 32), 10)
        assert type(network["image"].encoder).__name__ == "ResNetEncoder"
        losses(other, network, *images)["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network["image"].encoder.parameters())
    done = run_joint("digits", "tiny", tmp_path / "run", progress=False, backbone="cnn", steps=4)
    assert 0 <= done.figures["accuracy"] <= 1 and done.config.backbone == "cnn"
    again = load(save(done.network, tmp_path / "cnn.safetensors"))
    x = done.data.test.take(torch.arange(12))[0]
    assert torch.equal(again.classify(x), done.network.classify(x)) and again.embed("image", x).shape == (12, TINY.latent_dim)
    assert joint_network(dataclasses.replace(TINY, zones=False, backbone="cnn"), (1, 8, 8), 10)["image"].encoder is None
    with pytest.raises(ValueError, match="backbone: got 'resnet19', wanted one of"): joint_network(dataclasses.replace(TINY, backbone="resnet19"), (1, 8, 8), 10)


@pytest.mark.parametrize("make, kind", [(joint_network, "JointConfig"), (generation_network, "GenerationConfig"), (representation_network, "RepresentationConfig")])
def test_a_configuration_that_is_none_is_named(make, kind):
    for odd in ("cpu", None, base.ImageConfig(steps=2, batch=8, warmup=1)):
        with pytest.raises(ValueError, match=f"config: got .*, wanted a {kind}"): make(odd, (1, 8, 8), 10)


@pytest.mark.parametrize("classes", [None, 0, "ten", 2.5, True])
def test_classes_that_are_no_number_are_named(classes):
    with pytest.raises(ValueError, match=f"classes: got {classes!r}, wanted an integer"): joint_network(TINY, (1, 8, 8), classes)


def test_a_shape_that_is_none_of_an_image_is_named():
    for odd in (8, "abc", None, [8, 8]):
        with pytest.raises(ValueError, match="shape: got .*, wanted .c, h, w."): joint_network(TINY, odd, 10)
    with pytest.raises(ValueError, match=r"shape: got \(1, 8\), wanted \(c, h, w\)"): joint_network(JOINT_PRESETS["tiny"], (1, 8), 10)


@pytest.mark.parametrize("seed", ["a", None, -1, 2**31, 1.5])
def test_a_seed_that_is_none_is_named(seed):
    for ask in (lambda: joint_network(TINY, (1, 8, 8), 10, seed=seed), lambda: validate_joint(joint_network(TINY, (1, 8, 8), 10), load_data("digits"), TINY, seed)):
        with pytest.raises(ValueError, match=f"seed: got {seed!r}, wanted an integer from 0"): ask()


@pytest.mark.parametrize("ask", [evaluate_joint, validate_joint])
def test_no_network_no_data_and_no_configuration_are_named(ask):
    network, data = joint_network(TINY, (1, 8, 8), 10), load_data("digits")
    for given, words in (((None, data, TINY), "network: got NoneType, wanted a LatentZoningNetwork"), ((network, data, None), "config: got None, wanted a JointConfig"), ((network, None, TINY), "data: got NoneType, wanted an ImageData")):
        with pytest.raises(ValueError, match=words): ask(*given)


def test_a_configuration_of_another_network_is_named():
    data, without = load_data("digits"), dataclasses.replace(TINY, zones=False)
    with pytest.raises(ValueError, match="config: got one with zones, wanted the one that the network was made with"): evaluate_joint(joint_network(without, (1, 8, 8), 10), data, TINY)
    with pytest.raises(ValueError, match="config: got None, wanted a JointConfig"): named_classes(joint_network(TINY, (1, 8, 8), 10), None, data.test.images[:3])


def test_kept_figures_are_those_of_the_scenario():
    "Three seeds of each model, every figure with a name and a protocol, and as much of the models on both data as they can do."
    for data, kept in json.loads((ROOT / "nbs/results/joint.json").read_text()).items():
        assert set(kept["models"]) == {"joint", *JOINT.baselines, "resnet-18"} and "seeds 0, 1, 2" in kept["protocol"], data
        for name, found in kept["models"].items():
            assert len(found) == 3 and all(run.keys() == found[0].keys() for run in found), (data, name)
            assert {key for key in found[0] if not key.startswith("asked_few_")} - {"step", "threads", "wall_seconds", "judge_accuracy"} <= JOINT_FIGURES.keys() & kept["protocols"][name].keys(), (data, name)
            assert ("accuracy" in found[0]) == (name not in ("rf", "unlabelled")) and ("reconstruction" in found[0]) == (name in ("joint", "rf", "unlabelled")), (data, name)


def test_a_plan_for_no_rank_is_refused():
    for ranks in (0, -1, 1.5, "two"):
        with pytest.raises(ValueError, match=f"ranks: got {ranks!r}, wanted an integer ≥ 1"): plan_joint("digits", "tiny", ranks=ranks)


@pytest.mark.parametrize("scenario", [JOINT, GENERATION])
def test_a_plan_of_batches_in_spaces_of_their_own(scenario):
    "Where numbers are none, on the meta device, as well as in the updates that are tried."
    found = base.plan(scenario, "digits", "tiny", smallest_space=16)
    assert found["updates"] == 20 and all(found[name] > 0 for name in base.ROOM)


def test_samples_are_of_what_a_network_can_be_asked_for(monkeypatch):
    "Classes, one a column; without labels draws from the prior; without a decoder nothing is drawn."
    asked, generate, data = [], LatentZoningNetwork.generate, load_data("digits")
    monkeypatch.setattr(LatentZoningNetwork, "generate", lambda self, name, n=None, **more: asked.append((n, more.get("label"))) or generate(self, name, n, **more))
    for changes in ({}, {"one_hot": False}, *(JOINT.baselines[name] for name in ("rf", "unlabelled", "no-generation"))):
        config = dataclasses.replace(TINY, **changes)
        joint_samples(joint_network(config, (1, 8, 8), 10), data, config, torch.Generator().manual_seed(0))
    assert [n for n, _ in asked] == [None, None, None, 40] and all(torch.equal(label, torch.arange(10).repeat(4)) for _, label in asked[:3]) and asked[3][1] is None


@pytest.mark.parametrize("shape, classes", [((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 10, 10), 3), ((1, 7, 7), 2)])
def test_other_shapes_train_and_draw(shape, classes):
    network = joint_network(TINY, shape, classes)
    losses(TINY, network, *batch(8, shape, classes))["loss"].backward()
    drawn = network.generate("image", label=[0, 1], generator=torch.Generator().manual_seed(0), steps=2)
    assert drawn.shape == (2, *shape)


def test_network_depends_on_its_seed_only():
    first, again, other = (joint_network(TINY, (1, 8, 8), 10, seed=seed)["label"].matrix for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("changes", [{}, {"one_hot": False}, *JOINT.baselines.values()])
def test_a_batch_that_is_none_is_named(changes):
    config, (images, labels) = dataclasses.replace(TINY, **changes), batch()
    ask = lambda *given: joint_losses(config, joint_network(config, (1, 8, 8), 10), *given)
    for given, words in (((images, labels + 1), "label: got 10, wanted a class from 0 to 9"), ((images, labels - 1), "label: got -1"), ((images, labels.float()), "label: got torch.float32"), ((images, None), "label: got None"),
                         ((images, labels[:5]), "label: got 5, wanted 24, one for each image"), ((None, labels), "image: got NoneType"), ((images.byte(), labels), "image: got torch.uint8")):
        with pytest.raises(ValueError, match=words): ask(*given, torch.Generator())
    for odd in (None, 0):
        with pytest.raises(ValueError, match=f"generator: got {type(odd).__name__}, wanted a torch.Generator"): ask(images, labels, odd)


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, **JOINT.baselines["cross-entropy"])])
def test_no_images_have_no_classes(config):
    for odd, words in ((None, "NoneType"), (torch.zeros(0, 1, 8, 8), r"torch.float32 of shape \[0, 1, 8, 8\]"), (torch.zeros(8, 8), r"torch.float32 of shape \[8, 8\]")):
        with pytest.raises(ValueError, match=f"images: got {words}, wanted .n,c,h,w. with n ≥ 1"): named_classes(joint_network(config, (1, 8, 8), 10), config, odd)
    for given, words in (((0,), "n: got 0"), ((2.5,), "n: got 2.5"), ((5, 0), "most: got 0")):
        with pytest.raises(ValueError, match=f"{words}, wanted an integer ≥ 1"): joint.crowd_of(*given)


# -- figures ----------------------------------------------------------------------------------
class Clear:
    "A network and a judge whose right answers are known: the first pixel of an image is a tenth of its class, and few evaluations are seen by the second."
    classes, name, description = 8, "proxy", "one who knows"

    def __init__(self): self.asked, self.shared = [], []
    def __getitem__(self, name): return self  # either type of data

    def generate(self, name, n=None, *, label=None, generator=None, steps=None):
        self.asked.append((n, label, steps))
        label = torch.arange(n) % self.classes if label is None else label
        images = torch.rand(len(label), 1, 4, 4, generator=generator)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = label / 10, images[:, 0, 0, 1] + 9 * (steps == 4)
        return images

    def labels(self, images): return (10 * images[:, 0, 0, 0]).round().long()
    def features(self, images): return images.flatten(1)
    def look(self, images): return self.features(images), self.features(images), 9.0 * torch.nn.functional.one_hot(self.labels(images), self.classes)
    def embed(self, name, images): return torch.nn.functional.one_hot(self.labels(images), self.classes).double()
    def classify(self, images, *, alpha, generator):
        self.shared.append(len(images))
        return (self.labels(images) + round(10 * alpha)) % self.classes if generator else self.labels(images)
    def latents(self, name, images, *, generator): return torch.randn(len(images), 3, generator=generator)
    def reconstruct(self, images, z, label): return images + 0.5 * (z.shape[1] == 3) + 0.25 * (label == self.labels(images)).reshape(-1, 1, 1, 1)


def some(n, seed=0): return Clear().generate("image", n, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % Clear.classes


def test_images_that_were_asked_for_are_counted_by_what_was_asked():
    network, (real, _) = Clear(), some(80)
    found = judge_asked(network, network, real, dataclasses.replace(TINY, sample_steps=30), torch.Generator().manual_seed(0), 40)
    assert found["agreement"].value == 1.0 and [steps for _, _, steps in network.asked] == [30, 4]
    assert all(torch.equal(label.bincount(), torch.full((8,), 5)) for _, label, _ in network.asked)
    assert found["asked_few_4"].value > 80 > 2 > found["asked_proxy_fid"].value  # nine units away, squared


def test_images_that_were_not_asked_for_are_as_many_and_as_different_as_they_are():
    network, (real, _), generator = Clear(), some(80), torch.Generator().manual_seed(0)
    assert judge_free(network, network, real, TINY, generator, 1016)["entropy"].value == pytest.approx(3.0) and network.asked == [(1000, None, None), (16, None, None)]
    network.classes = 2
    assert judge_free(network, network, network.generate("image", 80), TINY, generator, 40)["entropy"].value == pytest.approx(1.0)
    found = judge_free(network := Clear(), network, real, dataclasses.replace(TINY, zones=False), generator, 800)["entropy"].value  # by classes that chance asks for
    (_, label, _), = network.asked
    counts = label.bincount(minlength=8) / 800
    assert 2.9 < found < 3.0 and found == pytest.approx(float(-(counts * counts.log2()).sum()), abs=1e-5)


def test_what_is_read_is_told_at_both_noise_scales_and_probed_by_training_images():
    "Half of the training labels are wrong, so a probe that was fitted to them is wrong for half of the classes."
    (x, y), (images, labels), generator = some(160, 1), some(80), torch.Generator().manual_seed(0)
    found = judge_reading(Clear(), TINY, (x, torch.where(y < 4, y, 11 - y)), (images, labels), generator)
    assert found["accuracy"].value == 1.0 and found["probe"].value == 0.5
    assert found["accuracy_noisy"].value == 0.0  # ten tenths: two classes on
    for alpha, wanted in ((0.0, labels), (0.1, (labels + 1) % 8), (0.3, (labels + 3) % 8)): assert torch.equal(named_classes(Clear(), TINY, images, generator, alpha), wanted)


def test_zones_are_those_of_as_many_images_as_the_protocol_says():
    (images, labels), generator = some(2500), torch.Generator().manual_seed(0)
    assert torch.equal(named_classes(network := Clear(), TINY, images, generator), labels % 8) and network.shared == [1250, 1250]
    for n in (80, 2500):
        found = judge_reading(Clear(), TINY, some(80, 1), (images[:n], labels[:n] % 8), generator)
        assert found["accuracy"].protocol["zones"].startswith(f"among {min(n, 1250):,} of them") and found["accuracy"].protocol["images"] == f"{n:,}"


def test_a_reconstruction_is_compared_with_its_image():
    (images, labels), generator = some(40), torch.Generator().manual_seed(0)
    assert judge_way_back(Clear(), TINY, images, labels, generator).value == pytest.approx(3.0)  # sixteen pixels, each off by ¾: with latents and the right classes
    assert judge_way_back(Clear(), dataclasses.replace(TINY, zones=False), images, labels, generator).value == pytest.approx(1.0)


def test_whoever_judges_has_learned_from_training_images(monkeypatch):
    "And judges those of the split that is asked for, in their order."
    data, seen = load_data("digits"), {}
    train, valid = data.train.tensors(), data.valid.tensors()
    wrong = SimpleNamespace(labels=lambda images: (valid[1] + (torch.arange(180) < 9)) % 10, description="wrong about nine")
    monkeypatch.setattr(joint, "Judge", lambda *given: seen.update(judge=given) or wrong)
    for name, found in (("judge_asked", {}), ("judge_free", {}), ("judge_reading", {}), ("judge_way_back", Result("way back", 0.0))):
        monkeypatch.setattr(joint, name, lambda *given, name=name, found=found: seen.update({name: given}) or found)
    assert evaluate_joint(joint_network(TINY, (1, 8, 8), 10), data, TINY, split="valid", drawn=20)["judge_accuracy"] == pytest.approx(1 - 9 / 180)
    alike = lambda found, wanted: all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert alike(seen["judge"], train) and alike(seen["judge_reading"][2], train) and alike(seen["judge_reading"][3], valid) and alike(seen["judge_way_back"][2:4], valid)
    assert alike([seen["judge_asked"][2], seen["judge_free"][2]], [valid[0]] * 2)


def test_the_decoder_learns_and_is_validated_with_the_right_classes(monkeypatch):
    network, told, given, (images, labels), valid = joint_network(TINY, (1, 8, 8), 10), [], ImageType.given, batch(), load_data("digits").valid
    monkeypatch.setattr(ImageType, "given", lambda self, z, label=None: told.append(label) or given(self, z, label))
    monkeypatch.setattr(joint, "named_classes", lambda *_: (valid.labels + (torch.arange(180) < 9)) % 10)
    losses(TINY, network, images, labels)
    found = validate_joint(network.eval(), load_data("digits"), TINY)
    assert found["score"] == found["accuracy"] == pytest.approx(1 - 9 / 180) and torch.equal(told[0], labels) and torch.equal(told[1], valid.labels)


@pytest.mark.parametrize("evaluate, scenario", [(evaluate_joint, JOINT), (evaluate_generation, GENERATION), (evaluate_representation, REPRESENTATION), (evaluate_text, TEXT)])
@pytest.mark.parametrize("changes, words", [({"split": "foo"}, "split: got 'foo', wanted 'train', 'valid' or 'test'"), ({"split": "shape"}, "split: got 'shape'"), ({"config": None}, "config: got None, wanted a .*Config"),
                                            ({"seed": "a"}, "seed: got 'a', wanted an integer from 0"), ({"seed": -1}, "seed: got -1"), ({"data": None}, "data: got NoneType, wanted an ImageData")])
def test_figures_of_nothing_are_refused(evaluate, scenario, changes, words):
    with pytest.raises(ValueError, match=words): evaluate(**{"network": torch.nn.Linear(1, 1), "data": load_data("digits"), "config": scenario.presets["tiny"]} | changes)


@pytest.mark.parametrize("name", ["drawn", "limit"])
def test_figures_of_none_are_refused(name):
    for odd in (0, "a", 2.5):
        with pytest.raises(ValueError, match=f"{name}: got {odd!r}, wanted an integer"): evaluate_joint(torch.nn.Linear(1, 1), load_data("digits"), TINY, **{name: odd})


# -- published sizes --------------------------------------------------------------------------
def test_the_published_hyperparameters():
    "What the authors' configuration of CIFAR-10 says; what is frozen early, and how large the networks are."
    c = JOINT_PRESETS["paper"]
    assert (c.steps, c.batch, c.warmup, c.schedule, c.clip, c.ema, c.precision, c.accumulate) == (200_000, 2000, 5000, "constant", 1.0, 0.999999, "no", 1)
    assert (c.latent_dim, c.zone_steps, c.alpha, c.dropout, c.flip, c.jitter, c.smallest_space, c.save_every, c.eval_every, c.workers) == (200, 20, 1.0, 0.15, True, 0.0, 0, 1000, 5000, 2)
    assert (c.log_alignment, c.alignment_alpha, c.cutoff, c.sharpness, c.alignment_weight, c.one_hot, c.sample_steps) == (False, 1.0, 0.2, 0.0, 1.0, True, 10)
    with torch.device("meta"): parts = joint_components(c, joint_network(c, (3, 32, 32), 10))
    size = lambda module: sum(p.numel() for p in module.parameters())
    assert {name: (part.rate, part.budget, size(part.module)) for name, part in parts.items()} == {"decoder": (2e-3, 60_000, 61_911_939), "encoder": (5e-5, None, 49_790_260), "label": (1e-4, None, 2000)}


# -- runs -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_joint("digits", "tiny", tmp_path_factory.mktemp("runs") / "a", progress=False)


def test_run_leaves_what_it_promises(run):
    assert {p.name for p in run.out.iterdir()} == {"config.json", "environment.jsonl", "metrics.jsonl", "checkpoints", "samples", "report.html"}
    assert [p.name for p in (run.out / "samples").iterdir()] == ["00000020.png"]
    lines = read_metrics(run.out)
    assert lines[-1]["final"] and lines[-1]["step"] == TINY.steps
    for key in ("accuracy", "agreement", "entropy", "probe", "reconstruction", "judge_accuracy", "asked_proxy_fid", "free_proxy_recall", "asked_few_4"):
        assert math.isfinite(lines[-1][key]) and lines[-1]["protocols"][key]
    assert run.figures["judge_accuracy"] > 0.97 and run.figures["probe"] > 0.5
    assert json.loads((run.out / "config.json").read_text())["seed"] == 0


def test_interrupted_run_ends_like_an_uninterrupted_one(run, tmp_path, monkeypatch):
    calls = 0

    def stopping(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == 14: raise KeyboardInterrupt
        return joint_losses(*arguments, **more)

    with pytest.raises(KeyboardInterrupt): base.run(dataclasses.replace(JOINT, losses=stopping), "digits", "tiny", tmp_path / "b", progress=False)
    resumed = run_joint("digits", "tiny", tmp_path / "b", progress=False, resume=True)
    far = {name: float((weight - resumed.network.state_dict()[name]).abs().max()) for name, weight in run.network.state_dict().items()}
    assert not any(far.values()), {name: value for name, value in far.items() if value}
    timeless = lambda record: {k: v for k, v in record.items() if not any(clock in k for clock in ("second", "memory"))}
    for one, other in zip(*([timeless(r) for r in read_metrics(out)] for out in (run.out, resumed.out)), strict=True):
        assert one == other, {k: (one.get(k), other.get(k)) for k in one | other if one.get(k) != other.get(k)}  # which, and by how much


def test_finished_run_is_loaded_and_not_trained(run, monkeypatch):
    monkeypatch.setattr("lzn_nb.scenarios.base.train", lambda *a, **k: pytest.fail("trained again"))
    again = run_joint("digits", "tiny", run.out, progress=False, resume=True)
    assert again.figures == run.figures


def test_load_joint_needs_no_data(run, monkeypatch):
    monkeypatch.setattr("lzn_nb.scenarios.base.load_data", lambda *a, **k: pytest.fail("data were loaded"))
    network = load_joint(run.out)
    images, _ = load_data("digits").test.tensors()
    assert torch.equal(network.embed("image", images[:50]), run.network.embed("image", images[:50]))


def test_load_joint_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="out: .* holds no run"): load_joint(tmp_path)
    for odd in (None, 3):
        with pytest.raises(ValueError, match="out: got .*, wanted the folder of a run"): load_joint(odd)


def test_bad_requests_write_nothing(tmp_path):
    out = tmp_path / "c"
    for request, message in [(dict(preset="huge"), "preset: got 'huge'"), (dict(data="digit"), "digit"), (dict(stepz=3), "preset key: got 'stepz'"),
                             (dict(steps="many"), "steps: got 'many'"), (dict(device="abacus"), "device: got 'abacus'"),
                             (dict(sample_steps=0), "sample_steps: got 0"), (dict(zone_steps=0), "zone_steps: got 0"), (dict(latent_dim=-3), "latent_dim: got -3"),
                             (dict(width=0), "width: got 0"), (dict(encoder_width=7), "encoder_width: got 7"), (dict(rate_decoder=-1.0), "rate_decoder: got -1.0"),
                             (dict(jitter=-1.0), "jitter: got -1.0"), (dict(alpha=-1.0), "alpha: got -1.0"), (dict(cutoff=2.0), "cutoff: got 2.0"),
                             (dict(dropout=2.0), "dropout: got 2.0"), (dict(mults=()), "mults: got"), (dict(batch=5000), "batch: got 5000"),
                             (dict(seed=-1), "seed: got -1"), (dict(seed="a"), "seed: got 'a'")]:
        with pytest.raises(ValueError, match=message): run_joint(**{"data": "digits", "preset": "tiny", "out": out, "progress": False} | request)
    assert not out.exists()


def test_results_table_gives_mean_and_spread():
    rows = results_table(JOINT_FIGURES, {"a": [{"accuracy": 0.9}, {"accuracy": 1.0}], "b": [{"agreement": 0.5}]})
    assert rows == [{"figure": "test accuracy, α = 0", "a": "95.00% ± 7.07%", "b": "–"},
                    {"figure": "drawn image is of the class asked for", "a": "–", "b": "50.00%"}]


def test_presets_are_frozen_and_checked():
    with pytest.raises(dataclasses.FrozenInstanceError): TINY.steps = 3
    assert get_preset(JOINT_PRESETS, "cpu", mults=(1,)).mults == (1,)
    assert all(isinstance(preset, JointConfig) for preset in JOINT_PRESETS.values())


@pytest.mark.parametrize("per_class, message", [([30], "got 1 class"), ([20, 20], "batch: got 64"), ([45, 1], "test images")])
def test_data_too_small_is_refused_before_anything_is_written(tmp_path, per_class, message):
    from PIL import Image
    for label, count in enumerate(per_class):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for k in range(count): Image.new("L", (8, 8), 5 * k).save(tmp_path / "images" / str(label) / f"{k}.png")
    batch = {} if "batch" in message else {"batch": 4}
    data, options = f"folder:{tmp_path / 'images'}", {}
    if "test" in message:  # three images are all that a test folder of its own holds
        for k in range(3):
            (tmp_path / "images" / "test" / "0").mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), k).save(tmp_path / "images" / "test" / "0" / f"{k}.png")
        (tmp_path / "images" / "train").mkdir()
        for label in ("0", "1"): (tmp_path / "images" / label).rename(tmp_path / "images" / "train" / label)
    with pytest.raises(ValueError, match=message): run_joint(data, "tiny", tmp_path / "out", progress=False, data_options=options, **batch)
    assert not (tmp_path / "out").exists()


def test_figures_with_a_number_are_shown_with_it():
    rows = results_table(JOINT_FIGURES, {"a": [{"asked_few_4": 1.0, "asked_few_30": 2.0, "accuracy": 0.5, "accuracy_noisy": 0.25, "step": 3, "device": "cpu"}]})
    assert [row["figure"] for row in rows] == ["test accuracy, α = 0", "test accuracy, α = 1", "proxy-FID, asked for a class, 4 evaluations", "proxy-FID, asked for a class, 30 evaluations"]


def test_a_report_says_where_it_comes_from_and_stands_without_curves(run, tmp_path):
    shutil.copytree(run.out, out := tmp_path / "a")
    page = (out / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ("seed", "torch", "revision", "hardware", "ranks", "steps", "latent_dim"))
    for name in ("metrics.jsonl", "report.html"): (out / name).unlink()  # the figures are lost, the checkpoints are not
    again = run_joint("digits", "tiny", out, resume=True, progress=False)
    assert "The figures of the updates are lost" in (out / "report.html").read_text()
    assert {k: v for k, v in again.figures.items() if k != "wall_seconds"} == {k: v for k, v in run.figures.items() if k != "wall_seconds"}


def test_a_checkpoint_of_other_weights_is_named(run, tmp_path):
    shutil.copytree(run.out, out := tmp_path / "a")
    (out / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()) | {"latent_dim": 9}))
    with pytest.raises(ValueError, match="does not fit.*00000020.safetensors"): load_joint(out)


CAN = {  # of each baseline: losses beside "loss", what trains, what the figures tell of it
    "rf": ({"flow"}, {"decoder"}, {"agreement", "asked_proxy_fid", "free_proxy_fid", "reconstruction"}),
    "unlabelled": ({"flow"}, {"decoder", "encoder"}, {"free_proxy_fid", "probe", "gauss_mean", "reconstruction"}),
    "no-generation": ({"alignment"}, {"encoder", "label"}, {"accuracy", "accuracy_noisy", "probe", "gauss_mean"}),
    "cross-entropy": ({"cross_entropy"}, {"encoder", "label"}, {"accuracy", "probe"})}
ALL = set.union(*(figures for _, _, figures in CAN.values()))


@pytest.mark.parametrize("name", CAN)
def test_a_baseline_trains_what_is_left_and_is_judged_by_what_it_can(tmp_path, name):
    wanted, parts, figures = CAN[name]
    config = dataclasses.replace(TINY, **JOINT.baselines[name])
    network = joint_network(config, (1, 8, 8), 10)
    values = losses(config, network, *batch())
    assert set(values) == wanted | {"loss"} and set(joint_components(config, network)) == parts
    values["loss"].backward()
    done = run_joint("digits", "tiny", tmp_path / name, progress=False, steps=2, **JOINT.baselines[name])
    assert ALL & done.figures.keys() == figures and (done.out / "report.html").exists()
    assert done.figures.keys() >= figures and all(math.isfinite(done.figures[key]) for key in figures)


def test_the_command_knows_the_baselines():
    from lzn_nb.cli import SCENARIOS, scenario_named
    for name, about in SCENARIOS.items():
        if about.option == "baseline": assert about.choices.keys() == scenario_named(name).baselines.keys()


def test_all_that_have_an_encoder_start_with_the_same():
    first, *others = (joint_network(dataclasses.replace(TINY, **changes), (1, 8, 8), 10)["image"].encoder.state_dict() for changes in ({}, *(JOINT.baselines[k] for k in CAN if k != "rf")))
    for other in others: assert all(torch.equal(weight, other[name]) for name, weight in first.items())


def test_the_usual_classifier_minimises_cross_entropy_of_inner_products():
    config = dataclasses.replace(TINY, **JOINT.baselines["cross-entropy"])
    network, (images, labels) = joint_network(config, (1, 8, 8), 10), batch()
    scores = network["image"].anchors(images) @ network["label"].matrix.T
    torch.testing.assert_close(losses(config, network, images, labels)["loss"], torch.nn.functional.cross_entropy(scores, labels))
    assert torch.equal(joint.named_classes(network, config, images), scores.argmax(1))
    moved, turned = dataclasses.replace(config, jitter=0.5), jittered(images, 0.5, torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.cross_entropy(network["image"].anchors(turned) @ network["label"].matrix.T, labels)
    torch.testing.assert_close(losses(moved, network, images, labels)["loss"], wanted)
    assert abs(wanted - losses(config, network, images, labels)["loss"]) > 1e-3
    pieces = dataclasses.replace(config, piece=5)
    torch.testing.assert_close(losses(pieces, network, images, labels)["loss"], losses(config, network, images, labels)["loss"])


@pytest.mark.parametrize("changes, words", [({"zones": False, "drawing": False}, "drawing: got False with zones=False"), ({"drawing": False, "alignment_weight": 0.0}, "alignment_weight: got 0 with drawing=False"),
                                            ({"cross_entropy": True}, "cross_entropy: got True beside drawing"), ({"smallest_space": -1}, "smallest_space: got -1")])
def test_settings_that_leave_nothing_to_do_are_refused(changes, words):
    with pytest.raises(ValueError, match=words): dataclasses.replace(TINY, **changes)


def test_a_batch_in_spaces_of_their_own_is_so_many_batches():
    config = dataclasses.replace(TINY, smallest_space=8)
    network, (images, _) = joint_network(TINY, (1, 8, 8), 10), batch(32)
    sizes = {base.parts_of(config, 32, torch.Generator().manual_seed(seed)) for seed in range(40)}
    assert sizes == {1, 2, 4} and base.parts_of(TINY, 32, torch.Generator()) == 1
    image, noise = network["image"], torch.randn(32, TINY.latent_dim, generator=torch.Generator().manual_seed(3))
    whole, _ = image.zones(images)
    for parts in (2, 3, 4):
        z = base.encoded_apart(image, whole, noise, 1.0, parts)
        cuts = [k * 32 // parts for k in range(parts + 1)]
        alone = [image.zones(images[a:b])[0].encode(noise=noise[a:b]) for a, b in zip(cuts, cuts[1:])]
        assert torch.allclose(z, torch.cat(alone), atol=1e-5)
    torch.testing.assert_close(base.encoded_apart(image, whole, noise, 1.0, 1), whole.encode(noise=noise))
    losses(config, network, images, torch.arange(32) % 10)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
