"""The representation scenario: views, losses and what they reach, figures, runs of every method, resumed and refused."""
import builtins
import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from lzn_nb.alignment import alignment_loss
from lzn_nb.backbones import make_encoder
from lzn_nb.checkpoints import load_checkpoint
from lzn_nb.cli import main
from lzn_nb.data import load_data
from lzn_nb.network import LatentZoningNetwork
from lzn_nb.scenarios.representation import (KINDS, METHODS, REPRESENTATION, REPRESENTATION_PRESETS, aligned, evaluate_representation, features_of, judge_alignment,
                                             load_representation, plan_representation, representation_components, representation_losses, representation_network, representation_trainer,
                                             run_representation, validate_representation, views_of, with_buffers)
from lzn_nb.training import run_update
from lzn_nb.zones import LatentZones

TINY = REPRESENTATION_PRESETS["tiny"]
ALL = list(METHODS)


def seeded(seed): return torch.Generator().manual_seed(seed)


def batch(n=24, shape=(1, 8, 8), seed=0): return torch.rand(n, *shape, generator=seeded(seed)) * 2 - 1, torch.arange(n) % 4


def settings(**changes): return dataclasses.replace(TINY, **changes)


def losses(config, network, images, labels, seed=0): return representation_losses(config, network, images, labels, seeded(seed))


@pytest.fixture(scope="module")
def digits(): return load_data("digits")


# -- views ------------------------------------------------------------------------------------
def test_views_are_seeded_two_and_different():
    images, labels = batch()
    a, b = views_of(TINY, images, seeded(0))
    again, _ = views_of(TINY, images, seeded(0))
    assert a.shape == b.shape == images.shape and torch.equal(a, again)
    assert not torch.allclose(a, b) and not torch.allclose(a, views_of(TINY, images, seeded(1))[0])
    assert a.min() >= -1 and a.max() <= 1
    still, _ = views_of(settings(strength=0.0), images, seeded(0))
    assert torch.allclose(still, images, atol=1e-5)


def test_each_image_has_a_draw_of_its_own():
    one = batch(1)[0].expand(16, -1, -1, -1)
    a, _ = views_of(TINY, one, seeded(0))
    assert len(a.flatten(1).unique(dim=0)) == 16


def test_views_may_be_smaller_than_images_and_their_middle_is_judged(digits):
    "The network takes views, features are those of the middle, a plan and training see the same shapes."
    config = settings(view_size=6)
    network, images = representation_network(config, digits.shape, 10).eval(), digits.train.images[:30]
    assert network["image"].shape == (1, 6, 6) and all(view.shape == (30, 1, 6, 6) for view in views_of(config, images, seeded(0)))
    assert views_of(config, images.to("meta"), seeded(0))[0].shape == (30, 1, 6, 6)
    (found,) = features_of(network, [images], config, zones=False)["backbone"]
    with torch.no_grad(): assert torch.equal(found, network["image"].encoder.features(images[:, :, 1:7, 1:7]))
    losses(config, network.train(), images, torch.zeros(30, dtype=torch.long))["loss"].backward()
    figures = evaluate_representation(network, digits, dataclasses.replace(config, probe_epochs=1, probe_images=60), limit=60)
    assert figures["knn_backbone"] > 0.1 and REPRESENTATION.samples(network, digits, config, seeded(0)).axes
    with pytest.raises(ValueError, match="view_size: got 9, but the images have 8 pixels; wanted at most as many"): representation_network(settings(view_size=9), digits.shape, 10)


# -- losses -----------------------------------------------------------------------------------
def test_the_loss_is_alignment_of_one_view_to_the_other():
    "One direction and both, by the public function."
    generator = seeded(3)
    x, y, noise = (torch.randn(12, 6, generator=generator) for _ in range(3))
    own, other, mine = LatentZones(x, steps=4), LatentZones(y, steps=4), torch.arange(12)
    loss, arrived = aligned(settings(window=0.0), own, other, mine, noise)
    z = own.encode(mine, noise, TINY.alpha)
    assert torch.equal(loss, alignment_loss(z, other, mine, cutoff=TINY.cutoff)) and float(arrived) == float((other.decode(z) == mine).float().mean())


