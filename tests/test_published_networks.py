"""The published networks: outputs and gradients of the published implementation, its names and shapes, its checkpoints, and what is none of these."""
import functools
import json
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lzn_nb import published
from lzn_nb.network import LabelType
from lzn_nb.backbones import ResNetEncoder
from lzn_nb.nets import UNetDecoder, UNetEncoder
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
def explode(held): held["decoder_ema"]["shadow_params"][list(held["decoder"]).index(KEY) - 1][0] = float("inf")  # less sigmas
def unwrap(held): held["encoder"]["all_modules.0.bias"] = torch.zeros(8)
def rename(held): held["decoder"][5] = torch.zeros(8)
def exchange(held): held["encoder"], held["decoder"] = held["decoder"], held["encoder"]
def flatten(held): held["encoder"]["model.module.all_modules.0.weight"] = torch.tensor(1.0)
def colour(held):
    at = list(held["encoder"]).index("model.module.all_modules.0.weight")
    held["encoder"]["model.module.all_modules.0.weight"] = held["encoder_ema"]["shadow_params"][at] = torch.zeros(8, 1, 3, 3)


@pytest.mark.parametrize(("spoil", "message"), [
    (drop, "decoder: state_dict: lacks 'all_modules.4.Conv_1.weight'"), (add, "encoder: state_dict: got the unknown 'extra'"),
    (reshape, r"'all_modules.4.Conv_1.weight' has shape .8, 8, 5, 5., wanted .8, 8, 3, 3."), (turn, r"'all_modules.6.NIN_1.W' has shape .16, 8., wanted .16, 16."),
    (shorten, "decoder_ema: shadow_params: got .* tensors, wanted"),
    (forget, "encoder_ema: shadow_params: not there"),
    (swap, "encoder_ema: state_dict: .* has shape"),
    (explode, r"decoder_ema: state_dict: 'all_modules.4.Conv_1.weight' holds what is no finite number"),
    (replace, "encoder: state_dict: got 'layer1.weight', wanted keys that begin with"),
    (text, "decoder: state_dict: 'all_modules.4.Conv_1.weight' is no tensor but str"),
    (nothing, "label_anchor: state_dict: lacks 'anchor'"),
    (narrow, "its networks: latent dimensions: got decoder 6 by 'all_modules.0.weight' .*, encoder 6 by .*, label_anchor 5 by 'anchor'"), (number, "decoder: state_dict: got int"),
    (unwrap, "encoder: state_dict: got 'all_modules.0.bias' with and without 'model.module.'"), (rename, "decoder: state_dict: got the key 5, wanted names"),
    (exchange, "encoder: state_dict: lacks 'spatial_transformations.0.0.weight'"),
    (flatten, "encoder: state_dict: 'all_modules.0.weight' has shape ..,"),
    (colour, "image channels: got .*'encoder': 1.*'all_modules.0.weight'"),
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


# -- every key of every part ---------------------------------------------------------------------
@functools.cache
def whole(variant: str) -> dict:
    "What a file holds, without the averages; zeros that take no room."
    body = dict(width=8, mults=(1, 2), blocks=1, attention=(8,), smooth=variant == "pyramid", pyramid=variant == "pyramid")
    with torch.device("meta"):
        if variant == "resnet": made = {"encoder": ResNetEncoder(32, head_layers=2)}
        else: made = {"encoder": UNetEncoder(3, 16, 6, tap=2, hidden=8, tap_sizes=(8,) if variant == "pyramid" else None, **body),
                      "decoder": UNetDecoder(3, 16, latent_dim=6, classes=4, log_time=variant == "pyramid", **body), "label_anchor": LabelType(4, 6)}
        return {part: {f"model.module.{key}": torch.zeros((), device="cpu").expand(value.shape) for key, value in as_published(module).items()} for part, module in made.items()}


def complaint(monkeypatch, held: dict, part: str | None = None, **changes) -> str:
    "What is said of a file that holds this, with these keys of a part changed (None: left out)."
    state = held[part] | {f"model.module.{key}": value for key, value in changes.items()} if part else {}
    monkeypatch.setattr(published, "read_file", lambda path: held | ({part: {key: value for key, value in state.items() if value is not None}} if part else {}))
    with pytest.raises(ValueError) as error: load_checkpoint("a.pt", ema=False)
    return str(error.value)


SPOILS = {
    "missing": lambda key, value: ({key: None}, f"lacks {key!r}"),
    "extra": lambda key, value: ({f"{key}x": value}, f"got the unknown '{key}x'"),
    "extra leaf": lambda key, value: ({(extra := key.rpartition(".")[0] + ".W"): value}, (f"lacks '{extra[:-1]}b' beside {extra!r}", f"got the unknown {extra!r}")),
    "scalar": lambda key, value: ({key: torch.zeros(())}, f"{key!r} has shape [], wanted"),
    "flat": lambda key, value: ({key: value[(0,) * value.ndim].expand(value.numel())}, f"{key!r} has shape {[value.numel()]}, wanted"),
    "rank": lambda key, value: ({key: value[..., None]}, f"{key!r} has shape {[*value.shape, 1]}, wanted"),
    "row": lambda key, value: ({key: value[:1].expand(len(value) + 1, *value.shape[1:])}, f"{key!r} has shape {[len(value) + 1, *value.shape[1:]]}, wanted"),
    "column": lambda key, value: ({key: value[:, :1].expand(len(value), value.shape[1] + 1, *value.shape[2:])}, f"{key!r} has shape {[len(value), value.shape[1] + 1, *value.shape[2:]]}, wanted"),
    "empty": lambda key, value: ({key: value[:0]}, f"{key!r} has shape {[0, *value.shape[1:]]}, wanted"),
    "integers": lambda key, value: ({key: value.long()}, f"{key!r} is torch.int64"),
    "nan": lambda key, value: ({key: value.clone().fill_(float("nan"))}, f"{key!r} holds what is no finite number"),
}
# keys that contradict one other key, or only another part, which is as likely to be wrong: what is said instead
LATENT = "its networks: latent dimensions: got decoder {} by 'all_modules.{}.weight' without {} classes and the time, encoder 6 by its last layers, label_anchor {} by 'anchor'"
AMBIGUOUS = {
    ("label_anchor", "anchor", "row"): LATENT.format(5, "{first}", 5, 6),
    ("label_anchor", "anchor", "column"): LATENT.format(6, "{first}", 4, 7),
    ("decoder", "all_modules.{first}.weight", "column"): LATENT.format(7, "{first}", 4, 6),
    ("encoder", "all_modules.0.weight", "column"): "its networks: image channels: got {{'decoder': 3, 'encoder': 4}}, the encoder's by its 'all_modules.0.weight'",
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("variant", ["plain", "pyramid", "resnet"])
def test_every_key_that_is_spoiled_is_named_with_its_file_and_part(monkeypatch, variant, spoil):
    held, unnamed, first = whole(variant), [], int(variant == "pyramid")
    ambiguous = {(part, key.format(first=first), how): message.format(first=first) for (part, key, how), message in AMBIGUOUS.items()}
    if variant == "pyramid":  # two convolutions read the image, and nothing else tells its channels
        both = "encoder: state_dict: 'all_modules.0.weight' has shape [8, {}, 3, 3], 'all_modules.3.Conv_0.weight' has shape [8, {}, 1, 1]"
        ambiguous |= {("encoder", "all_modules.0.weight", "column"): both.format(4, 3), ("encoder", "all_modules.3.Conv_0.weight", "column"): both.format(3, 4)}
    for part, state in held.items():
        # an encoder says how many channels the decoder's images have, and else nothing of its shapes
        read = held if part == "label_anchor" or spoil == "column" else {name: held[name] for name in held if name in (part, "label_anchor")}
        keys = [key.removeprefix("model.module.") for key in state]
        if variant == "resnet" and spoil == "nan": keys = keys[::40]  # 25 million numbers each
        for key in keys:
            value = state[f"model.module.{key}"]
            if (spoil in ("flat", "column") and value.ndim < 2) or (spoil == "extra leaf" and key.endswith((".W", ".b"))): continue
            changes, message = SPOILS[spoil](key, value)
            wanted = [f"a.pt: {part}: state_dict: {text}" for text in ([message] if isinstance(message, str) else message)]
            if (part, key, spoil) in ambiguous: wanted = [f"a.pt: {ambiguous[part, key, spoil]}"]
            if not (said := complaint(monkeypatch, read, part, **changes)).startswith(tuple(wanted)): unnamed.append((part, key, said))
    assert not unnamed, f"{len(unnamed)} keys, the first of them: {unnamed[0]}"


@pytest.mark.parametrize("variant", ["plain", "pyramid", "resnet"])
def test_what_is_spoiled_there_was_whole(monkeypatch, variant):
    monkeypatch.setattr(published, "read_file", lambda path: whole(variant))
    assert load_checkpoint("a.pt", ema=False)


@pytest.mark.parametrize(("part", "key", "shape", "variants"), [
    ("decoder", "all_modules.999.weight", [3], "pu"),
    ("decoder", "all_modules.18.weight", [3, 3], "p"),
    ("decoder", "all_modules.999.W", [3], "pu"),
    ("decoder", "all_modules.0.W", [8], "p"),
    ("decoder", "all_modules.0.b", [8], "u"),
    ("decoder", "all_modules.0.weight", [8], "u"),
    ("decoder", "all_modules.99999.weight", [3], "pu"),
    ("decoder", "all_modules.03.weight", [3], "pu"),
    ("decoder", "all_modules.foo.weight", [3], "pu"), ("decoder", "all_modules", [3], "pu"), ("decoder", "", [3], "pu"), ("encoder", "all_modules.1.Conv_2.weight", [8, 8, 1, 1], "pu"),
    ("encoder", "all_modules.1.Dense_0.weight", [8, 8], "pu"), ("encoder", "all_modules.1.GroupNorm_2.weight", [8], "pu"), ("encoder", "sigmas", [1000], "pur"),
    ("encoder", "spatial_transformations.99.0.weight", [2, 8, 1, 1], "pu"),
    ("encoder", "spatial_transformations.0.0.weight", [2, 8, 1, 1], "u"),
    ("encoder", "spatial_transformations.3.2.weight", [2, 8], "pu"),
    ("encoder", "latent_transformations.2.4.weight", [6, 6], "pu"), ("encoder", "latent_transformations.9999.0.bias", [6], "pu"), ("encoder", "net.0.0.weight", [64, 3, 7, 7], "pu"),
    ("encoder", "all_modules.0.weight", [3], "r"),
    ("encoder", "head.layers.99.weight", [3, 3], "r"),
    ("encoder", "head.layers.6.weight", [32, 32], "r"),
    ("encoder", "net.1.blocks.0.net.0.bias", [64], "r"),
    ("encoder", "net.5.blocks.0.net.0.weight", [64, 64, 1, 1], "r"), ("label_anchor", "anchors", [4, 6], "pu"),
])
def test_plausible_keys_too_many_are_named(monkeypatch, part, key, shape, variants):
    "Of the variants plain, pyramid (u) and resnet."
    for variant in variants.translate({ord("p"): "1", ord("u"): "2", ord("r"): "3"}):
        said = complaint(monkeypatch, whole(["plain", "pyramid", "resnet"][int(variant) - 1]), part, **{key: torch.zeros(shape)})
        assert said.startswith(f"a.pt: {part}: state_dict: ") and repr(key) in said


@pytest.mark.parametrize(("part", "stem", "message"), [
    ("encoder", "spatial_transformations.99.0", "got the unknown 'spatial_transformations.99.0.weight' and 1 more"),
    ("encoder", "spatial_transformations.5.0", "got the unknown 'spatial_transformations.5.0.weight' and 1 more"),
    ("encoder", "latent_transformations.2.4", "got the unknown 'latent_transformations.2.4.weight' and 1 more"),
    ("encoder", "latent_transformations.2.1", "got the unknown 'latent_transformations.2.1.weight' and 1 more"),
    ("decoder", "all_modules.03", "got the unknown 'all_modules.03.weight' and 1 more"), ("decoder", "all_modules." + "9" * 5000, "got the unknown 'all_modules.999"),
    ("decoder", "all_modules.999", "lacks 'all_modules.18.…' before 'all_modules.999.…', counting to 'all_modules.999.weight'"),
    ("decoder", "all_modules.18", "got the unknown 'all_modules.18.weight' and 1 more"),
    ("decoder", "all_modules.3", "'all_modules.3' holds GroupNorm_0.weight, .*weight, bias, which are no block, attention, map or norm"),
    ("decoder", "all_modules.6.Conv_1", "'all_modules.6' holds GroupNorm_0.weight, .*Conv_1.bias, which"),
    ("decoder", "all_modules.3.Conv_3", "'all_modules.3' holds .*Conv_3.weight, Conv_3.bias, which"),
])
def test_pairs_too_many_are_named(monkeypatch, part, stem, message):
    said = complaint(monkeypatch, whole("plain"), part, **{f"{stem}.{leaf}": torch.zeros(3, 3) for leaf in ("weight", "bias")})
    assert re.match(rf"a.pt: {part}: state_dict: {message}", said)


@pytest.mark.parametrize(("part", "variant"), [("encoder", "plain"), ("decoder", "plain"), ("encoder", "pyramid"), ("decoder", "pyramid")])
def test_gaps_in_the_count_are_named(monkeypatch, part, variant):
    held = whole(variant)
    count = 1 + max(int(key.split(".")[3]) for key in held[part] if "all_modules" in key)
    for k in range(count - 1):
        entry = {key.removeprefix("model.module."): None for key in held[part] if key.startswith(f"model.module.all_modules.{k}.")}
        said = complaint(monkeypatch, held, part, **entry)
        wanted = "'all_modules.0.W' or 'all_modules.0.weight'" if k == 0 else f"'all_modules.{k}.…'"
        assert said.startswith(f"a.pt: {part}: state_dict: lacks {wanted} before 'all_modules.{k + 1}.…', counting to 'all_modules.{count - 1}.")
    far = {key.removeprefix("model.module.").replace(f".{count - 1}.", ".40."): value for key, value in held[part].items() if key.startswith(f"model.module.all_modules.{count - 1}.")}
    assert f"lacks 'all_modules.{count}.…' before 'all_modules.40.…', counting to '{next(iter(far))}'" in complaint(monkeypatch, held, part, **far)


def test_parts_that_do_not_belong_together_are_named(monkeypatch):
    held = whole("plain")
    assert complaint(monkeypatch, {"decoder": held["encoder"]}).startswith("a.pt: decoder: state_dict: its entries MBHBABAB do not begin with two maps of latent, class and time")
    assert complaint(monkeypatch, {"encoder": held["decoder"]}).startswith("a.pt: encoder: state_dict: lacks 'spatial_transformations.0.0.weight'")
    assert complaint(monkeypatch, held, "label_anchor", anchor=torch.zeros(30, 6)) == "a.pt: decoder: state_dict: 'all_modules.0.weight' has shape [32, 18], wanted [32,38 or more] for 30 classes and the time"


def test_table_of_noise_levels_may_be_missing_and_must_be_one(monkeypatch):
    held = whole("plain")
    for many in (1000, 2000):
        monkeypatch.setattr(published, "read_file", lambda path: held | {"decoder": held["decoder"] | {"model.module.sigmas": torch.ones(many, dtype=torch.float64)}})
        assert load_checkpoint("a.pt", ema=False)
    for value in (torch.ones(()), torch.ones(1000, 2), torch.ones(1000).long(), torch.ones(1000) / 0, torch.ones(0), "none", [1.0]):
        assert complaint(monkeypatch, held, "decoder", sigmas=value).startswith("a.pt: decoder: state_dict: 'sigmas' ")


def damage(state: dict, draw: random.Random) -> None:
    "One thing or many, of which no kind of network comes."
    key = draw.choice(sorted(state))
    group = [other for other in state if other.startswith(key.rpartition(draw.choice([".", ".", "s."]))[0])]
    what = draw.randrange(6)
    if what == 0: del state[key]
    elif what == 1: state[key] = torch.zeros(()).expand([draw.randint(0, 9) for _ in range(draw.randint(0, 5))])
    elif what == 2:
        for other in group: del state[other]
    elif what == 3: state.update({other.replace(f".{draw.randint(0, 9)}.", f".{draw.randint(0, 30)}."): state[other] for other in group})
    elif what == 4: state[key], state[group[0]] = state[group[0]], state[key]
    else: state[key + draw.choice([".weight", ".bias", "0"])] = state[key]


@pytest.mark.parametrize(("part", "variant"), [("encoder", "plain"), ("decoder", "plain"), ("encoder", "pyramid"), ("decoder", "pyramid"), ("encoder", "resnet")])
def test_many_faults_at_once_raise_no_other_error(part, variant):
    draw, refused = random.Random(0), 0
    for _ in range(300):
        state = {key.removeprefix("model.module."): value for key, value in whole(variant)[part].items()}
        for _ in range(draw.randint(2, 6)):
            if state: damage(state, draw)
        with torch.device("meta"):
            try: read_encoder(state) if part == "encoder" else read_decoder(state, draw.choice([16, None]), draw.choice([0, 4, 20]))
            except ValueError as error: refused += str(error) != ""
    assert refused > 250


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


@pytest.mark.parametrize(("name", "change", "message"), [
    ("decoder_latent", {"config": 3}, "got config = 3, wanted a dictionary"),
    ("decoder_latent", {"config": None}, "got config = None"),
    ("encoder", {"config": []}, r"got config = .., wanted a dictionary"),
    ("encoder", {"config": {"model": 3, "data": {}}}, "got model = 3, wanted a dictionary"), ("encoder", {"config": {"model": {}}}, "lacks 'data'"),
    ("decoder_latent", {"latent_dim": -1}, "got latent_dim = -1, wanted a whole number ≥ 0"),
    ("decoder_latent", {"num_classes": -1}, "got num_classes = -1"),
    ("encoder", {"latent_dim": 0}, "got latent_dim = 0, wanted a whole number ≥ 1"),
    ("encoder", {"latent_dim": 2.5}, "got latent_dim = 2.5"),
    ("encoder", {"latent_dim": True}, "got latent_dim = True"),
    ("encoder", {"num_base_units": "8"}, "got num_base_units = '8'"),
    ("encoder", {"latent_transformation_resolutions": 8}, "got latent_transformation_resolutions = 8, wanted a list"),
    ("resnet", {"head_num_layers": 0}, "got head_num_layers = 0"),
    ("resnet", {"head_out_dim": None}, "got head_out_dim = None"),
])
def test_descriptions_with_wrong_values_are_refused_by_their_names(name, change, message):
    with pytest.raises(ValueError, match=f"spec: {message}"): build(SMALL[name] | change)


@pytest.mark.parametrize(("setting", "message"), [({"ch_mult": 2}, "got ch_mult = 2, wanted a list"), ({"ch_mult": [1, 0]}, "got ch_mult = 0"), ({"nf": -8}, "got nf = -8"), ({"dropout": "no"}, "got dropout = 'no'"),
                                                  ({"dropout": 1}, "got dropout = 1"), ({"fir_kernel": 3}, "got fir_kernel = 3"), ({"fir": [True]}, r"got fir = .True.")])
def test_settings_with_wrong_values_are_refused_by_their_names(setting, message):
    config = SMALL["decoder_latent"]["config"]
    with pytest.raises(ValueError, match=f"spec: {message}"): build(SMALL["decoder_latent"] | {"config": config | {"model": config["model"] | setting}})


@pytest.mark.parametrize("spec", ["", "decoder", 3, None, {}, {"net": "resnet"}, {"net": "decoder", "config": {}}])
def test_what_is_no_description_is_refused(spec):
    with pytest.raises(ValueError, match="spec: "): build(spec)


def test_names_of_models_are_those_of_the_goldens(): assert list(MODELS) == list(PAPER) or set(MODELS) == set(PAPER)
