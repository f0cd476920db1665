"The generation scenario: losses, the same noise for both, figures, published sizes, runs on made folders, pure generation."
import dataclasses
import json
import math

import pytest
import torch

from lzn_nb.cli import main
from lzn_nb.data import load_data
from lzn_nb.network import LatentZoningNetwork
from lzn_nb.scenarios import base
from lzn_nb.scenarios.generation import (first_batch, FEW_STEPS, GENERATION, GENERATION_PRESETS, GenerationConfig, draw_images, evaluate_generation, generation_components, generation_losses,
                                         generation_network, judge_paths, judge_reconstruction, load_generation, prior_draws, run_generation, straight_from,
                                         validate_generation)
from lzn_nb.training import get_preset
from test_data import pictures

TINY = GENERATION_PRESETS["tiny"]


def batch(n=24, shape=(1, 8, 8), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1, torch.zeros(n, dtype=torch.long)


def losses(config, network, images, labels, seed=0):
    return generation_losses(config, network, images, labels, torch.Generator().manual_seed(seed))


def moved(network, seed=0, size=0.05):
    "Weights away from their start: what starts at zero hides mistakes."
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters(): p += size * torch.randn(p.shape, generator=noise)
    return network


# -- losses -----------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{}, {"zones": False}])
def test_an_untrained_decoder_errs_by_the_whole_velocity(changes):
    config = dataclasses.replace(TINY, **changes)
    network, (images, labels) = generation_network(config, (1, 8, 8)), batch(300)
    assert float(losses(config, network, images, labels, seed=5)["loss"].detach()) == pytest.approx(float(images.square().mean()) + 1, rel=0.05)  # of x1 - x0


def test_the_loss_reaches_the_encoder_through_the_zones():
    network, (images, labels) = moved(generation_network(TINY, (1, 8, 8))), batch()
    losses(TINY, network, images, labels)["loss"].backward()
    assert sum(float(p.grad.norm()) for p in network["image"].encoder.parameters() if p.grad is not None) > 1e-3
    assert list(generation_components(TINY, network)) == ["decoder", "encoder"]
    plain = dataclasses.replace(TINY, zones=False)
    assert list(generation_components(plain, generation_network(plain, (1, 8, 8)))) == ["decoder"]


def test_pure_generation_is_one_evaluation_of_the_latent():
    config = dataclasses.replace(TINY, pure=True)
    network, (images, labels) = moved(generation_network(config, (1, 8, 8))), batch()
    assert losses(config, network, images, labels)["loss"].isfinite()
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(straight_from(network, z), straight_from(network, z)) and not torch.allclose(straight_from(network, z)[0], straight_from(network, z)[1])
    drawn, evaluations = draw_images(network.eval(), 30, 1, 0, chunk=7, pure=True)
    assert drawn.shape == (30, 1, 8, 8) and evaluations == 1
    with pytest.raises(ValueError, match="pure: got True with zones=False"): GenerationConfig(steps=1, batch=2, warmup=0, pure=True, zones=False)
    for name, value in (("drawn", 3), ("tol", 0.0), ("tol", 1.0)):
        with pytest.raises(ValueError, match=f"{name}: got {value}"): dataclasses.replace(TINY, **{name: value})


def test_mirrored_images_are_halves_of_each():
    from lzn_nb.scenarios.base import draws_like, mirrored
    images, _ = batch(400)
    turned = mirrored(dataclasses.replace(TINY, flip=True), images, draws_like(images, torch.Generator().manual_seed(0), 400))
    flipped = (turned == images.flip(3)).flatten(1).all(1)
    assert 150 < int(flipped.sum()) < 250 and torch.equal(turned[~flipped], images[~flipped])
    assert mirrored(TINY, images, None) is images


# -- figures ----------------------------------------------------------------------------------
def test_drawings_are_seeded_and_do_not_depend_on_chunks():
    network = moved(generation_network(TINY, (1, 8, 8))).eval()
    a, asked = draw_images(network, 20, 4, 3, chunk=20)
    b, _ = draw_images(network, 20, 4, 3, chunk=6)
    c, _ = draw_images(network, 20, 4, 4)
    assert asked == 4 and torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, c, atol=0.1)
    plain = moved(generation_network(dataclasses.replace(TINY, zones=False), (1, 8, 8))).eval()
    assert draw_images(plain, 20, 4, 3)[0].shape == a.shape