def test_a_window_ends_the_question_where_it_says():
    "At λ = 0 nobody knows anything; with a window latents that arrive are not counted as certain, and have a gradient."
    generator = seeded(3)
    x, noise, mine = torch.randn(12, 6, generator=generator), torch.randn(12, 6, generator=generator), torch.arange(12)
    y = (x + 0.1 * torch.randn(12, 6, generator=generator)).requires_grad_()
    asked = lambda window: aligned(settings(window=window, zone_steps=20), LatentZones(x, steps=20), LatentZones(y, steps=20), mine, noise)
    assert float(asked(1e-4)[0].detach()) == pytest.approx(math.log(12), abs=1e-2) and float(asked(1e-4)[1]) < 0.9
    losses, slopes = zip(*[(float(loss.detach()), float(torch.autograd.grad(loss, y)[0].norm())) for loss, _ in map(asked, (0.3, 1.0, 3.0, 0.0))])
    assert list(losses[:3]) == sorted(losses[:3], reverse=True) and losses[1] > losses[3] and slopes[1] > 10 * slopes[3]


def test_symmetric_is_the_mean_of_both_directions(monkeypatch):
    from lzn_nb.scenarios import representation
    asked = []
    monkeypatch.setattr(representation, "aligned", lambda config, own, other, mine, noise: asked.append((own, other, noise)) or (own.anchors.sum() * 0 + len(asked), torch.tensor(1.0)))
    for symmetric, number in ((False, 1.0), (True, 1.5)):
        asked.clear()
        config = settings(symmetric=symmetric)
        assert float(losses(config, representation_network(config, (1, 8, 8), 4), *batch())["loss"].detach()) == number and len(asked) == 1 + symmetric
    (own, other, noise), (back, forth, another) = asked
    assert own is forth and other is back and not torch.equal(noise, another)


@pytest.mark.parametrize("method", ALL)
def test_every_method_reaches_its_whole_encoder(method):
    torch.manual_seed(0)
    config = settings(method=method)
    network, (images, labels) = representation_network(config, (1, 8, 8), 4), batch(40)
    losses(config, network, images, labels)["loss"].backward()
    parts = {"lzn": network["image"].encoder, "simclr": network["image"].encoder, "moco": network["image"].encoder, "supervised": network["image"].encoder.trunk}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts[method].parameters())
    trained = {id(p) for part in representation_components(config, network).values() for p in part.module.parameters()}
    assert {id(p) for p in parts[method].parameters()} <= trained
    if method == "moco": assert not list(network.keys.parameters())


def test_simclr_is_cross_entropy_over_the_views_of_the_batch():
    "In closed form: each of 2n views among the 2n - 1 others."
    config = settings(method="simclr", temperature=0.3)
    network, (images, labels) = representation_network(config, (1, 8, 8), 4), batch()
    a, b = (F.normalize(network["image"].anchors(view), dim=1) for view in views_of(config, images, seeded(0)))
    every = torch.cat([a, b])
    similar = (every @ every.T / 0.3).fill_diagonal_(-torch.inf)
    wanted = F.cross_entropy(similar, torch.arange(48).roll(24))
    assert torch.allclose(losses(config, network, images, labels)["loss"], wanted, rtol=1e-5)


def test_moco_remembers_keys_and_follows_slowly():
    config = settings(method="moco", queue=96, momentum=0.9, temperature=0.5)
    network, (images, labels) = representation_network(config, (1, 8, 8), 4), batch()
    bank = network.keys.loss.memory_bank
    before = bank.bank.clone()
    with torch.no_grad():
        for p in network["image"].encoder.parameters(): p += 0.1
    old = copy.deepcopy(network.keys.encoder)
    a, b = views_of(config, images, seeded(0))
    loss = losses(config, network, images, labels)["loss"]
    follower, was = network.keys.encoder.state_dict(), old.state_dict()
    for name, leader in network["image"].encoder.named_parameters(): assert torch.allclose(follower[name], 0.9 * was[name] + 0.1 * leader, atol=1e-6)
    keys, query = (F.normalize(f(x), dim=1) for f, x in ((network.keys.encoder, b), (network["image"].encoder, a)))
    logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ before.T], 1) / 0.5
    assert torch.allclose(loss, F.cross_entropy(logits, torch.zeros(24, dtype=torch.long)), rtol=1e-4)
    assert torch.allclose(bank.bank[:24], keys, atol=1e-5) and torch.equal(bank.bank[24:], before[24:]) and int(bank.bank_ptr) == 24
    assert {"keys.loss.memory_bank.bank", "keys.loss.memory_bank.bank_ptr"} <= network.state_dict().keys()


