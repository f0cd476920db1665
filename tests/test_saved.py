"""A network in one file: what comes back is what was saved, and nothing else gets in."""
import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lzn_nb.backbones import ResNetEncoder, make_encoder
from lzn_nb.checkpoints import checksum, read_state, save_checkpoint, write_state
from lzn_nb.nets import MAKERS, UNetDecoder, UNetEncoder, remembered
from lzn_nb.network import DataType, ImageInput, ImageType, LabelType, LatentZoningNetwork
from lzn_nb.saved import load, made_from, recipe_of, save
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_network
from lzn_nb.scenarios.representation import REPRESENTATION_PRESETS, representation_network

BODY = dict(width=8, mults=(1, 2), blocks=1, attention=(4,))


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def joint(**options):
    torch.manual_seed(3)
    image = ImageType(UNetEncoder(1, 8, 6, **BODY), UNetDecoder(1, 8, latent_dim=6, classes=10, **BODY), (1, 8, 8), 6, zone_steps=3, sample_steps=2, **options)
    return LatentZoningNetwork({"image": image, "label": LabelType(10, 6, 3, seeded())}).eval()


def alike(a, b, images):
    "Both networks say the same."
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(a.embed("image", images), b.embed("image", images)) and recipe_of(a) == recipe_of(b)
    for name in a.types: assert (a[name].zone_steps, a[name].solver) == (b[name].zone_steps, b[name].solver)


def deep(levels):
    found = {}
    for _ in range(levels): found = {"a": found}
    return found


def holding_itself():
    notes = []
    notes.append({"b": notes})
    return notes


IMAGES = torch.rand(5, 1, 8, 8, generator=seeded()) * 2 - 1


# -- there and back -----------------------------------------------------------------------------
def test_a_joint_network_comes_back(tmp_path):
    network = joint(solver="euler")
    again = load(save(network, tmp_path / "a.safetensors", notes={"accuracy": 0.99, "seeds": [0, 1]}))
    alike(network, again, IMAGES)
    assert again.notes == {"accuracy": 0.99, "seeds": [0, 1]} and not again.training
    draw = lambda which: which.generate("image", label=[3, 1], generator=seeded())
    assert torch.equal(draw(network), draw(again)) and torch.equal(network.classify(IMAGES), again.classify(IMAGES))


@pytest.mark.parametrize("make", [lambda: UNetDecoder(3, 16, latent_dim=4, width=8, mults=(1, 2), blocks=1, attention=(8,), smooth=True, pyramid=True, log_time=True),
                                  lambda: UNetEncoder(3, 16, 4, width=8, mults=(1, 2), blocks=2, tap_sizes=(8,), tap_layers=3, smooth=True, pyramid=True), lambda: ResNetEncoder(8, depth=18, stem="small", head_layers=2),
                                  lambda: make_encoder("cnn", (1, 8, 8), 8, head_norm=False), lambda: make_encoder("vit", (1, 8, 8), 8), lambda: make_encoder("resnet18", (3, 32, 32), 8),
                                  lambda: make_encoder("torchvision:mobilenet_v3_small", (1, 32, 32), 8), lambda: LabelType(4, 8, generator=seeded())])
def test_every_network_is_made_again_from_its_recipe(make):
    module = make()
    recipe = json.loads(json.dumps(recipe_of(module)))
    again = made_from(recipe)
    assert type(again) is type(module) and recipe_of(again) == recipe
    assert {name: x.shape for name, x in module.state_dict().items()} == {name: x.shape for name, x in again.state_dict().items()}


@pytest.mark.parametrize("method", ["lzn", "simclr", "moco", "supervised"])
def test_networks_of_representations_are_saved_without_what_trained_them(method, tmp_path):
    pytest.importorskip("lightly")
    network = representation_network(dataclasses.replace(REPRESENTATION_PRESETS["tiny"], method=method), (1, 8, 8), 10).eval()
    again = load(save(network, tmp_path / "a.safetensors"))
    assert torch.equal(network.embed("image", IMAGES), again.embed("image", IMAGES)) and all(name.startswith("types.") for name in again.state_dict())