def test_reconstruction_is_exact_where_nothing_moves():
    "An untrained decoder stands still: there and back is the image itself; a pure one has only its latent to go by."
    network, (images, _) = generation_network(TINY, (1, 8, 8)).eval(), batch()
    assert judge_reconstruction(network, images, TINY, 0, draws=2).value < 1e-2 and judge_paths(network, 0).value >= 0
    assert judge_reconstruction(network, images, dataclasses.replace(TINY, pure=True), 0).value == pytest.approx(float(images.flatten(1).norm(dim=1).mean()), rel=0.05)


def test_reconstructions_are_of_the_same_images_for_every_seed():
    "The first batch of the whole training split in the order of seed 0, as published; and zones among as many as are asked for."
    data, network, seen = load_data("digits"), moved(generation_network(TINY, (1, 8, 8)), size=0.02).eval(), []
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:TINY.batch]
    assert torch.equal(first_batch(data, TINY.batch), data.train.images[order])
    from lzn_nb.scenarios import generation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "judge_reconstruction", lambda network, images, **_: seen.append(images) or judge_reconstruction(network, images, TINY, 0, steps=2))
        for seed in (0, 1): evaluate_generation(network, data, TINY, seed=seed, limit=100)
    assert torch.equal(seen[0], first_batch(data, TINY.batch)) and torch.equal(seen[0], seen[3]) and len(seen) == 6
    whole, apart = (judge_reconstruction(network, seen[0], dataclasses.replace(TINY, together=k), 0, steps=4) for k in (0, 16))
    assert whole.value != apart.value and "among 64 of them, Adams, 4 evaluations" in whole.row()["protocol"] and "among 16 of them" in apart.row()["protocol"]


def test_the_evaluation_tells_what_it_is_at(capsys):
    data, network = load_data("digits"), generation_network(TINY, (1, 8, 8)).eval()
    evaluate_generation(network, data, TINY, limit=60, progress=True)
    told = capsys.readouterr().err
    assert "measuring: 40 drawn images" in told and "measuring: reconstructions" in told
    evaluate_generation(network, data, TINY, limit=60)
    assert not capsys.readouterr().err


def test_figures_are_the_same_twice_and_of_the_split_asked_for():
    data, network = load_data("digits"), moved(generation_network(TINY, (1, 8, 8)), size=0.02).eval()
    a, b = (evaluate_generation(network, data, TINY, seed=1) for _ in range(2))
    assert a == b and (told := a.pop("protocols")).keys() == a.keys() and all(math.isfinite(value) for value in a.values())
    assert {*FEW_STEPS, "proxy_fid", "proxy_sfid", "proxy_kid", "proxy_is", "proxy_precision", "proxy_recall", "proxy_cmmd", "evaluations", "curvature", "reconstruction", "reconstruction_10", "reconstruction_test"} <= a.keys()
    assert not {name for name in a if name.startswith(("fid", "is", "kid"))}  # what rests on no Inception has another name
    assert "drawn 40, real 359" in told["proxy_fid_4"] and "Euler, 4 evaluations" in told["proxy_fid_4"] and "RK45, tolerance 0.3" in told["proxy_fid"]
    assert evaluate_generation(network, data, TINY, split="valid", seed=1)["proxy_fid"] != a["proxy_fid"]
    assert a["proxy_fid_of_training"] < 1 < a["proxy_fid"]  # real digits are nearer to real digits than noise is
    assert validate_generation(network, data, TINY) == (found := validate_generation(network, data, TINY)) and found["score"] == -found["proxy_fid_8"]