def test_keys_follow_an_update_no_faster_in_parts():
    "Two parts of a batch move the second encoder as far as one whole batch does, if the first does not move in between."
    ends = []
    for parts in (1, 2):
        config = settings(method="moco", momentum=0.8, accumulate=parts)
        network = representation_network(config, (1, 8, 8), 4, seed=1)
        with torch.no_grad():
            for p in network["image"].encoder.parameters(): p += 0.1
        for part in range(parts): losses(config, network, *batch(), seed=part)
        ends.append(network.keys.encoder.state_dict())
    assert all(torch.allclose(one, ends[1][name], atol=1e-6) for name, one in ends[0].items())


@pytest.mark.parametrize("backbone", ["vit", "resnet18", "torchvision:shufflenet_v2_x0_5"])
def test_keys_of_any_network_have_its_weights_as_buffers(backbone):
    "Attention and batch norms among them: the same anchors, the same names, nothing to train."
    encoder = make_encoder(backbone, (3, 32, 32), 8).eval()
    twin, x = with_buffers(copy.deepcopy(encoder)), torch.rand(4, 3, 32, 32, generator=seeded(0))
    with torch.no_grad(): torch.testing.assert_close(twin(x), encoder(x), rtol=0, atol=1e-5)  # its bits depend on where in memory the weights lie
    assert not list(twin.parameters()) and set(twin.state_dict()) == set(encoder.state_dict())


def test_a_loaded_moco_run_has_the_keys_it_was_trained_with(tmp_path):
    "And an update that is left out leaves them alone; and a plan knows how large its checkpoints are."
    run_representation("digits", "tiny", tmp_path / "a", method="moco", steps=4, save_every=4, progress=False)
    kept, loaded = load_checkpoint(tmp_path / "a", torch.device("cpu"), None)["network"], load_representation(tmp_path / "a").state_dict()
    fresh = representation_network(settings(method="moco"), (1, 8, 8), 10).state_dict()
    keys = [name for name in kept if name.startswith("keys.")]
    assert all(torch.equal(kept[name], loaded[name]) for name in keys) and not torch.equal(fresh["keys.encoder.head.0.weight"], loaded["keys.encoder.head.0.weight"])
    size = next((tmp_path / "a" / "checkpoints").glob("*.safetensors")).stat().st_size
    assert plan_size_of("moco") == pytest.approx(size / 1e6, rel=0.02) and plan_size_of("moco") > 1.4 * plan_size_of("lzn")
    config = settings(method="moco")
    trainer = representation_trainer(config, (1, 8, 8), 10, 0, torch.device("cpu"))
    trainer.begin(lambda *given: {"loss": representation_losses(config, *given)["loss"] * math.nan})
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.update([batch(64)], seeded(0))
    assert all(torch.equal(before[name], value) for name, value in trainer.network.state_dict().items())


def plan_size_of(method): return plan_representation("digits", "tiny", method=method)["a checkpoint [MB]"]


def test_methods_start_from_the_same_encoder():
    states = [representation_network(settings(method=method), (1, 8, 8), 4, seed=3)["image"].state_dict() for method in ALL]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])


