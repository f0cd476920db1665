"""The published networks: outputs and gradients of the published implementation, its names and shapes, its checkpoints, and what is none of these."""
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lzn_nb.network import LabelType
from lzn_nb.nets import ResNetEncoder, UNetDecoder, UNetEncoder
from lzn_nb.published import MODELS, as_published, build, check_state, load_checkpoint, load_state, published_names, read_decoder, read_encoder

GOLDENS = Path(__file__).parent / "goldens"
SMALL, PAPER = (json.loads((GOLDENS / f"{name}.json").read_text()) for name in ("networks_small", "networks_paper_keys"))
NUMBERS = np.load(GOLDENS / "networks_small.npz", allow_pickle=False)


def formula(key: str, shape: list[int]) -> torch.Tensor:
    "The goldens' weights: a formula of name and shape."
    weight = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    weight = 0.05 * weight if len(shape) == 1 else weight * np.sqrt(shape[0] / np.prod(shape))
    return torch.tensor(weight + (len(shape) == 1 and key.endswith(".weight")), dtype=torch.float32)


def state_of(name: str) -> dict:
    "The goldens' state of a small model, buffers too."
    return {e["key"]: formula(e["key"], e["shape"]) if e["kind"] == "parameter" else torch.ones(e["shape"]) for e in SMALL[name]["state_dict"]}


def answer(name: str, dtype: torch.dtype):
    "Output of a small model, and the norm of each gradient of sum(w · output) by its published name."
    module = load_state(build(SMALL[name]), state_of(name)).to(dtype).eval()
    given = {key.split("__in_")[1]: torch.tensor(NUMBERS[key]).to(dtype) for key in NUMBERS.files if key.startswith(f"{name}__in_")}
    output = module(given["x"]) if "x" in given else module(given["xt"], given["t"], given.get("latent"), given.get("label"))
    (output * torch.tensor(NUMBERS[f"{name}__w"]).to(dtype)).sum().backward()
    norms = {theirs: float(p.grad.double().norm()) for theirs, ours in published_names(module).items() if (p := module.get_parameter(ours)).grad is not None}
    return output.detach(), norms, module, given


@pytest.mark.parametrize(("dtype", "suffix", "rtol", "grad_rtol"), [(torch.float64, "f64", 1e-6, 1e-6), (torch.float32, "f32", 1e-5, 1e-4)])
@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_gradients_are_the_published_ones(name, dtype, suffix, rtol, grad_rtol):
    output, norms, module, given = answer(name, dtype)
    if name == "resnet" and dtype == torch.float32: rtol = 3e-5
    wanted = NUMBERS[f"{name}__out_{suffix}"]
    assert np.abs(output.numpy() - wanted).max() <= rtol * np.abs(wanted).max()
    if name == "resnet":
        features = NUMBERS[f"{name}__out_nohead_{suffix}"]
        assert np.abs(module.features(given["x"]).detach().numpy() - features).max() <= rtol * np.abs(features).max()
    keys = [key for key in NUMBERS[f"{name}__param_keys"].tolist() if key in norms]
    fixed = set(NUMBERS[f"{name}__param_keys"].tolist()) - set(keys)
    assert fixed == ({"all_modules.0.W"} if name == "decoder_fir_latent" else set())
    reference = dict(zip(NUMBERS[f"{name}__param_keys"].tolist(), NUMBERS[f"{name}__grad_norm_{suffix}"]))
    largest = max(reference.values())
    for key in keys: assert norms[key] == pytest.approx(reference[key], rel=grad_rtol, abs=grad_rtol * 1e-3 * largest), key


@pytest.mark.parametrize("name", PAPER)
def test_names_order_shapes_and_counts_of_the_published_models(name):
    with torch.device("meta"): module = build(name)
    found, ours = as_published(module), dict(module.named_parameters())
    wanted = [(e["key"], e["shape"], e["trainable"]) for e in PAPER[name]["state_dict"] if e["kind"] == "parameter"]
    names = published_names(module)
    assert [(key, list(value.shape), ours[names[key]].requires_grad) for key, value in found.items()] == wanted
    assert sum(value.numel() for value in ours.values()) == PAPER[name]["num_parameters"]
    assert sum(value.numel() for value in ours.values() if value.requires_grad) == PAPER[name]["num_trainable_parameters"]


def test_published_dropout():
    assert build("decoder_cifar10_latent").down.stages[0][0].dropout.p == build("encoder_cifar10").down.stages[0][0].dropout.p == 0.15
    assert build("decoder_256_latent").down.stages[0][0].dropout.p == 0