def test_networks_of_scenarios_come_back(tmp_path):
    network = joint_network(JOINT_PRESETS["tiny"], (1, 8, 8), 10).eval()
    alike(network, load(save(network, tmp_path / "a.safetensors")), IMAGES)


def test_precision(tmp_path):
    "Double stays double; half makes a smaller file of nearly the same network."
    network = joint().double()
    again = load(save(network, tmp_path / "double.safetensors"))
    assert torch.equal(network.embed("image", IMAGES), again.embed("image", IMAGES)) and again.embed("image", IMAGES).dtype == torch.float64
    network = joint()
    full, half = save(network, tmp_path / "full.safetensors"), save(network, tmp_path / "half.safetensors", dtype=torch.float16)
    again = load(half)
    assert half.stat().st_size < 0.55 * full.stat().st_size and next(again.parameters()).dtype == torch.float32
    assert 0 < (again.embed("image", IMAGES) - network.embed("image", IMAGES)).norm() < 1e-2 * network.embed("image", IMAGES).norm()


def test_an_exchanged_part_counts(tmp_path):
    network = joint()
    network["image"].encoder = UNetEncoder(1, 8, 6, **BODY | {"blocks": 2})
    alike(network, load(save(network, tmp_path / "a.safetensors")), IMAGES)
    alike(copy.deepcopy(network), load(save(copy.deepcopy(network), tmp_path / "b.safetensors")), IMAGES)