# -- figures ----------------------------------------------------------------------------------
def test_features_of_all_kinds(digits):
    network = representation_network(TINY, digits.shape, 10).eval()
    splits = [digits.train.images[:150], digits.test.images[:90]]
    found = features_of(network, splits, TINY)
    assert list(found) == list(KINDS)
    for kind, (x, y) in found.items(): assert len(x) == 150 and len(y) == 90 and x.shape[1] == (128 if kind == "backbone" else 8)
    image = network["image"]
    with torch.no_grad(): anchors = image.anchors(splits[0]), image.anchors(splits[1])
    everybody = LatentZones(anchors[0], steps=4)
    assert torch.allclose(found["anchor"][1], anchors[1], atol=1e-5)
    assert torch.allclose(found["full"][1], everybody.encode(points=anchors[1], alpha=0.0), atol=1e-3)
    assert torch.allclose(found["full"][0], everybody.encode(alpha=0.0), atol=1e-3)
    assert torch.allclose(found["centre"][0][:64], LatentZones(anchors[0][:64], steps=4).encode(alpha=0.0), atol=1e-3)
    assert not torch.allclose(found["latent"][0], found["centre"][0], atol=1e-2)
    again = features_of(network, splits, TINY)
    assert all(torch.equal(x, y) for kind in found for x, y in zip(found[kind], again[kind])) and not torch.equal(features_of(network, splits, TINY, seed=1)["latent"][0], found["latent"][0])


def test_features_of_images_on_disk_are_found_a_few_at_a_time(tmp_path, monkeypatch):
    "The same as of those in memory, of which there are never more than a network takes at once."
    from PIL import Image
    for k in range(60):
        (tmp_path / str(k % 2)).mkdir(exist_ok=True)
        Image.fromarray((torch.rand(8, 8, generator=seeded(k)) * 255).byte().numpy()).save(tmp_path / str(k % 2) / f"{k}.png")
    data = load_data(f"folder:{tmp_path}")
    monkeypatch.setattr("lzn_nb.scenarios.representation.at_once", lambda shape: 7)
    network = representation_network(TINY, data.shape, 2).eval()
    known = features_of(network, [split.images for split in (data.train, data.test)], TINY)
    seen, encoder = [], network["image"].encoder
    encoder.trunk.register_forward_hook(lambda module, given, found: seen.append(len(given[0])))
    monkeypatch.setattr(type(data.train), "take", lambda *_: pytest.fail("all images at once"))
    for config in (TINY, settings(workers=1)):
        found = features_of(network, [data.train, data.test], config)
        assert data.train.lazy and all(torch.equal(x, y) for kind in known for x, y in zip(known[kind], found[kind]))
    assert max(seen) == 7 and sum(seen) == 2 * (len(data.train) + len(data.test))


def test_probes_get_as_many_training_images_as_are_wanted_and_fit(digits, monkeypatch):
    network = representation_network(TINY, digits.shape, 10).eval()
    told = lambda config: evaluate_representation(network, digits, config, limit=50)["protocols"]
    assert told(settings(probe_epochs=1, probe_images=120))["knn_full"].startswith("20 nearest of 120 training features")
    assert told(settings(probe_epochs=1, probe_images=0))["probe_anchor"].startswith("1,258 training features; AdamW, batches of 256")
    assert [REPRESENTATION_PRESETS[name].probe_images for name in ("tiny", "cpu", "gpu", "paper")] == [10_000, 10_000, 0, 0]
    monkeypatch.setattr("lzn_nb.scenarios.representation.free_memory", lambda device: 16 * (128 + 8) * 1100)
    with pytest.warns(UserWarning, match="probe_images: no memory for the features of 1,258 training images, so probes and neighbours get 1,100"):
        assert told(settings(probe_epochs=1))["knn_full"].startswith("20 nearest of 1,100 training features")


def test_alignment_of_equal_views_is_perfect(digits):
    judged = lambda **changes: judge_alignment(representation_network(settings(**changes), digits.shape, 10).eval(), digits.test.images[:64], settings(**changes), 0)
    fine, coarse = (judged(strength=0.0, alpha=0.0, zone_steps=steps) for steps in (24, 4))
    assert fine["view_distance"] == coarse["view_distance"] == 0 and fine["arrived"] == 1 and judged(zone_steps=24)["arrived"] < 0.9
    assert 0 < fine["solver_error"] < 0.1 * coarse["solver_error"] < 0.05