@pytest.mark.parametrize("name", SMALL)
def test_architecture_is_read_off_the_tensors(name):
    state = state_of(name)
    classes = SMALL[name].get("num_classes", 0)
    size = SMALL[name]["config"]["data"]["image_size"] if "config" in SMALL[name] else None
    with torch.device("meta"): module, wanted = read_decoder(state, size, classes) if name.startswith("decoder") else read_encoder(state), build(SMALL[name])
    assert check_state(module, state)
    assert str(module) == str(wanted) and getattr(module, "size", None) == getattr(wanted, "size", None)


@pytest.mark.parametrize(("changes", "mults"), [({"mults": (1, 2, 3), "blocks": 2, "attention": (4, 16)}, 3), ({"mults": (1,), "attention": ()}, 1), ({"mults": (1,), "attention": (16,), "blocks": 3}, 1),
                                                ({"mults": (2, 2), "pyramid": True, "smooth": True, "attention": (16, 8)}, 2), ({"mults": (1, 4), "image_channels": 1}, 2)])
def test_architectures_of_other_sizes_are_read_too(changes, mults):
    options = dict(image_channels=3, size=16, width=8, blocks=1, attention=(8,)) | changes
    decoder, encoder = UNetDecoder(**options, latent_dim=5, classes=3, log_time=mults == 3), UNetEncoder(**options, latent_dim=5, tap=3, hidden=7, tap_layers=3)
    assert str(read_decoder(as_published(decoder), 16, 3)) == str(decoder) and str(read_encoder(as_published(encoder))) == str(encoder)
    assert len(options["mults"]) == mults


# -- checkpoints ------------------------------------------------------------------------------
def published_file(path, share=0.5, **modules):
    "Weights as they are, their average `share` of them."
    held = {"epoch": 1, "iteration": 10, "optimizer": {}, "lr_scheduler": {}, "grad_scalar": {}}
    for name, module in modules.items():
        state = as_published(module)
        trained = [theirs for theirs, ours in published_names(module).items() if module.get_parameter(ours).requires_grad]
        held[name] = {f"model.module.{theirs}": value for theirs, value in state.items()}
        if isinstance(module, UNetDecoder): held[name] = {"model.module.sigmas": torch.ones(1000, dtype=torch.float64)} | held[name]
        held[f"{name}_ema"] = {"decay": 0.999999, "num_updates": 10, "shadow_params": [share * state[theirs] for theirs in trained]}
    torch.save(held, path)
    return path


def modules(study: int) -> dict:
    torch.manual_seed(study)
    body = dict(width=8, mults=(1, 2), blocks=1, attention=(8,))
    if study == 2: return {"encoder": ResNetEncoder(32)}
    made = {"encoder": UNetEncoder(3, 16, 6, tap=2, hidden=8, **body), "decoder": UNetDecoder(3, 16, latent_dim=6, classes=4 * (study == 3), **body)}
    return made | ({"label_anchor": LabelType(4, 6)} if study == 3 else {})


@pytest.mark.parametrize("study", [1, 2, 3])
@pytest.mark.parametrize("ema", [False, True])
def test_checkpoint_of_each_study_becomes_a_network_that_works(tmp_path, study, ema):
    made = modules(study)
    network = load_checkpoint(published_file(tmp_path / "a.pt", **made), ema=ema)
    share, image = 0.5 if ema else 1.0, network["image"]
    for name, module in {"encoder": image.encoder, "decoder": image.decoder, "label_anchor": network.types["label"] if study == 3 else None}.items():
        if name in made:
            for key, value in made[name].named_parameters(): assert torch.equal(module.get_parameter(key), share * value), (name, key)
        else: assert module is None
    assert not network.training
    x = torch.rand(5, *image.shape) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    assert network.embed("image", x).shape == (5, 32 if study == 2 else 6)
    if study == 2:
        with pytest.raises(NotImplementedError, match="no decoder"): network.generate("image", 2, generator=generator)
    else: assert network.generate("image", 2, generator=generator, steps=2).shape == (2, 3, 16, 16)
    if study == 3:
        assert network.generate("image", label=[1, 3], generator=generator, steps=2).shape == (2, 3, 16, 16)
        assert network.classify(x).shape == (5,)


def test_average_leaves_out_what_was_not_trained(tmp_path):
    torch.manual_seed(0)
    decoder = UNetDecoder(3, 256, width=8, mults=(1, 1), blocks=1, attention=(), log_time=True, latent_dim=3)
    loaded = load_checkpoint(published_file(tmp_path / "a.pt", decoder=decoder))["image"].decoder
    assert torch.equal(loaded.log_time.frequencies, decoder.log_time.frequencies)
    assert torch.equal(loaded.down.stem.weight, 0.5 * decoder.down.stem.weight)


