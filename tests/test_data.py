"""Data sets: the same splits everywhere, the right numbers, and clear answers to wrong requests."""
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from lzn_nb.data import Split, batches, check_files, load_data, one_pass, read_image, stratified_split, to_uint8, to_unit, two_views


def fingerprint(parts):
    return hashlib.sha256(b"|".join(part.numpy().astype("<i8").tobytes() for part in parts)).hexdigest()[:16]


def picture(path, size=(12, 12), mode="RGB", seed=0):
    "Writes one random image file, with its folders."
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


def pictures(folder, n, **kinds):
    for i in range(n):
        picture(folder / f"{i:03}.png", seed=i, **kinds)


def sizes(data):
    return [len(part) for part in (data.train, data.valid, data.test)]


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


# -- splits -----------------------------------------------------------------------------------
def test_digit_split_is_pinned(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    parts = stratified_split(raw.target, (0.7, 0.1, 0.2), 0)
    assert fingerprint(parts) == "30872f03bf6dfd03"
    for part, split in zip(parts, (digits.train, digits.valid, digits.test)):
        images, labels = split.tensors()
        assert torch.equal(images[:, 0], torch.from_numpy(raw.images[part]).float() / 8 - 1)
        assert torch.equal(labels, torch.from_numpy(raw.target)[part])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.5, 0.5), (11 / 12, 1 / 12), (1.0,)])
def test_split_is_a_stratified_partition(fractions, seed):
    labels = np.random.RandomState(seed).randint(0, 7, 500)
    parts = stratified_split(labels, fractions, seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(500))
    for part, share in zip(parts, fractions):
        assert torch.equal(part, part.sort().values) and part.dtype == torch.int64
        assert abs(len(part) - share * 500) < 1
        assert np.abs(np.bincount(labels[part], minlength=7) - share * np.bincount(labels)).max() < 1.5


def test_split_follows_its_seed():
    labels = torch.arange(100) % 4
    first, again, other = (stratified_split(labels, (0.5, 0.5), seed) for seed in (3, 3, 4))
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])


def test_split_ignores_global_generators():
    torch.manual_seed(0), np.random.seed(0)
    first = stratified_split([0, 1] * 20, (0.5, 0.5), 0)
    assert all(map(torch.equal, first, stratified_split([0, 1] * 20, (0.5, 0.5), 0)))


def test_single_images_go_to_training():
    parts = stratified_split([0] + [1] * 50 + [2], (0.2, 0.8), 0)
    assert {0, 51} <= set(parts[0].tolist())


@pytest.mark.parametrize("labels, fractions, what", [
    ([], (1.0,), "labels"), ([[0]], (1.0,), "labels"), ([0.5], (1.0,), "labels"),
    ([0, 1], (), "fractions"), ([0, 1], (0.5, 0.4), "fractions"), ([0, 1], (1.5, -0.5), "fractions"),
])  # fmt: skip
def test_wrong_splits(labels, fractions, what):
    with pytest.raises(ValueError, match=f"^{what}: got .* wanted"):
        stratified_split(labels, fractions, 0)


# -- pixels and protocol ------------------------------------------------------------------------
def test_unit_range_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(levels)
    assert (unit.min(), unit.max()) == (-1, 1) and unit.dtype == torch.float32
    assert torch.equal(to_uint8(unit), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0, torch.inf])).tolist() == [0, 255, 255]
    with pytest.raises(ValueError, match="images: 1 of 2 values are NaN"):
        to_uint8(torch.tensor([0.0, torch.nan]))


def test_digits(digits):
    assert sizes(digits) == [1258, 180, 359] and digits.shape == (1, 8, 8) and digits.num_classes == 10
    image, label = digits.valid[5]
    assert image.shape == (1, 8, 8) and image.dtype == torch.float32 and isinstance(label, int)
    assert (digits.train.images.min(), digits.train.images.max()) == (-1, 1)
    assert digits.describe() == (
        "digits: 1,258 train, 180 valid, 359 test; 1×8×8, 10 classes; "
        "scikit-learn load_digits, stratified 70/10/20 %, split seed 0"
    )


def test_digits_other_seed_and_size(digits):
    other = load_data("digits", split_seed=1, image_size=16)
    assert other.shape == (1, 16, 16) and not torch.equal(other.test.labels, digits.test.labels)
    assert -1 <= other.train.images.min() < -0.9 and 0.9 < other.train.images.max() <= 1


@pytest.mark.parametrize("name, options, what", [
    ("digitz", {}, '"digits", "mnist", "cifar10", "folder:PATH"'), ("folder:", {}, "data"), ("folder", {}, "data"),
    ("digits:8", {}, "data"), (None, {}, "data"), ("digits", {"image_size": 0}, "image_size"), ("digits", {"image_size": 8.0}, "image_size"),
    ("digits", {"split_seed": -1}, "split_seed"), ("digits", {"split_seed": "0"}, "split_seed"), ("digits", {"only": "3"}, "only: got '3' for 'digits'"),
    ("mnist", {"only": "3"}, "only"), ("folder:x", {"only": 3}, "only"), ("digits", {"hold_out": 0}, "hold_out: got 0"), ("mnist", {"hold_out": None}, "hold_out"),
])  # fmt: skip
def test_wrong_requests(name, options, what):
    with pytest.raises(ValueError, match="got .* wanted") as wrong:
        load_data(name, **options)
    assert what in str(wrong.value)