def test_test_labels_choose_nothing(digits):
    "The probe of the test split has the settings that the validation split chose; and figures come from the split asked for."
    network = representation_network(TINY, digits.shape, 10).eval()
    few = settings(probe_images=300)
    test, valid = (evaluate_representation(network, digits, few, split=split, limit=300) for split in ("test", "valid"))
    assert test == evaluate_representation(network, digits, few, limit=300) and test["probe_backbone"] != valid["probe_backbone"]
    chosen = lambda found: found["protocols"]["probe_backbone"].split(";")[1]
    assert chosen(test) == chosen(valid) and "of the test split" in test["protocols"]["knn_full"]
    assert {f"{what}_{kind}" for what in ("probe", "top5", "knn") for kind in KINDS} <= test.keys()
    assert validate_representation(network, digits, TINY)["score"] > 0.1


# -- presets ----------------------------------------------------------------------------------
def test_the_published_hyperparameters():
    paper = REPRESENTATION_PRESETS["paper"]
    wanted = dict(steps=5_000_000, batch=8192, warmup=5000, latent_dim=256, head_layers=2, head_norm=True, rate=8e-4, ema=0.9999, alpha=0.45, cutoff=0.2, log_alignment=True, symmetric=False,
                  solver="euler", zone_steps=20, clip=1.0, schedule="constant", backbone="resnet50", flip=True, strength=1.0)
    assert {name: getattr(paper, name) for name in wanted} == wanted
    with torch.device("meta"): network = representation_network(paper, (3, 224, 224), 1000)
    assert sum(p.numel() for p in network.parameters()) == 28_231_232


@pytest.mark.parametrize("changes, message", [
    ({"method": "byol"}, "method: got 'byol', wanted one of"), ({"solver": "heun", "window": 0.0}, "solver: got 'heun'"), ({"backbone": "resnet7"}, "backbone: got 'resnet7'"),
    ({"temperature": 0.0}, "temperature: got 0.0"), ({"temperature": 1e-9}, "temperature: got 1e-09, wanted a finite number, at least 1e-08"), ({"temperature": math.inf}, "temperature: got inf"),
    ({"latent_dim": 1}, "latent_dim: got 1 and a norm at the head's end, which leaves one anchor"), ({"latent_dim": 2}, "latent_dim: got 2 and a norm .* two anchors"), ({"probe_images": -1}, "probe_images: got -1"), ({"strength": 1.5}, "strength: got 1.5"), ({"momentum": -0.1}, "momentum: got -0.1"), ({"alpha": -1.0}, "alpha: got -1.0"),
    ({"cutoff": 1.0}, "cutoff: got 1.0"), ({"head_layers": 0}, "head_layers: got 0"), ({"probe_epochs": 0}, "probe_epochs: got 0"), ({"rate": 0.0}, "rate: got 0.0"),
    ({"window": -1.0}, "window: got -1.0"), ({"window": 2.0, "solver": "euler"}, "window: got 2.0 with solver 'euler'"), ({"method": "moco", "queue": 10}, "queue: got 10, wanted at least the batch of 64"), ({"view_size": -4}, "view_size: got -4"),
    ({"batch": 1}, "batch: got 1 image.s. that compete"), ({"batch": 8, "accumulate": 8, "method": "simclr"}, "batch: got 1 image.s. that compete"), ({"zone_steps": 0}, "zone_steps: got 0"), ({"latent_dim": 0}, "latent_dim: got 0")])
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message): settings(**changes)
    settings(latent_dim=1, head_norm=False)


# -- runs -------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ALL)
def test_interrupted_run_ends_like_an_uninterrupted_one(method, tmp_path, monkeypatch):
    "Of MoCo, too, which has a memory beside its weights."
    whole = run_representation("digits", "tiny", tmp_path / "whole", method=method, progress=False)
    assert (tmp_path / "whole" / "report.html").exists() and whole.figures["probe_backbone"] > 0.7

    def impatient(trainer, *given):
        if trainer.step == 13: raise KeyboardInterrupt
        return run_update(trainer, *given)

    with monkeypatch.context() as patch:
        patch.setattr("lzn_nb.training.run_update", impatient)
        with pytest.raises(KeyboardInterrupt): run_representation("digits", "tiny", tmp_path / "parts", method=method, progress=False)
    parts = run_representation("digits", "tiny", tmp_path / "parts", method=method, progress=False, resume=True)
    clocks = ("seconds", "protocols")
    assert all(parts.figures[key] == value for key, value in whole.figures.items() if not any(word in key for word in clocks))
    loaded = load_representation(tmp_path / "whole")
    x = torch.rand(5, 1, 8, 8, generator=seeded(0)) * 2 - 1
    assert torch.equal(loaded.embed("image", x), whole.network.embed("image", x)) and torch.equal(parts.network.embed("image", x), whole.network.embed("image", x))