def test_the_published_figures_compare_with_as_many_training_images(monkeypatch):
    "And with no others; they keep their names and protocols."
    from lzn_nb.metrics import Result
    from lzn_nb.scenarios import generation
    seen = []
    monkeypatch.setattr(generation, "published_figures", lambda drawn, real, **protocol: seen.append((drawn, real)) or [Result("FID", 3.0, protocol)])
    data, network = load_data("digits"), moved(generation_network(TINY, (1, 8, 8)), size=0.02).eval()
    found = evaluate_generation(network, data, TINY, seed=1)
    (drawn, real), training = seen[0], data.train.images.flatten(1)
    assert len(drawn) == len(real) == TINY.drawn == 40 and (torch.cdist(real.flatten(1), training).amin(1) < 1e-4).all()
    assert found["published_fid"] == 3.0 and "RK45" in found["protocols"]["published_fid"]


def test_draws_are_from_the_prior_and_seeds_share_none():
    network = generation_network(TINY, (1, 8, 8))
    noise, z = prior_draws(network, 4000, 3)
    assert torch.equal(noise, prior_draws(generation_network(dataclasses.replace(TINY, zones=False), (1, 8, 8)), 4000, 3)[0])
    assert abs(float(z.std()) - 1) < 0.02 and abs(float(z.mean())) < 0.02
    other, later = prior_draws(network, 4000, 4)
    assert torch.isin(z, torch.cat([other.flatten(), later.flatten()])).double().mean() < 0.2  # float32 has few numbers: chance


def test_pure_generation_trains_the_encoder():
    config = dataclasses.replace(TINY, pure=True)
    network, (images, labels) = moved(generation_network(config, (1, 8, 8))), batch()
    losses(config, network, images, labels)["loss"].backward()
    assert sum(float(p.grad.norm()) for p in network["image"].encoder.parameters() if p.grad is not None) > 1e-4


def test_large_images_go_through_networks_a_few_at_a_time(monkeypatch):
    "Encoder and decoder see no more than `at_once` images in an evaluation, and it makes no difference."
    assert base.at_once((1, 28, 28)) == 250 and base.at_once((3, 256, 256)) == 16
    from lzn_nb.nets import UNetDecoder, UNetEncoder
    from lzn_nb.scenarios import generation
    seen, data = [], load_data("digits")
    for part in (UNetEncoder, UNetDecoder):
        whole = part.forward
        monkeypatch.setattr(part, "forward", lambda self, x, *more, whole=whole, **given: seen.append(len(x)) or whole(self, x, *more, **given))
    network, found = moved(generation_network(TINY, (1, 8, 8)), size=0.02).eval(), []
    for size in (250, 16):
        for module in (base, generation): monkeypatch.setattr(module, "at_once", lambda shape: size)
        seen.clear()
        found.append(evaluate_generation(network, data, TINY, seed=1))
        assert max(seen) <= size
    a, b = found
    for key in (*FEW_STEPS, "curvature", "reconstruction_10"): assert a[key] == pytest.approx(b[key], rel=1e-3), key  # RK45's steps depend on who shares them


# -- published sizes --------------------------------------------------------------------------
@pytest.mark.parametrize("preset, zones, size, decoder, encoder", [("paper", True, 32, 61_906_819, 49_790_260), ("paper", False, 32, 61_804_419, 0),
    ("paper_afhq_cat", True, 256, 65_676_949, 87_768_896), ("paper_celeba_hq", False, 256, 65_574_549, 0), ("paper_lsun_bedroom", True, 256, 65_676_949, 87_768_896)])
def test_the_published_presets_have_the_published_networks(preset, zones, size, decoder, encoder):
    config = get_preset(GENERATION_PRESETS, preset, zones=zones)
    with torch.device("meta"):
        image = base.image_type(config, (3, size, size))
    count = lambda module: sum(p.numel() for p in module.parameters()) if module else 0
    assert (count(image.decoder), count(image.encoder)) == (decoder, encoder)


def test_the_published_hyperparameters():
    told = {"paper": (50_000, 2000, 1e-3, 2.5e-5, 0.999999, 0.15), "paper_afhq_cat": (60_000, 256, 2e-4, 2e-6, 0.999999, 0.0),
            "paper_celeba_hq": (350_000, 256, 2e-4, 4e-6, 0.9999, 0.0), "paper_lsun_bedroom": (2_050_000, 256, 2e-4, 2e-6, 0.99999, 0.0)}
    for name, wanted in told.items():
        c = GENERATION_PRESETS[name]
        assert (c.steps, c.batch, c.rate_decoder, c.rate_encoder, c.ema, c.dropout) == wanted, name
        assert (c.warmup, c.schedule, c.clip, c.latent_dim, c.alpha, c.zone_steps, c.flip, c.tol, c.sample_steps, c.draws, c.workers) == (5000, "constant", 1.0, 200, 1.0, 20, True, 1e-5, 10, 20, 2), name
        assert (c.drawn, c.save_every, c.eval_every) == ((50_000, 1000, 5000) if name == "paper" else (1024, 2000, 10_000)), name