class Trap:
    "Unpickling it would leave a file behind."
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"encoder": Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"path: cannot read .*a\.pt"): load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()


KEY = "model.module.all_modules.4.Conv_1.weight"
def drop(held): del held["decoder"][KEY]
def add(held): held["encoder"]["model.module.extra"] = torch.zeros(3)
def reshape(held): held["decoder"][KEY] = torch.zeros(8, 8, 5, 5)
def turn(held): held["decoder"]["model.module.all_modules.6.NIN_1.W"] = torch.zeros(16, 8)
def shorten(held): held["decoder_ema"]["shadow_params"].pop()
def forget(held): del held["encoder_ema"]
def swap(held): held["encoder_ema"]["shadow_params"].reverse()
def replace(held): held["encoder"] = {"layer1.weight": torch.zeros(3)}
def text(held): held["decoder"][KEY] = "weights"
def nothing(held): held["label_anchor"] = {}
def narrow(held): held["label_anchor"]["model.module.anchor"], held["label_anchor_ema"]["shadow_params"] = torch.zeros(4, 5), [torch.zeros(4, 5)]
def number(held): held["decoder"] = 3


@pytest.mark.parametrize(("spoil", "message"), [
    (drop, "decoder: state_dict: lacks 'all_modules.4.Conv_1.weight'"), (add, "encoder: state_dict: got the unknown 'extra'"),
    (reshape, r"'all_modules.4.Conv_1.weight' has shape .8, 8, 5, 5., wanted .8, 8, 3, 3."), (turn, r"'all_modules.6.NIN_1.W' has shape .16, 8., wanted .16, 16."),
    (shorten, "decoder: average: got .* tensors, wanted"), (forget, "encoder: average: not there"), (swap, "encoder: state_dict: .* has shape"),
    (replace, "encoder: state_dict: its entries .none. are no published U-Net"), (text, "decoder: .*"), (nothing, "label_anchor: state_dict: got .., wanted 'anchor'"),
    (narrow, "latent"), (number, "decoder: "),
])
@pytest.mark.filterwarnings("error")
def test_damaged_checkpoints_are_refused_by_the_name_of_the_entry(tmp_path, spoil, message):
    file = published_file(tmp_path / "a.pt", **modules(3))
    held = torch.load(file, weights_only=True)
    spoil(held)
    torch.save(held, file)
    with pytest.raises(ValueError, match=rf"a\.pt: .*{message}"): load_checkpoint(file)


def test_cut_and_foreign_files_are_refused_by_their_name(tmp_path):
    file = published_file(tmp_path / "whole.pt", **modules(1))
    for size in (0, 10, 1000, file.stat().st_size // 2, file.stat().st_size - 100):
        (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"path: cannot read .*cut\.pt"): load_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt"): load_checkpoint(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds list, wanted 'encoder' or 'decoder'"): load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="nowhere.pt"): load_checkpoint(tmp_path / "nowhere.pt")


# -- refusals of states and descriptions ---------------------------------------------------------
def test_state_is_checked_before_any_weight_is_touched():
    module = build(SMALL["encoder"])
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, state_of("encoder")
    last = list(state)[-1]
    state[last] = torch.zeros(7)
    with pytest.raises(ValueError, match=rf"'{last}' has shape .7."): load_state(module, state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(ValueError, match="state_dict: got list"): load_state(module, [])
    with pytest.raises(ValueError, match="module: got Linear"): load_state(torch.nn.Linear(2, 2), {})


@pytest.mark.parametrize(("change", "message"), [
    ({"config": {"model": {"fir_kernel": [1, 2, 1]}}}, "fir_kernel"), ({"config": {"model": {"progressive": "residual"}}}, "progressive"),
    ({"config": {"model": {"progressive": "output_skip"}}}, "progressive = 'output_skip' with progressive_input = 'none'"), ({"net": "transformer"}, "transformer"),
    ({"config": {"model": {"scale_by_sigma": True}}}, "scale_by_sigma"),
])
def test_descriptions_of_other_networks_are_refused(change, message):
    spec = json.loads(json.dumps(SMALL["decoder_latent"]))
    spec["config"]["model"] |= change.get("config", {}).get("model", {})
    with pytest.raises(ValueError, match=message): build(spec | {k: v for k, v in change.items() if k != "config"})


@pytest.mark.parametrize("spec", ["", "decoder", 3, None, {}, {"net": "resnet"}, {"net": "decoder", "config": {}}])
def test_what_is_no_description_is_refused(spec):
    with pytest.raises(ValueError, match="spec: "): build(spec)


def test_names_of_models_are_those_of_the_goldens(): assert list(MODELS) == list(PAPER) or set(MODELS) == set(PAPER)