def test_a_look_at_validation_on_the_way(tmp_path):
    run_representation("digits", "tiny", tmp_path / "a", eval_every=10, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"valid_knn", "valid_arrived", "valid_solver_error", "valid_view_distance"} <= {key for line in lines if not line.get("final") for key in line} and (tmp_path / "a" / "samples" / "00000010.png").exists()


def test_the_command_names_its_methods(tmp_path, capsys):
    assert main(["representation", "--preset", "tiny", "--method", "supervised", "--set", "steps=4", "--out", str(tmp_path / "a"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "linear probe, backbone" in shown and "accuracy of the classifier" in shown and json.loads((tmp_path / "a" / "config.json").read_text())["method"] == "supervised"
    assert main(["representation", "--method", "moco", "--set", "method='lzn'", "--out", str(tmp_path / "b")]) == 2
    assert "--set method: got it beside --method" in capsys.readouterr().err
    assert main(["representation", "--method", "byol", "--out", str(tmp_path / "b")]) == 2 and "invalid choice: 'byol'" in capsys.readouterr().err
    assert main(["representation", "--baseline", "rf", "--out", str(tmp_path / "b")]) == 2 and not (tmp_path / "b").exists()
    for method in ALL: assert main(["representation", "--preset", "tiny", "--method", method, "--dry-run", "--quiet"]) == 0 and "activations" in capsys.readouterr().out
    published = ["--set", "solver=euler", "--set", "window=0"]  # whose steps are numbers, also in a plan
    assert main(["representation", "--preset", "tiny", *published, "--dry-run", "--quiet"]) == 0 and "activations" in capsys.readouterr().out


def test_baselines_without_lightly(tmp_path, monkeypatch, capsys):
    "Named with the way to get it, and nothing is written; latent alignment does without."
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more, **given: (_ for _ in ()).throw(ImportError(name)) if name.startswith("lightly") else real(name, *more, **given))
    for method in ("simclr", "moco"):
        assert main(["representation", "--preset", "tiny", "--method", method, "--out", str(tmp_path / "a")]) == 2
        assert "pip install lzn_nb[baselines]" in capsys.readouterr().err and not (tmp_path / "a").exists()
    representation_network(TINY, (1, 8, 8), 4)


def test_other_images_and_backbones_train():
    "Colour, another size, a transformer and a network of torchvision with batch norms; in pieces where that is possible."
    for backbone, piece in (("vit", 16), ("torchvision:shufflenet_v2_x0_5", 0), ("resnet18", 16)):
        config = settings(backbone=backbone, piece=piece, batch=32)
        network, (images, labels) = representation_network(config, (3, 32, 32), 4), batch(32, (3, 32, 32))
        losses(config, network.train(), images, labels)["loss"].backward()
        assert sum(float(p.grad.norm()) for p in network["image"].encoder.parameters() if p.grad is not None) > 0
    config = settings(backbone="torchvision:shufflenet_v2_x0_5", piece=16)
    with pytest.raises(ValueError, match="piece: the network has a batch norm"): losses(config, representation_network(config, (3, 32, 32), 4).train(), *batch(32, (3, 32, 32)))


def test_one_class_is_refused_and_other_runs_are_not_loaded(tmp_path):
    run_representation("digits", "tiny", tmp_path / "a", steps=2, progress=False)
    from lzn_nb.scenarios.generation import load_generation
    with pytest.raises(ValueError, match="holds a run of 'representation'"): load_generation(tmp_path / "a")
    assert REPRESENTATION.classes == 2 and isinstance(load_representation(tmp_path / "a"), LatentZoningNetwork)