# -- runs -------------------------------------------------------------------------------------
def test_the_command_end_to_end(tmp_path, capsys):
    "Trained, stopped half-way in its folder, resumed, shown; and the baseline beside it."
    words = ["generation", "--preset", "tiny", "--quiet", "--set", "eval_every=10"]
    assert main([*words, "--out", str(tmp_path / "zones")]) == 0
    shown = capsys.readouterr().out
    assert "proxy-FID, 2 evaluations" in shown and "curvature of the paths" in shown and (tmp_path / "zones" / "report.html").exists()
    assert sorted(path.name for path in (tmp_path / "zones" / "samples").iterdir()) == ["00000010.png", "00000020.png"]
    assert main([*words, "--baseline", "rf", "--out", str(tmp_path / "rf")]) == 0
    assert json.loads((tmp_path / "rf" / "config.json").read_text())["zones"] is False
    network = load_generation(tmp_path / "zones")
    assert isinstance(network, LatentZoningNetwork) and network.generate("image", 3, generator=torch.Generator().manual_seed(0)).shape == (3, 1, 8, 8)
    assert main(["generation", "--preset", "tiny", "--out", str(tmp_path / "rf"), "--resume"]) == 2  # another run: zones
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0 and "| zones=False |" in capsys.readouterr().out


def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path):
    calls = 0

    def stopping(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == 14: raise KeyboardInterrupt
        return generation_losses(*arguments, **more)

    whole = run_generation("digits", "tiny", tmp_path / "a", progress=False)
    with pytest.raises(KeyboardInterrupt): base.run(dataclasses.replace(GENERATION, losses=stopping), "digits", "tiny", tmp_path / "b", progress=False)
    resumed = run_generation("digits", "tiny", tmp_path / "b", progress=False, resume=True)
    for name, weight in whole.network.state_dict().items(): assert torch.equal(weight, resumed.network.state_dict()[name]), name
    clocks = lambda figures: {key: value for key, value in figures.items() if "second" not in key and "memory" not in key}
    assert clocks(whole.figures) == clocks(resumed.figures)


def test_a_published_layout_trains(tmp_path):
    "One kind of image in colour, the large networks' parts in little, judged by quarter turns."
    for k, part in enumerate(("bedroom_train", "bedroom_val")): pictures(tmp_path / "set" / part, 12 if k else 30, size=(12, 12))
    done = run_generation(f"folder:{tmp_path / 'set'}", "tiny", tmp_path / "run", progress=False, data_options={"image_size": 8}, steps=2, batch=16, pyramid=True, flip=True, drawn=20)
    assert math.isfinite(done.figures["proxy_fid"]) and done.data.num_classes == 1 and done.network["image"].decoder.log_time


def test_a_run_of_another_scenario_is_not_loaded(tmp_path):
    from lzn_nb.scenarios.joint import load_joint
    run_generation("digits", "tiny", tmp_path / "a", progress=False, steps=1, drawn=8)
    with pytest.raises(ValueError, match="holds a run of 'generation', wanted one of 'joint'"): load_joint(tmp_path / "a")


def test_figures_of_pure_generation_do_not_speak_of_a_solver(tmp_path):
    figures = run_generation("digits", "tiny", tmp_path / "pure", progress=False, steps=2, pure=True).figures
    assert {"proxy_fid_1", "reconstruction_1", "reconstruction_test_1"} <= figures.keys() and not {"proxy_fid", "reconstruction", "evaluations", "curvature"} & figures.keys()
    page = (tmp_path / "pure" / "report.html").read_text()
    assert "proxy-FID, one evaluation" in page and "exact solver" not in page and "RK45" not in page