def test_import_is_light():
    code = "import sys, lzn_nb.data; print([m for m in ('torchvision', 'sklearn', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# -- MNIST and CIFAR-10 -------------------------------------------------------------------------
def write_mnist(root, n_train=120, n_test=20):
    "Files in the format of MNIST; image i is filled with the value i % 256, its label is i % 10."
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", n_train), ("t10k", n_test)):
        values = np.arange(n) % 256
        images = np.repeat(values.astype(np.uint8), 28 * 28).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + (np.arange(n) % 10).astype(np.uint8).tobytes())
    return raw


def test_mnist(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("LZN_DATA", str(tmp_path))
    data = load_data("mnist")
    assert sizes(data) == [110, 10, 20] and data.shape == (1, 28, 28)
    assert data.valid.labels.bincount().tolist() == [1] * 10
    images, labels = data.test.tensors()
    assert torch.equal(to_uint8(images)[:, 0, 0, 0], torch.arange(20, dtype=torch.uint8))
    assert torch.equal(labels, torch.arange(20) % 10)
    assert str(tmp_path) not in data.describe() and "MNIST" in data.describe()
    assert load_data("mnist", image_size=14).shape == (1, 14, 14)
    whole = load_data("mnist", hold_out=False)
    assert sizes(whole) == [120, 20, 20] and whole.valid is whole.test and whole.split_seed is None
    assert torch.equal(to_uint8(whole.train.images)[:, 0, 0, 0], torch.arange(120, dtype=torch.uint8)) and torch.equal(whole.test.images, images)
    assert whole.describe() == "mnist: 120 train, 20 valid, 20 test; 1×28×28, 10 classes; torchvision MNIST, test as published, nothing held out, validation: the test set"
    assert data.describe().endswith("test as published, 1/12 of training for validation, split seed 0")


def test_mnist_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("LZN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="root=.*LZN_DATA.*download=True"):
        load_data("mnist")
    with pytest.raises(FileNotFoundError, match="download=True") as missing:
        load_data("mnist", root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "MNIST" / "raw") in str(missing.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("bad", [b"", b"\x00\x00", struct.pack(">4i", 2051, 120, 28, 28) + b"\x00" * 99])
def test_mnist_damaged(tmp_path, bad):
    raw = write_mnist(tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(bad)
    with pytest.raises(FileNotFoundError, match="no complete, undamaged files"):
        load_data("mnist", root=tmp_path)


def write_cifar(root):
    "Files in the format of CIFAR-10, 20 images each."
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        values = np.full((20, 3072), 40 * k, np.uint8)
        values[:, :1024] = 255  # the red plane
        (folder / name).write_bytes(pickle.dumps({"data": values, "labels": [i % 10 for i in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind{i}" for i in range(10)]}))


def test_cifar10_other_files_are_refused(tmp_path):
    write_cifar(tmp_path)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py .*corrupted"):
        load_data("cifar10", root=tmp_path)


def test_cifar10(tmp_path, monkeypatch):
    "torchvision compares checksums with the real files; here they are switched off to read ours."
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: True)
    write_cifar(tmp_path)
    data = load_data("cifar10", root=tmp_path)
    assert sizes(data) == [90, 10, 20] and data.shape == (3, 32, 32) and data.classes[3] == "kind3"
    assert data.train.images[:, 0].eq(1).all() and data.test.images[:, 1:].eq(200 / 127.5 - 1).all()
    assert data.valid.labels.bincount().tolist() == [1] * 10
    whole = load_data("cifar10", root=tmp_path, hold_out=False)
    assert sizes(whole) == [100, 20, 20] and whole.valid is whole.test and "nothing held out, validation: the test set" in whole.describe()
    assert to_uint8(whole.train.images)[:, 1, 0, 0].tolist() == [40 * (i // 20) for i in range(100)]  # all five batches, in order


# -- folders ------------------------------------------------------------------------------------
def test_class_folders(tmp_path):
    for kind in ("cat", "dog"):
        pictures(tmp_path / kind, 20)
    data = load_data(f"folder:{tmp_path}")
    assert sizes(data) == [28, 4, 8] and data.classes == ("cat", "dog") and data.shape == (3, 12, 12)
    assert data.test.labels.bincount().tolist() == [4, 4] and data.train.lazy
    image, label = data.train[0]
    assert image.shape == (3, 12, 12) and image.dtype == torch.float32 and label == 0
    values = np.asarray(Image.open(data.train.pixels.paths[0]))
    assert torch.equal(to_uint8(image), torch.from_numpy(values.copy()).permute(2, 0, 1))
    images, labels = data.train.tensors()
    assert images.shape == (28, 3, 12, 12) and torch.equal(labels, data.train.labels)


def test_flat_folder_and_relative_path(tmp_path, monkeypatch):
    pictures(tmp_path / "faces", 10)
    data = load_data("folder:faces", root=tmp_path)
    assert sizes(data) == [7, 1, 2] and data.classes == ("faces",) and data.train.labels.eq(0).all()
    monkeypatch.chdir(tmp_path / "faces")
    assert sizes(load_data("folder:.")) == [7, 1, 2]


@pytest.mark.parametrize("parts, expected, seed", [
    ({"train": 20, "test": 3}, [18, 2, 3], 0), ({"train": 20, "val": 4}, [18, 2, 4], 0),
    ({"train": 20, "validation": 4, "test": 3}, [20, 4, 3], None), ({"train": 20}, [14, 2, 4], 0),
])  # fmt: skip
@pytest.mark.parametrize("inner", ["cat", "."])
def test_parts(tmp_path, parts, expected, seed, inner):
    for part, n in parts.items():
        pictures(tmp_path / "set" / part / inner, n)
    data = load_data("folder:set", root=tmp_path)
    assert sizes(data) == expected and data.split_seed == seed
    assert "as " in data.describe() if len(parts) > 1 else "70/10/20" in data.describe()


@pytest.mark.parametrize("inner, classes, expected", [
    (("train/cat", "val/cat"), ("cat",), [9, 1, 4]), (("bedroom_train", "bedroom_val"), ("set",), [9, 1, 4]), ((".",), ("set",), [7, 1, 2])])
def test_layouts_of_the_published_sets(tmp_path, inner, classes, expected):
    "AFHQ-Cat, LSUN-Bedroom and CelebA-HQ: one kind of image, in parts or not."
    for k, part in enumerate(inner): pictures(tmp_path / "set" / part, 4 if k else 10, size=(24, 24))
    data = load_data("folder:set", root=tmp_path, image_size=16)
    assert sizes(data) == expected and data.classes == classes and data.shape == (3, 16, 16)
    assert all("train" not in path for path in data.test.pixels.paths) or len(inner) == 1


def test_names_that_only_look_like_parts(tmp_path):
    for kind in ("day", "night_train", "night_val"): pictures(tmp_path / kind, 10)
    data = load_data(f"folder:{tmp_path}")
    assert data.classes == ("day", "night_train", "night_val") and sizes(data) == [21, 3, 6]
    assert load_data(f"folder:{tmp_path}", only="night_train").classes == ("night_train",)


LSUN = ("bedroom_train", "bedroom_val", "church_outdoor_train", "church_outdoor_val")


@pytest.mark.parametrize("folders", [LSUN, ("cat_train", "dog_train"), ("a_train", "b_test"), ("a_b_valid", "a_c_validation")])
def test_several_categories_are_no_classes(tmp_path, folders):
    for name in folders: pictures(tmp_path / "set" / name, 4)
    categories = ", ".join(sorted({name.rpartition("_")[0] for name in folders}))
    with pytest.raises(ValueError, match=f"set: holds the parts of several categories, {categories}; wanted one.*a folder of their own"): load_data("folder:set", root=tmp_path)


@pytest.mark.parametrize("category", ["bedroom", "church_outdoor", "church"])
def test_one_category_of_several(tmp_path, category):
    for name in (*LSUN, "church_train", "church_val"): pictures(tmp_path / name, 20 if "train" in name else 3)
    data = load_data(f"folder:{tmp_path}", only=category)
    assert sizes(data) == [18, 2, 3] and data.classes == (category,) and f"only {category}" in data.describe()
    read = [path.removeprefix(f"{tmp_path}/") for part in (data.train, data.valid, data.test) for path in part.pixels.paths]
    assert sorted(read) == [f"{category}_train/{i:03}.png" for i in range(20)] + [f"{category}_val/{i:03}.png" for i in range(3)]
    assert all(path.startswith(f"{category}_val/") for path in read[20:])


@pytest.mark.parametrize("kind, of_val", [("cat", 2), ("dog", 3), ("wild", 4)])
def test_one_class_of_several(tmp_path, kind, of_val):
    "AFHQ as it is published; without parts, and with folders inside the class, it is the same."
    for k, name in enumerate(("cat", "dog", "wild")):
        pictures(tmp_path / "afhq" / "train" / name, 10)
        pictures(tmp_path / "afhq" / "val" / name, 2 + k)
        pictures(tmp_path / "plain" / name / "inside", 10)
        pictures(tmp_path / "plain" / name / "beside", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was not asked for has not been left out by mistake
        data, plain = load_data("folder:afhq", root=tmp_path, only=kind), load_data("folder:plain", root=tmp_path, only=kind)
    assert sizes(data) == [9, 1, of_val] and data.classes == (kind,) and data.train.labels.eq(0).all() and data.test.labels.eq(0).all()
    assert all(f"/train/{kind}/" in path for path in data.train.pixels.paths) and all(f"/val/{kind}/" in path for path in data.test.pixels.paths)
    assert sizes(plain) == [14, 2, 4] and plain.classes == (kind,) and all(f"/plain/{kind}/" in path for path in plain.train.pixels.paths)
    assert "only" not in load_data("folder:afhq", root=tmp_path).describe() and data.describe().split("; ")[2].startswith(f"image folder, only {kind}, test set")


def test_the_only_category_may_be_named(tmp_path):
    for name in LSUN[:2]: pictures(tmp_path / name, 10)
    data = load_data(f"folder:{tmp_path}", only="bedroom")
    assert data.classes == ("bedroom",) and sizes(data) == [9, 1, 10]


@pytest.mark.parametrize("folders, only, what", [
    (("train/cat", "train/dog", "val/cat", "val/dog"), "wolf", "only: got 'wolf'; wanted one of those in .*: cat, dog$"), (("cat", "dog"), "ca", "only: got 'ca'; .*: cat, dog$"),
    (LSUN, "kitchen", "only: got 'kitchen'; .*: bedroom, church_outdoor$"), (LSUN, "bedroom_train", "only: got 'bedroom_train'; .*: bedroom, church_outdoor$"),
    (LSUN, "", "only: got ''; .*: bedroom, church_outdoor$"), (LSUN[:2], "church", "only: got 'church'; .*: bedroom$"),
    ((".",), "cat", "only: got 'cat'; .*: none, its images have no classes"), (("train", "val"), "cat", "only: got 'cat'; .*: none, its images have no classes"),
    (("train/cat", "train/dog", "val/dog"), "cat", "only: got 'cat', which .*/val does not hold; wanted a class of every part"),
    (("a_train", "b_val"), "b", "only: got 'b', but .* has no b_train; wanted a category with a training part"),
])  # fmt: skip
def test_classes_that_are_not_there(tmp_path, folders, only, what):
    for name in folders: pictures(tmp_path / "set" / name, 4)
    with pytest.raises(ValueError, match=what): load_data("folder:set", root=tmp_path, only=only)


# -- nothing held out ---------------------------------------------------------------------------
@pytest.mark.parametrize("inner", ["cat", "."])
@pytest.mark.parametrize("parts, expected, said", [
    ({"train": 20, "val": 4}, [20, 4, 4], "test set: val as it came, nothing held out, validation: the test set"),
    ({"train": 20, "test": 3}, [20, 3, 3], "test set: test as it came, nothing held out, validation: the test set"),
    ({"train": 20, "valid": 4, "test": 3}, [20, 4, 3], "parts as they came"),
])  # fmt: skip
def test_folders_with_nothing_held_out(tmp_path, parts, expected, said, inner):
    for part, n in parts.items(): pictures(tmp_path / "set" / part / inner, n)
    data = load_data("folder:set", root=tmp_path, hold_out=False)
    assert sizes(data) == expected and data.split_seed is None and data.describe().endswith(said)
    assert (data.valid is data.test) == (len(parts) == 2)
    assert len({*data.train.pixels.paths}) == 20 and not {*data.train.pixels.paths} & {*data.test.pixels.paths, *data.valid.pixels.paths}


def test_one_category_with_nothing_held_out(tmp_path):
    for name in LSUN: pictures(tmp_path / name, 20 if "train" in name else 3)
    assert sizes(load_data(f"folder:{tmp_path}", only="bedroom", hold_out=False)) == [20, 3, 3]


@pytest.mark.parametrize("inner", [("a", "b"), (".",), ("train/a", "train/b")])
def test_a_folder_without_parts_with_nothing_held_out(tmp_path, inner):
    "All images train, and the line says that they are what is looked at as well."
    for name in inner: pictures(tmp_path / "set" / name, 10)
    data, n = load_data("folder:set", root=tmp_path, hold_out=False), 10 * len(inner)
    assert sizes(data) == [n, n, n] and data.describe().endswith("nothing held out, validation and test: the training images themselves") and data.split_seed is None
    with pytest.raises(ValueError, match="hold_out: got False, but digits has no test part of its own"): load_data("digits", hold_out=False)


def test_test_part_keeps_the_labels_of_training(tmp_path):
    for kind in ("ant", "bee", "cat"):
        pictures(tmp_path / "train" / kind, 10)
    pictures(tmp_path / "test" / "cat", 2)
    assert load_data(f"folder:{tmp_path}").test.labels.tolist() == [2, 2]
    pictures(tmp_path / "test" / "dodo", 2)
    with pytest.raises(ValueError, match="dodo.*wanted those of training.*ant"):
        load_data(f"folder:{tmp_path}")


def test_a_class_called_train(tmp_path):
    for kind in ("car", "train"):
        pictures(tmp_path / kind, 10)
    assert load_data(f"folder:{tmp_path}").classes == ("car", "train")


def test_resize_and_crop(tmp_path):
    pictures(tmp_path / "wide", 10, size=(30, 20))
    assert load_data(f"folder:{tmp_path}").shape == (3, 20, 20)
    data = load_data(f"folder:{tmp_path}", image_size=8)
    assert data.shape == data.train[0][0].shape == (3, 8, 8)
    left_black = np.zeros((10, 30), np.uint8)
    left_black[:, 10:20] = 255
    Image.fromarray(left_black).save(tmp_path / "band.png")
    assert read_image(str(tmp_path / "band.png"), 1, 10).eq(255).all()  # the middle third


def test_grey_and_colour_follow_the_first(tmp_path):
    pictures(tmp_path / "a", 9, mode="L")
    picture(tmp_path / "a" / "last.png", mode="RGB")
    data = load_data(f"folder:{tmp_path}")
    assert data.shape == (1, 12, 12) and data.train.images.shape == (7, 1, 12, 12)
    picture(tmp_path / "a" / "0.png", mode="P")
    assert load_data(f"folder:{tmp_path}").train.images.shape[1] == 3


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(OSError, match="deep.png .*pixels of mode I;16, wanted 8 bits"):
        read_image(str(tmp_path / "deep.png"), 1, 4)


def break_two(tmp_path):
    pictures(tmp_path / "a", 20)
    (tmp_path / "a" / "004.png").write_bytes(b"not an image")
    cut = tmp_path / "a" / "005.png"
    cut.write_bytes(cut.read_bytes()[:-80])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(tmp_path, workers):
    break_two(tmp_path)
    data = load_data(f"folder:{tmp_path}")
    names = [part.pixels.paths for part in (data.train, data.valid, data.test)]
    everything = Split(type(data.train.pixels)(sum(names, []), 3, 12), torch.zeros(20, dtype=torch.int64))
    with pytest.raises(OSError, match=r"00[45]\.png.*skip_unreadable=True"):
        everything.tensors()
    with pytest.raises(OSError, match=r"00[45]\.png.*skip_unreadable=True"):
        list(islice(batches(everything, 10, seed=0, workers=workers), 2))
    with pytest.raises(OSError) as told:
        list(islice(batches(everything, 10, seed=0, workers=workers), 2))
    assert str(told.value).startswith("cannot read image") and len(str(told.value)) < 400


def test_files_of_all_splits_are_checked_before_they_are_wanted(tmp_path):
    pictures(tmp_path / "a", 20)
    data = load_data(f"folder:{tmp_path}")
    check_files(data), check_files(load_data("digits"))
    broken = tmp_path / data.test.pixels.paths[-1]
    broken.write_bytes(b"not an image")
    with pytest.raises(OSError, match=f"{broken.name}.*put it right"):
        check_files(data)
    with pytest.raises(OSError, match=broken.name):
        check_files(data, limit=2)  # the first and the last of each split
    (tmp_path / data.test.pixels.paths[1]).write_bytes(b"not an image")
    picture(broken)
    check_files(data, limit=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_colour_spaces(tmp_path, channels):
    Image.new("LAB", (12, 12), (255, 128, 128)).save(tmp_path / "white.tiff")
    assert read_image(str(tmp_path / "white.tiff"), channels, 12).min() > 250


def test_files_that_are_left_out_are_told(tmp_path):
    for kind in ("a", "b"):
        pictures(tmp_path / kind, 10)
    Image.new("RGB", (12, 12), "red").save(tmp_path / "a" / "moving.gif")
    (tmp_path / ".hidden").mkdir()
    for name in (".hidden/x.png", "a/.DS_Store", "a/notes.txt", "cover.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="left out 2 files, no images in a class folder, such as a/notes.txt"):
        data = load_data(f"folder:{tmp_path}")
    assert sum(sizes(data)) == 21
    assert torch.equal(read_image(str(tmp_path / "a" / "moving.gif"), 3, 2)[:, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))


def test_batches_are_read_ahead(tmp_path, monkeypatch):
    "While a batch is in use, threads read the next two, and no more; and they stop when nobody wants them."
    read, split = [], numbered(40, tmp_path)
    once = type(split.pixels).__getitem__

    class Watched(type(split.pixels)):
        def __getitem__(self, i):
            found = once(self, i)
            read.append((i, threading.current_thread() is threading.main_thread()))
            return found

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    stream = batches(Split(Watched(split.pixels.paths, 1, 1), split.labels), 4, seed=0)
    for k in (1, 2, 3):
        next(stream)
        until = time.monotonic() + 20
        while len(read) < 4 * (k + 2) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(read) == 4 * (k + 2) and not any(main for _, main in read)
    stream.close()
    read.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # nobody has time
    stream = batches(Split(Watched(split.pixels.paths, 1, 1), split.labels), 4, seed=0)
    next(stream), time.sleep(0.2)
    assert len(read) == 4
    next(batches(Split(Watched(split.pixels.paths, 1, 1), split.labels), 4, seed=0, device="meta")), time.sleep(0.2)
    assert len(read) > 8  # a device of its own leaves the cores alone


def test_unreadable_images_are_left_out_on_request(tmp_path):
    break_two(tmp_path)
    with pytest.warns(UserWarning, match=r"left out 2 of 20 images.*004\.png.*005\.png"):
        data = load_data(f"folder:{tmp_path}", skip_unreadable=True)
    assert sum(sizes(data)) == 18
    for part in (data.train, data.valid, data.test):
        part.tensors()


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(OSError, match="0.jpg"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="none of 3 images can be read"):
        load_data(f"folder:{tmp_path}", skip_unreadable=True)


def test_nothing_to_warn_about(tmp_path):
    pictures(tmp_path, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(f"folder:{tmp_path}", skip_unreadable=True)


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; wanted a folder"):
        load_data("folder:nowhere", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_data(f"folder:{picture(tmp_path / 'one.png')}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        load_data("folder:empty", root=tmp_path)
    pictures(tmp_path / "set" / "full", 10)
    (tmp_path / "set" / "hollow").mkdir()
    with pytest.raises(FileNotFoundError, match="set: .*hollow"):
        load_data("folder:set", root=tmp_path)
    pictures(tmp_path / "few", 3)
    with pytest.raises(ValueError, match="3 images are too few .* wanted at least 10"):
        load_data("folder:few", root=tmp_path)


def test_two_validation_parts(tmp_path):
    for part in ("train", "val", "valid"):
        pictures(tmp_path / part / "a", 2)
    with pytest.raises(ValueError, match="one validation part"):
        load_data(f"folder:{tmp_path}")


def test_images_beside_class_folders_are_announced(tmp_path):
    pictures(tmp_path / "a", 10)
    picture(tmp_path / "preview.png")
    with pytest.warns(UserWarning, match="left out 1 files, no images in a class folder, such as preview.png"):
        assert sum(sizes(load_data(f"folder:{tmp_path}"))) == 10


# -- batches ------------------------------------------------------------------------------------
def numbered(n, lazy_in=None):
    "A split whose image i has the label i; in memory, or on disk."
    if lazy_in is None:
        return Split(torch.arange(n, dtype=torch.uint8)[:, None, None, None], torch.arange(n))
    for i in range(n):
        Image.new("L", (1, 1), i).save(lazy_in / f"{i:03}.png")
    from lzn_nb.data import ImageFiles

    return Split(ImageFiles([str(lazy_in / f"{i:03}.png") for i in range(n)], 1, 1), torch.arange(n))


@pytest.mark.parametrize("start", [0, 2, 3, 4, 11])
def test_resumed_is_uninterrupted(tmp_path, start):
    for split in (numbered(13), numbered(13, tmp_path)):
        whole = list(islice(batches(split, 4, seed=7), 15))
        rest = list(islice(batches(split, 4, seed=7, start_step=start), 15 - start))
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(whole[start:], rest))


def test_memory_and_disk_agree(tmp_path):
    for workers in (0, 2):
        pairs = zip(batches(numbered(13), 4, seed=1), batches(numbered(13, tmp_path), 4, seed=1, workers=workers))
        for (a, b), (c, d) in islice(pairs, 5):
            assert torch.equal(a, c) and torch.equal(b, d) and b.dtype == d.dtype == torch.int64
            assert torch.equal(to_uint8(a)[:, 0, 0, 0].long(), b)


def test_epochs():
    steps = [labels for _, labels in islice(batches(numbered(13), 4, seed=0), 6)]
    first, second = torch.cat(steps[:3]), torch.cat(steps[3:])
    assert len(first.unique()) == len(second.unique()) == 12  # nothing twice, the incomplete batch dropped
    assert not torch.equal(first, second)
    other = torch.cat([labels for _, labels in islice(batches(numbered(13), 4, seed=1), 3)])
    assert torch.equal(other, second)  # epoch e is shuffled with seed + e
    assert not torch.equal(other, first)


def test_far_start_is_immediate():
    images, _ = next(batches(numbered(13), 4, seed=0, start_step=10**12))
    assert images.shape == (4, 1, 1, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_leave_the_global_generator_alone(tmp_path, workers):
    before = torch.get_rng_state()
    next(batches(numbered(5), 2, seed=0)), next(batches(numbered(5, tmp_path), 2, seed=0, workers=workers))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options, what", [
    ({"batch": 14}, "batch: got 14, but the split has 13"), ({"batch": 0}, "batch"), ({"batch": 2.0}, "batch"),
    ({"start_step": -1}, "start_step"), ({"seed": -1}, "seed"), ({"seed": None}, "seed"), ({"workers": -1}, "workers"),
])  # fmt: skip
def test_wrong_batches_are_refused_at_once(options, what):
    with pytest.raises(ValueError, match=f"{what}.*wanted"):
        batches(numbered(13), **{"batch": 4, "seed": 0, **options})


# -- views --------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3), (64, 3), (5, 3)])
def test_views(size, channels):
    images = torch.rand(6, channels, 9, 11, generator=torch.Generator().manual_seed(0)) * 2 - 1
    view = two_views(size, channels=channels)
    a, b = view(images, seed=1)
    assert a.shape == b.shape == (6, channels, size, size) and a.dtype == torch.float32
    assert -1 <= min(a.min(), b.min()) and max(a.max(), b.max()) <= 1 and not torch.equal(a, b)
    assert [one.shape for one in view(images[0])] == [(channels, size, size)] * 2


def test_every_image_has_its_own_draw():
    images = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).expand(8, -1, -1, -1)
    for view in two_views(32, channels=3)(images, seed=0):
        assert len({tuple(one.flatten().tolist()) for one in view}) == 8


def test_views_repeat_with_their_seed_and_leave_the_generator():
    view, images = two_views(16, channels=3), torch.rand(3, 3, 16, 16)
    before = torch.get_rng_state()
    first, again, other = view(images, seed=5), view(images, seed=5), view(images, seed=6)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert all(map(torch.equal, first, view(images)))  # without a seed, the global generator decides


def test_strength_zero_changes_nothing():
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    for view in two_views(32, channels=3, strength=0, flip=False)(images):
        torch.testing.assert_close(view, images, rtol=0, atol=1e-5)
    flipped = two_views(32, channels=3, strength=0)(images, seed=0)[0]
    same = (flipped - images).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (flipped - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all()


def test_at_224_it_is_the_published_recipe():
    "What kornia has been told, and what it then draws."
    recipe = two_views(224, channels=3).args[0]
    crop, mirror, jitter, grey, blur = recipe.children()
    assert tuple(crop._param_generator.scale) == (0.08, 1.0) and tuple(crop._param_generator.ratio) == (3 / 4, 4 / 3)
    assert (crop.p, mirror.p, jitter.p, grey.p, blur.p) == (1.0, 0.5, 0.8, 0.2, 1.0) and tuple(blur.flags["kernel_size"]) == (23, 23)
    torch.manual_seed(0)
    crop, mirror, jitter, grey, blur = (step.data for step in recipe.forward_parameters(torch.Size((4000, 3, 224, 224))))
    for share, step in ((0.5, mirror), (0.8, jitter), (0.2, grey)): assert abs(step["batch_prob"].float().mean() - share) < 0.03
    for factor in ("brightness", "contrast", "saturation"): assert 0.2 <= jitter[f"{factor}_factor"].min() < 0.25 and 1.75 < jitter[f"{factor}_factor"].max() <= 1.8
    assert -0.2 <= jitter["hue_factor"].min() < -0.19 and 0.19 < jitter["hue_factor"].max() <= 0.2
    assert 0.1 <= blur["sigma"].min() < 0.15 and 1.95 < blur["sigma"].max() <= 2.0
    width, height = (crop["src"][:, 2] - crop["src"][:, 0] + 1).unbind(1)
    assert 0.07 < (width * height / 224**2).min() < 0.12 and (width * height / 224**2).max() > 0.9
    assert 0.73 < (width / height).min() < 0.78 and 1.28 < (width / height).max() < 1.36


@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3)])
def test_rows_of_a_batch_get_the_views_they_have_in_it(size, channels):
    "However a batch is divided; and one image more or less is another batch."
    images = torch.rand(11, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    view, rows = two_views(size, channels=channels), torch.tensor([7, 2, 10])
    whole, part = view(images, seed=3), view(images[rows], seed=3, rows=rows, of=11)
    assert all(torch.equal(one[rows], other) for one, other in zip(whole, part))
    torch.testing.assert_close(view(images.double(), seed=3)[0].float(), whole[0], atol=1e-4, rtol=0)
    four = view(images[:4], seed=3)  # as many as there are steps in the order of the jitter
    assert all(torch.equal(one[1:3], other) for one, other in zip(four, view(images[1:3], seed=3, rows=torch.tensor([1, 2]), of=4)))


def test_views_carry_no_gradient_and_shrink_large_images():
    images = torch.rand(3, 3, 40, 40, requires_grad=True)
    a, b = two_views(16, channels=3)(images, seed=0)
    assert not a.requires_grad and a.shape == b.shape == (3, 3, 16, 16)


@pytest.mark.parametrize("options, what", [({"size": 0}, "size"), ({"channels": 2}, "channels"), ({"strength": 1.5}, "strength")])
def test_wrong_views(options, what):
    options = {"size": 8, "channels": 1, **options}
    with pytest.raises(ValueError, match=f"{what}: got .* wanted"):
        two_views(options.pop("size"), **options)


@pytest.mark.parametrize("call, what", [
    (lambda view: view(torch.zeros(2, 1, 8, 8)), r"images: got torch.float32 \[2, 1, 8, 8\]; wanted floating \[n,3,h,w\]"),
    (lambda view: view(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "images: got torch.uint8"), (lambda view: view(torch.zeros(0, 3, 8, 8)), "images: got"),
    (lambda view: view(torch.zeros(2, 3, 8, 8), rows=torch.tensor([0, 5]), of=4), r"rows: got \[2\] positions up to 5 of 4"),
    (lambda view: view(torch.zeros(2, 3, 8, 8), rows=torch.tensor([0]), of=4), r"rows: got \[1\] positions")])
def test_wrong_images_for_views(call, what):
    with pytest.raises(ValueError, match=what): call(two_views(8, channels=3))


# -- ImageNet ---------------------------------------------------------------------------------
def imagenet_archives(folder, per_class=30, heap=12):
    "Archives as ILSVRC 2012 has them, of three classes whose numbers are not in the order of their names."
    from scipy.io import savemat

    kinds = {1: ("n02119789", "kit fox, Vulpes macrotis"), 2: ("n02100735", "English setter"), 3: ("n01440764", "tench, Tinca tinca")}
    work = folder / "work"
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"), ("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    rows = [(number, wnid, words, "", 0, [], 0, per_class) for number, (wnid, words) in kinds.items()] + [(4, "n00001740", "entity", "", 3, [1, 2, 3], 1, 0)]
    (work / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    savemat(work / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", {"synsets": np.array(rows, dtype=fields)[:, None]})
    answers = [k % 3 + 1 for k in range(heap)]
    (work / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{k}\n" for k in answers))
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar: tar.add(work / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for k in range(heap): tar.add(picture(work / f"ILSVRC2012_val_{k + 1:08}.JPEG", seed=k), f"ILSVRC2012_val_{k + 1:08}.JPEG")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as whole:
        for wnid, _ in kinds.values():
            with tarfile.open(work / f"{wnid}.tar", "w") as tar:
                for k in range(per_class): tar.add(picture(work / f"{wnid}_{k}.JPEG", seed=k), f"{wnid}_{k}.JPEG")
            whole.add(work / f"{wnid}.tar", f"{wnid}.tar")
    shutil.rmtree(work)
    return [kinds[k][0] for k in answers]


def known_archives(monkeypatch, folder):
    from torchvision.datasets import imagenet

    own = {name: (file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for name, (file, _) in imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", own)


def test_imagenet_from_its_archives_and_from_its_folders(tmp_path, monkeypatch):
    (folder := tmp_path / "imagenet").mkdir()
    answers = imagenet_archives(folder)
    known_archives(monkeypatch, folder)
    data = load_data("imagenet", root=tmp_path, image_size=10)
    assert data.classes == ("n01440764", "n02100735", "n02119789") and sizes(data) == [81, 9, 12] and data.shape == (3, 10, 10)
    found = {path.name: path.parent.name for path in (folder / "val").glob("*/*.JPEG")}
    assert found == {f"ILSVRC2012_val_{k + 1:08}.JPEG": wnid for k, wnid in enumerate(answers)}
    assert data.test.labels.tolist() == sorted(data.classes.index(wnid) for wnid in answers)
    for archive in folder.glob("*.tar*"): archive.unlink()  # unpacked, they are not needed
    monkeypatch.setenv("LZN_DATA", str(tmp_path))
    again = load_data("imagenet", image_size=10)
    assert torch.equal(again.train[3][0], data.train[3][0]) and "imagenet" in again.describe()


def test_imagenet_whose_unpacking_was_killed_begins_anew(tmp_path, monkeypatch):
    "What a killed process leaves is none of the folders that are looked for, and is cleared away."
    (folder := tmp_path / "imagenet").mkdir()
    imagenet_archives(folder)
    known_archives(monkeypatch, folder)
    from torchvision.datasets import imagenet
    kill = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "parse_val_archive", kill)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a process that is killed clears nothing away
        with pytest.raises(KeyboardInterrupt): load_data("imagenet", root=tmp_path)
    assert (folder / ".unpacking").is_dir() and (folder / "train").is_dir() and not (folder / "val").is_dir()
    data = load_data("imagenet", root=tmp_path, image_size=10)
    assert len(data.train) > len(data.test) == 12 and not (folder / ".unpacking").exists()


SLOW_LOADER = """
import sys, time, hashlib
from pathlib import Path
from torchvision.datasets import imagenet
from lzn_nb.data import load_data
root = Path(sys.argv[1])
folder = root / "imagenet"
imagenet.ARCHIVE_META = {name: (file, hashlib.md5((folder / file).read_bytes()).hexdigest()) for name, (file, _) in imagenet.ARCHIVE_META.items()}
def slow(name):
    parse = getattr(imagenet, name)
    def parsed(*given):
        with open(root / "log", "a") as log: log.write(name + "\\n")
        time.sleep(1)
        return parse(*given)
    setattr(imagenet, name, parsed)
for name in ("parse_train_archive", "parse_val_archive"): slow(name)
(root / ("ready" + sys.argv[2])).touch()
while len(list(root.glob("ready*"))) < 2: time.sleep(0.01)
data = load_data("imagenet", root=root, image_size=10)
print(len(data.train), len(data.valid), len(data.test), len(data.classes))
"""


def test_imagenet_is_unpacked_by_one_of_two_processes(tmp_path):
    "The other one waits, says so, and finds it done; neither takes the other's half for all of it."
    (folder := tmp_path / "imagenet").mkdir()
    imagenet_archives(folder)
    both = [subprocess.Popen([sys.executable, "-c", SLOW_LOADER, str(tmp_path), str(k)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for k in range(2)]
    found = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in found] == ["81 9 12 3"] * 2, found
    assert (tmp_path / "log").read_text().split() == ["parse_train_archive", "parse_val_archive"] and not (folder / ".unpacking").exists()
    assert ["another process unpacks the archives" in err for _, err in found].count(True) == 1


def test_one_pass_and_some_of_a_split():
    digits = load_data("digits").train
    few = digits.some(100)
    assert len(few) == 100 and torch.equal(few.images, digits.take(digits.spread(100))[0]) and digits.some(0) is digits.some(5000) is digits
    images, labels = zip(*one_pass(few, 30))
    assert [len(x) for x in images] == [30, 30, 30, 10] and torch.equal(torch.cat(images), few.images) and torch.equal(torch.cat(labels), few.labels)


def test_imagenet_that_is_absent_or_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LZN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="imagenet: no folder to look in; pass root=, or set the environment variable LZN_DATA"): load_data("imagenet")
    with pytest.raises(FileNotFoundError, match="wanted a folder imagenet with train/ and val/, one folder a class, or the archives ILSVRC2012_devkit"): load_data("imagenet", root=tmp_path)
    (folder := tmp_path / "imagenet").mkdir()
    imagenet_archives(folder)
    with pytest.raises(OSError, match="ILSVRC2012_devkit_t12.tar.gz is not present in the root directory or is corrupted"): load_data("imagenet", root=tmp_path)
    known_archives(monkeypatch, folder)
    (folder / "ILSVRC2012_img_val.tar").write_bytes((folder / "ILSVRC2012_img_val.tar").read_bytes()[:-3000] + bytes(10))
    with pytest.raises(OSError, match="ILSVRC2012_img_val.tar is not present in the root directory or is corrupted"): load_data("imagenet", root=tmp_path)
    assert (folder / "train").is_dir() and not (folder / "val").exists()