def test_loading_draws_no_global_numbers_and_a_network_without_encoder_loads(tmp_path):
    network = LatentZoningNetwork({"image": ImageType(None, UNetDecoder(1, 8, width=8, mults=(1,), blocks=1), (1, 8, 8), 6), "label": LabelType(3, 6)})
    path = save(network, tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    again = load(path)
    assert torch.equal(before, torch.get_rng_state()) and again["image"].encoder is None
    assert torch.equal(network.generate("image", 2, generator=seeded()), again.generate("image", 2, generator=seeded()))


def test_the_file_is_replaced_whole(tmp_path, monkeypatch):
    path = save(joint(), tmp_path / "a.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr("lzn_nb.checkpoints.serialize", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="^path: .*a.safetensors cannot be written .No space left on device."): save(joint(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# -- a class of one's own -----------------------------------------------------------------------
def test_a_subclass_needs_a_mark_of_its_own():
    class Louder(LabelType): pass
    with pytest.raises(ValueError, match="network.types.label: Louder does not remember"): recipe_of(LatentZoningNetwork({"label": Louder(3, 4)}))
    assert recipe_of(remembered(Louder)(3, 4)) == {"make": "Louder", "given": {"classes": 3, "latent_dim": 4}}
    del MAKERS["Louder"]


@pytest.mark.parametrize("value, what", [(print, "builtin_function"), ({1, 2}, "set"), (torch.ones(2), "Tensor")])
def test_arguments_that_cannot_be_written_down_are_named(value, what):
    @remembered
    class Odd(DataType):
        def __init__(self, thing): super().__init__(4)

    with pytest.raises(ValueError, match=f"network.types.x.thing: got {what}.*wanted modules and plain values"): recipe_of(LatentZoningNetwork({"x": Odd(value)}))
    del MAKERS["Odd"]


def test_options_are_remembered_by_their_names(tmp_path):
    @remembered
    class Passing(DataType):
        def __init__(self, width, latent_dim, **options): super().__init__(latent_dim, **options)

    network = LatentZoningNetwork({"x": Passing(3, 4, zone_steps=7)})
    assert network["x"].recipe == ("Passing", {"width": 3, "latent_dim": 4, "zone_steps": 7})
    assert load(save(network, tmp_path / "a.safetensors"))["x"].zone_steps == 7
    del MAKERS["Passing"]


def test_arguments_without_a_name_are_refused_when_saved(tmp_path):
    @remembered
    class Several(DataType):
        def __init__(self, latent_dim, *widths): super().__init__(latent_dim)

    @remembered
    class ByPlace(DataType):
        def __init__(self, latent_dim, /): super().__init__(latent_dim)

    for kind in (Several(4, 1, 2), ByPlace(4)):
        with pytest.raises(ValueError, match=r"network.types.x: \w+ does not take by name what it was given"): save(LatentZoningNetwork({"x": kind}), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    save(LatentZoningNetwork({"x": Several(4)}), tmp_path / "a.safetensors")
    for name in ("Several", "ByPlace"): del MAKERS[name]


def test_a_class_made_anew_is_told_from_one_that_was_never_marked():
    @remembered
    class Again(DataType):
        def __init__(self, latent_dim): super().__init__(latent_dim)

    network = LatentZoningNetwork({"x": Again(4)})
    MAKERS["Again"] = type("Again", (Again,), {})
    with pytest.raises(ValueError, match="network.types.x: is of another class 'Again' than the one that was marked last"): recipe_of(network)
    del MAKERS["Again"]


def test_signatures_stay():
    import inspect
    assert list(inspect.signature(UNetEncoder).parameters)[:3] == ["image_channels", "size", "latent_dim"] and "classes" in inspect.signature(LabelType).parameters
    assert inspect.signature(make_encoder).parameters["latent_dim"].annotation in (int, "int")
    with pytest.raises(TypeError): UNetEncoder(1)


# -- files that are not taken ---------------------------------------------------------------------
@pytest.fixture
def parts(tmp_path):
    state = read_state(save(joint(), tmp_path / "good.safetensors"), "network")
    def spoilt(change):
        change(state)
        write_state(tmp_path / "spoilt.safetensors", state, "network")
        return tmp_path / "spoilt.safetensors"
    return spoilt


IMAGE = ("recipe", "given", "types", "parts", "image")


def at(state, *path):
    for key in path: state = state[key]
    return state


SPOIL = {
    "needs 'os.system', which is not known here": lambda s: at(s, *IMAGE, "given", "encoder").update(make="os.system"),
    "network.types.image.encoder: UNetEncoder does not take what the recipe gives .*'lines'": lambda s: at(s, *IMAGE, "given", "encoder", "given").update(lines=3),
    "network.types.label: LabelType does not take what the recipe gives .*'classes'": lambda s: at(s, "recipe", "given", "types", "parts", "label", "given").pop("classes"),
    "network: got .*, wanted a recipe": lambda s: s.update(recipe={"make": "LabelType"}),
    "its recipe makes LabelType, wanted a LatentZoningNetwork": lambda s: s.update(recipe={"make": "LabelType", "given": {"classes": 3, "latent_dim": 6}}),
    "types.label.matrix is missing": lambda s: s["weights"].pop("types.label.matrix"),
    "types.more is unknown": lambda s: s["weights"].update({"types.more": torch.ones(2)}),
    r"types.label.matrix has shape \[10, 5\], wanted \[10, 6\]": lambda s: s["weights"].update({"types.label.matrix": torch.ones(10, 5)}),
    "types.label.matrix holds torch.int64, wanted torch.float32": lambda s: s["weights"].update({"types.label.matrix": torch.ones(10, 6, dtype=torch.long)}),
    "types.label.matrix holds numbers that are not finite": lambda s: s["weights"]["types.label.matrix"].__setitem__((0, 0), float("nan")),
    "types.image.encoder.*holds numbers that are not finite": lambda s: next(x for name, x in s["weights"].items() if "encoder" in name).fill_(float("inf")),
    "zone_steps: got 'x', wanted an integer": lambda s: at(s, *IMAGE, "given").update(zone_steps="x"),
    "zone_steps: got True, wanted an integer": lambda s: at(s, "recipe", "given", "types", "parts", "label", "given").update(zone_steps=True),
    "sample_steps: got -2, wanted an integer": lambda s: at(s, *IMAGE, "given").update(sample_steps=-2),
    "solver: got 'magic', wanted one of": lambda s: at(s, *IMAGE, "given").update(solver="magic"),
    r"shape: got \(1, 8\), wanted": lambda s: at(s, *IMAGE, "given").update(shape=[1, 8]),
    "notes: got str, wanted a dict": lambda s: s.update(notes="trained long"),
    "recipe: got nothing, wanted a dict": lambda s: s.pop("recipe"), "precision: got nothing, wanted a str": lambda s: s.pop("precision"), "weights: got nothing, wanted a dict": lambda s: s.pop("weights"),
    "weights: got int, wanted a dict": lambda s: s.update(weights=3), "recipe: got list, wanted a dict": lambda s: s.update(recipe=[1]), r"network: got \['parts'\], wanted a recipe": lambda s: s.update(recipe={"parts": 3}),
    "types.label.matrix is int, wanted a tensor": lambda s: s["weights"].update({"types.label.matrix": 3}),
    "width: got 0, wanted whole numbers ≥ 1": lambda s: at(s, *IMAGE, "given", "decoder", "given").update(width=0), "classes: got -1, wanted a whole number ≥ 0": lambda s: at(s, *IMAGE, "given", "decoder", "given").update(classes=-1),
    "width: got 7, wanted an even number": lambda s: at(s, *IMAGE, "given", "decoder", "given").update(width=7),
}


@pytest.mark.parametrize("what", SPOIL)
def test_what_does_not_fit_is_named(parts, what):
    with pytest.raises(ValueError, match=rf"network: .*spoilt.safetensors.*{what}"): load(parts(SPOIL[what]))


def test_a_recipe_that_asks_for_what_is_not_there_is_named(tmp_path):
    @remembered
    class First(DataType):
        def __init__(self, latent_dim, widths): super().__init__(latent_dim + widths[0])

    state = read_state(path := save(LatentZoningNetwork({"x": First(4, [2])}), tmp_path / "a.safetensors"), "network")
    at(state, "recipe", "given", "types", "parts", "x", "given").update(widths=[])
    write_state(path, state, "network")
    with pytest.raises(ValueError, match="network: .*a.safetensors: tuple index out of range"): load(path)
    del MAKERS["First"]


def test_arithmetic_that_fails_in_a_recipe_is_named(tmp_path):
    @remembered
    class Parted(DataType):
        def __init__(self, latent_dim, parts): super().__init__(latent_dim // parts)

    state = read_state(path := save(LatentZoningNetwork({"x": Parted(4, 2)}), tmp_path / "a.safetensors"), "network")
    at(state, "recipe", "given", "types", "parts", "x", "given").update(parts=0)
    write_state(path, state, "network")
    with pytest.raises(ValueError, match="network: .*a.safetensors: .*by zero"): load(path)
    del MAKERS["Parted"]


def test_no_precision_but_one_of_numbers(parts):
    for odd in ("int8", "load", "nn"):
        with pytest.raises(ValueError, match=f"network: .*spoilt.*precision: got '{odd}', wanted one of"): load(parts(lambda state: state.update(precision=odd)))


def test_equal_networks_are_equal_files(tmp_path):
    "The order of the header's texts, which safetensors leaves to chance, is ours."
    first, *others = [save(joint(), tmp_path / f"{k}.safetensors", notes={"ä": "\u2028 \x7f", "accuracy": 0.99}).read_bytes() for k in range(6)]
    assert all(other == first for other in others) and load(tmp_path / "5.safetensors").notes == {"ä": "\u2028 \x7f", "accuracy": 0.99}
    assert (8 + int.from_bytes(first[:8], "little")) % 8 == 0


def test_another_kind_or_version_is_refused(tmp_path):
    path = save(joint(), tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file: metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, path, metadata | {"format": "lzn_nb network 2"})
    with pytest.raises(ValueError, match="is of version 2, and this lzn_nb reads version 1"): load(path)
    for odd in ("lzn_nb network 01", "lzn_nb network 1 ", "lzn_nb network \u0661", "lzn_nb network 1.0", "lzn_nb network -1", "1", "lzn_nb network"):
        save_file(tensors, path, metadata | {"format": odd})
        with pytest.raises(ValueError, match="is a safetensors file of another kind"): load(path)
    save_file(tensors, path, metadata | {"state": metadata["state"].replace("LabelType", "LabelTypo"), "sha256": metadata["sha256"]})
    with pytest.raises(ValueError, match="checksum"): load(path)
    with pytest.raises(ValueError, match="another kind"): load(save_checkpoint(tmp_path, 1, {"step": 1, "x": torch.ones(2)}))
    torch.save(joint(), path)
    with pytest.raises(ValueError, match="no safetensors file"): load(path)
    with pytest.raises(FileNotFoundError, match=r"^network: .*absent.safetensors cannot be read .No such file or directory., wanted a file that `lzn_nb.saved.save"): load(tmp_path / "absent.safetensors")
    with pytest.raises(OSError, match="^network: .* cannot be read"): load(tmp_path)
    assert checksum({}, "a") != checksum({}, "b")


def test_recipes_for_impossible_networks_are_refused_by_name(parts):
    for classes in (-1, 10**14):
        with pytest.raises(ValueError, match="network: .*spoilt.safetensors"): load(parts(lambda s: at(s, "recipe", "given", "types", "parts", "label", "given").update(classes=classes)))


@pytest.mark.parametrize("path", ["", ".", "/", None, 3, b"a"])
def test_what_names_no_file_is_refused(path):
    for call in (lambda: save(joint(), path), lambda: load(path)):
        with pytest.raises(ValueError, match=r"path: got .*, wanted the name of a file"): call()


@pytest.mark.parametrize("allow", [3, None, "SentenceEncoder"])
def test_what_names_no_makers_is_refused(tmp_path, allow):
    with pytest.raises(ValueError, match=f"allow: got {allow!r}, wanted a list of names"): load(save(joint(), tmp_path / "a.safetensors"), allow=allow)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path: .*absent/a.safetensors cannot be written .No such file or directory., wanted a file in a folder that is there"): save(joint(), tmp_path / "absent" / "a.safetensors")


def test_numbers_that_half_precision_does_not_have_are_named(tmp_path):
    network = joint()
    with torch.no_grad(): network["label"].matrix[0, 0] = 1e6
    with pytest.raises(ValueError, match="types.label.matrix: holds numbers that are not finite in torch.float16"): save(network, tmp_path / "a.safetensors", dtype=torch.float16)
    save(network, tmp_path / "a.safetensors")


@pytest.mark.parametrize("call, what", [(lambda p: save(joint(), p, dtype="float16"), "dtype: got float16"), (lambda p: save(nn.Linear(2, 2), p), "network: got Linear, wanted a LatentZoningNetwork"), (lambda p: save(joint(), p, dtype=torch.int8), "dtype: got torch.int8, wanted torch.float16"), (lambda p: save(joint(), p, dtype=torch.float8_e4m3fn), "dtype: got torch.float8_e4m3fn, wanted torch.float16"),
                                        (lambda p: save(joint(), p, notes={"x": {1}}), "notes/x: got set, wanted what JSON can hold"), (lambda p: save(joint(), p, notes={"a": [torch.ones(2)]}), "notes/a/0: got Tensor, wanted what JSON can hold"), (lambda p: save(joint(), p, notes={"a": holding_itself()}), "notes/a/0/b: got notes that hold themselves"), (lambda p: save(joint(), p, notes=deep(3000)), "notes: got more than 100 levels"), (lambda p: save(joint(), p, notes="trained long"), "notes: got str, wanted a dict"),
                                        (lambda p: save(joint(), p, notes={"x": [1.0, {"loss": float("nan")}]}), "notes/x/1/loss: got nan, wanted a finite number"), (lambda p: save(joint(), p, notes={"x": float("inf"), "y": {1}}), "notes/x: got inf, wanted a finite number"),
                                        (lambda p: save(LatentZoningNetwork({"x": ImageInput(nn.Flatten(), None, (1, 2, 2), 4)}), p), "network.types.x.encoder: Flatten does not remember")])
def test_wrong_arguments_are_named_and_leave_no_file(call, what, tmp_path):
    with pytest.raises(ValueError, match=what): call(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
