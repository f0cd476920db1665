"""Abuse: each fault that the page on training lists is brought about, ends in a clear error or goes on as documented, and loses nothing."""
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lzn_nb.training as training
from lzn_nb.checkpoints import checkpoint_paths, load_checkpoint, save_checkpoint
from lzn_nb.cli import main
from lzn_nb.data import batches, load_data
from lzn_nb.plots import image_grid
from lzn_nb.runs import open_run, read_metrics
from lzn_nb.scenarios.base import save_samples
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_losses, joint_trainer, run_joint
from lzn_nb.training import Component, TrainConfig, Trainer, run_update, train

sys.path.insert(0, str(Path(__file__).parent))
from test_training import go, losses, same, saved, small, stream

CONFIG = dataclasses.replace(JOINT_PRESETS["tiny"], steps=6, batch=8, log_every=1, save_every=2, warmup=0)
WORDS = ["--preset", "tiny", "--set", "steps=6", "--set", "batch=8", "--set", "log_every=1", "--set", "save_every=2", "--quiet"]


def pictures(folder, n=30, size=8):
    for kind in ("dark", "light"):
        (folder / kind).mkdir(parents=True)
        for i in range(n):
            values = np.random.RandomState(i).randint(0, 128, (size, size), dtype=np.uint8) + 127 * (kind == "light")
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{i:02}.png")
    return folder


def complaint(capsys, *words, status=2):
    "The only line on the error stream of a command that must fail."
    assert main(["joint", *WORDS, *map(str, words)]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


# -- data -------------------------------------------------------------------------------------
def test_corrupt_image_in_a_folder(tmp_path, capsys):
    (pictures(tmp_path / "p") / "dark" / "03.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out 1 of 60 images, unreadable: .*03.png"): data = load_data(f"folder:{tmp_path / 'p'}", skip_unreadable=True)
    assert len(data.train) + len(data.valid) + len(data.test) == 59
    for more in (["--out", tmp_path / "a"], ["--dry-run"]): assert "dark/03.png" in complaint(capsys, "--data", f"folder:{tmp_path / 'p'}", "--set", "steps=99", *more)


def test_image_damaged_while_training(tmp_path, monkeypatch):
    data, trainer = f"folder:{pictures(tmp_path / 'p')}", None
    update = training.run_update

    def damaging(trainer, *more):
        if trainer.step == 3:
            for file in (tmp_path / "p").rglob("*.png"): file.write_bytes(b"overwritten")
        return update(trainer, *more)

    monkeypatch.setattr(training, "run_update", damaging)
    with pytest.raises(OSError, match="cannot read image .*png"): run_joint(data, "tiny", tmp_path / "a", progress=False, steps=40, batch=8, save_every=100)
    assert saved(tmp_path / "a") in ([4], [5], [6])  # some batches had been read ahead


def test_corrupt_image_that_only_the_end_would_read(tmp_path, capsys, monkeypatch):
    broken = Path(load_data(f"folder:{pictures(tmp_path / 'p')}").test.pixels.paths[1])
    whole = broken.read_bytes()
    broken.write_bytes(whole[:30])
    monkeypatch.setattr("lzn_nb.scenarios.base.train", lambda *a, **k: pytest.fail("trained"))
    assert f"/{broken.name} " in complaint(capsys, "--data", f"folder:{tmp_path / 'p'}", "--out", tmp_path / "a") and not (tmp_path / "a").exists()
    monkeypatch.undo()
    broken.write_bytes(whole)  # put right, as it is asked for
    assert main(["joint", *WORDS, "--data", f"folder:{tmp_path / 'p'}", "--out", str(tmp_path / "a")]) == 0


def test_image_of_another_kind_of_pixels(tmp_path, capsys):
    for k in range(7, 20): Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save((tmp_path / "p" if k > 7 else pictures(tmp_path / "p")) / "dark" / f"{k:02}.png")
    assert re.search("[0-9][0-9].png .*pixels of mode I.*wanted 8 bits", complaint(capsys, "--data", f"folder:{tmp_path / 'p'}", "--set", "steps=99", "--out", tmp_path / "a"))


def test_labels_missing(tmp_path, capsys, monkeypatch):
    source = Path(os.environ.get("LZN_DATA", "/nowhere")) / "MNIST" / "raw"
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):  # the format of the real files, and no labels of the second part
        (folder / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">i4").tobytes() + bytes(28 * 28 * n))
        if part == "train": (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array([n], ">i4").tobytes() + bytes(n))
    monkeypatch.setenv("LZN_DATA", str(tmp_path))
    said = complaint(capsys, "--data", "mnist", "--out", tmp_path / "a")
    assert "no complete, undamaged files in" in said and "download=True" in said and not (tmp_path / "a").exists()


def test_data_set_smaller_than_the_batch(tmp_path, capsys):
    assert "batch: got 64, but" in complaint(capsys, "--data", f"folder:{pictures(tmp_path / 'p', 20)}", "--set", "batch=64", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def joint_run(out, spoil, **changes):
    "A run of the real scenario on digits whose batch `number` goes through `spoil`."
    config, data = dataclasses.replace(CONFIG, **changes), load_data("digits")
    trainer = joint_trainer(config, data.shape, 10, 0, torch.device("cpu"))
    parts = lambda k: ((spoil(number, x.clone()), y) for number, (x, y) in enumerate(batches(data.train, config.batch, seed=0, start_step=k), k))
    train(trainer, lambda *batch: joint_losses(config, *batch), parts, out, seed=0, progress=False)
    return trainer


def test_nan_pixels_in_a_batch(tmp_path):
    trainer = joint_run(tmp_path, lambda number, x: x.index_fill(0, torch.tensor(2), math.nan) if number == 3 else x)
    assert [line["skipped"] for line in read_metrics(tmp_path)] == [0, 0, 0, 1, 1, 1]
    assert all(p.isfinite().all() for p in trainer.average.module.parameters())


def test_nan_pixels_from_some_batch_on(tmp_path):
    with pytest.raises(FloatingPointError, match=r"update 5: .* 2 times in a row \(not finite: batch\[0\]"):
        joint_run(tmp_path, lambda number, x: x * (math.nan if number >= 3 else 1), max_skipped=2)
    assert saved(tmp_path)[-1] == 5 and all(p.isfinite().all() for p in load_checkpoint(tmp_path)["network"].values() if p.is_floating_point())


def test_network_that_runs_away(tmp_path, capsys):
    said = complaint(capsys, "--set", "rate_decoder=1e30", "--set", "rate_encoder=1e30", "--set", "steps=40", "--set", "max_skipped=3", "--out", tmp_path / "a")
    assert "3 times in a row (not finite: " in said and "lower learning rates" in said


# -- folders and disks ------------------------------------------------------------------------
def test_read_only_output(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lzn_nb.scenarios.base.train", lambda *a, **k: pytest.fail("trained"))
    place = tmp_path / "locked"
    place.mkdir()
    place.chmod(0o500)
    if os.access(place, os.W_OK): place = Path("/proc/self/nothing")  # root may write everywhere but there
    assert "out: cannot write to" in complaint(capsys, "--out", place / "a")


def test_output_that_holds_something_else(tmp_path, capsys):
    for name, text in (("config.json", '{"theme": "dark"}'), ("report.html", "<html>")):
        (tmp_path / name).write_text(text)
        assert f"holds a {name} that is of no run" in complaint(capsys, "--out", tmp_path) and (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()


def test_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "a").write_text("mine")
    assert "out: cannot write to" in complaint(capsys, "--out", tmp_path / "a") and (tmp_path / "a").read_text() == "mine"


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
import test_training as t
def shrinking(number):
    for k, batch in enumerate(t.stream(number), number):
        if k == 15: resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
        if k == {until}: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        yield batch
t.go(t.small(log_every={every}), {out!r}, stream=shrinking)
"""


def limited(out, room, every, until=32):
    source = LIMITED.format(tests=str(Path(__file__).parent), out=str(out), room=room, every=every, until=until)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_disk_full_while_saving(tmp_path):
    "A limit on the size of files stands in for a full disk: checkpoints no longer fit, lines do."
    go(small(), tmp_path / "whole")
    ended = limited(tmp_path / "full", 3000, every=20)
    assert ended.returncode == 0 and ended.stderr.count("UserWarning: checkpoint: cannot write that of update") == 2, ended.stderr  # of 20 and 30
    assert saved(tmp_path / "full") == [10, 40] and same(load_checkpoint(tmp_path / "full")["network"], load_checkpoint(tmp_path / "whole")["network"])


def test_disk_full_to_the_end(tmp_path):
    "The result would be nowhere, so that is an error; with some room it is resumed."
    ended = limited(tmp_path / "full", 3000, every=20, until=99)
    assert ended.returncode == 1 and "OSError: checkpoint: no room in" in ended.stderr and saved(tmp_path / "full") == [10], ended.stderr
    for name in ("full", "whole"): go(small(log_every=20), tmp_path / name)
    assert same(load_checkpoint(tmp_path / "full"), load_checkpoint(tmp_path / "whole")) and same(read_metrics(tmp_path / "full"), read_metrics(tmp_path / "whole"))


def test_disk_full_while_logging(tmp_path):
    ended = limited(tmp_path, 1, every=1)
    assert ended.returncode == 0 and ended.stderr.count("UserWarning: metrics: cannot write to") == 1, ended.stderr
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 41)) and saved(tmp_path)[-1] == 40


def test_disk_full_while_a_sheet_of_samples_is_drawn(tmp_path):
    "No half of a picture stands where somebody looks for a whole one; a sheet that was there stays."
    import resource
    def save(seed, path): save_samples(SimpleNamespace(samples=lambda *_: image_grid(torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))), None, None, None, path, 0)

    there, new = (tmp_path / "samples" / f"{k:08d}.png" for k in (5, 10))
    save(0, there)
    whole, limit = there.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert Image.open(there).convert("RGB").width > 100 and len(whole) > 2000
    resource.setrlimit(resource.RLIMIT_FSIZE, (800, limit[1]))
    try:
        for path in (there, new):
            with pytest.warns(UserWarning, match=f"samples: cannot write {path} .*; training goes on"): save(1, path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(there.parent.iterdir()) == [there] and there.read_bytes() == whole


# -- processes --------------------------------------------------------------------------------
WORKER = """
import os, signal, sys
from pathlib import Path
import torch.utils.data
from lzn_nb.cli import main
import lzn_nb.data as data
import lzn_nb.scenarios.base as base
base.judged, base.report = (lambda *given, **options: {{"accuracy": 0.5}}), (lambda run: None)
read, parent = data.read_image, os.getpid()
def fragile(path, *more):
    if os.getpid() != parent and {kill} and len(list(Path({outs[0]!r}).glob("checkpoints/*.safetensors"))) > 1: os.kill(os.getpid(), signal.SIGKILL)
    return read(path, *more)
data.read_image = fragile
sys.exit(max(main(["joint", "--data", {data!r}, "--out", out, "--resume", "--set", "workers=1", *{words!r}]) for out in {outs!r}))
"""


def test_killed_worker_that_reads_images(tmp_path):
    folder = pictures(tmp_path / "p")
    def started(kill, *outs):
        source = WORKER.format(kill=kill, outs=[str(tmp_path / out) for out in outs], data=f"folder:{folder}", words=[*WORDS, "--set", "steps=12"])
        return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})

    broken = started(True, "a")
    assert broken.returncode == 2 and re.search("lzn joint: DataLoader worker .*killed by signal.* Go on with --resume", broken.stderr) and "Traceback" not in broken.stderr, broken.stderr
    assert 4 <= saved(tmp_path / "a")[-1] < 12
    assert (ended := started(False, "a", "b")).returncode == 0, ended.stderr
    one, two = (load_checkpoint(tmp_path / out) for out in ("a", "b"))
    assert one["step"] == two["step"] == 12 and same(one["average"], two["average"])


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_training as t, lzn_nb.checkpoints as c, lzn_nb.training as training
if {where!r} == "update":
    def losses(*given):
        if given[-1].initial_seed() == 23: os.kill(os.getpid(), signal.SIGKILL)
        return t.losses(*given)
else:
    losses, serialize = t.losses, c.serialize
    def half(tensors, metadata):
        whole = serialize(tensors, metadata)
        if '"step": 30' not in metadata["state"]: return whole
        open({part!r}, "wb").write(whole[:len(whole) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    c.serialize = half
t.go(t.small(), {out!r}, losses)
"""


@pytest.fixture
def killed(tmp_path):
    def at(where):
        source = KILLED.format(tests=str(Path(__file__).parent), where=where, out=str(tmp_path / "a"), part=str(tmp_path / "a/checkpoints/.00000030.safetensors.part"))
        assert subprocess.run([sys.executable, "-c", source], timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
        before = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir() if path.name != ".lock")
        go(resumed := small(), tmp_path / "a")
        go(whole := small(), tmp_path / "whole")
        assert same(resumed.state_dict(), whole.state_dict()) and same(read_metrics(tmp_path / "a"), read_metrics(tmp_path / "whole"))
        return before
    return at


def test_killed_process(killed): assert killed("update") == ["00000010.safetensors", "00000020.safetensors"]
def test_killed_while_writing_a_checkpoint(killed): assert killed("write") == [".00000030.safetensors.part", "00000010.safetensors", "00000020.safetensors"]


def test_two_processes_in_one_folder(tmp_path):
    source = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_training as t\n"
              f"def slow(*given): time.sleep(0.05); return t.losses(*given)\nt.go(t.small(steps=400, save_every=1), {str(tmp_path)!r}, slow)")
    first = subprocess.Popen([sys.executable, "-c", source], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not saved(tmp_path) and time.monotonic() < deadline: time.sleep(0.02)
        with pytest.raises(ValueError, match="out: another process is training in"): go(small(steps=400), tmp_path)
        assert first.poll() is None
    finally: first.kill()
    first.wait()
    with pytest.raises(KeyboardInterrupt): go(small(steps=400), tmp_path, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # the lock is gone with its holder


# -- modules and losses -----------------------------------------------------------------------
class Odd(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.layer, self.more = nn.Linear(3, 1), more

    def forward(self, x): return self.layer(x)


def odd_trainer(more):
    network = Odd(more)
    return Trainer(network, TrainConfig(steps=4, batch=16, warmup=0), {"all": Component(network, 1e-2)})


def test_unpicklable_user_module(tmp_path):
    import pickle
    trainer = odd_trainer(lambda x: x)
    with pytest.raises((pickle.PicklingError, AttributeError)): pickle.dumps(trainer.network)
    network = train(trainer, losses, stream, tmp_path, seed=0, progress=False)
    assert saved(tmp_path) == [4] and same(load_checkpoint(tmp_path)["average"], network.state_dict())


def test_user_module_that_cannot_be_copied(tmp_path):
    with open(tmp_path / "f", "w") as file, pytest.raises(ValueError, match="network: cannot be copied for its average .*TextIOWrapper"): odd_trainer(file)


@pytest.mark.parametrize("wrong, said", [(lambda *_: {"fit": torch.ones(())}, r"losses: got \['fit'\], wanted a dictionary with \"loss\""), (lambda *_: torch.ones(()), "losses: got Tensor"),
                                         (lambda *_: {"loss": torch.ones(())}, "\"loss\" has no gradient"), (lambda n, *_: {"loss": n.layer.weight}, "'loss' is no scalar tensor"),
                                         (lambda n, *_: {"loss": n.layer.weight.sum(), "more": 3}, "'more' is no scalar tensor")])
def test_losses_without_loss_or_without_a_gradient(wrong, said):
    (trainer := odd_trainer(None)).begin(wrong)
    with pytest.raises(ValueError, match=said): run_update(trainer, [next(stream(0))], seed=0)


# -- checkpoints and settings -----------------------------------------------------------------
def trained(out, *words):
    "A run of which nobody wants figures and a report."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lzn_nb.scenarios.base.judged", lambda *given, **options: {"accuracy": 0.5})
        patch.setattr("lzn_nb.scenarios.base.report", lambda run: None)
        assert main(["joint", *WORDS, *words, "--out", str(out)]) == 0


def finished(tmp_path):
    trained(tmp_path / "a")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    return tmp_path / "a" / "checkpoints"


def test_checkpoint_from_another_architecture(tmp_path, capsys):
    folder = finished(tmp_path)
    trained(tmp_path / "b", "--set", "width=16")
    (folder / "00000006.safetensors").write_bytes((tmp_path / "b" / "checkpoints" / "00000006.safetensors").read_bytes())
    capsys.readouterr()
    assert re.search("was begun with other settings: width was 16, is 8; it is .*00000006.safetensors, beside it 00000004.safetensors is whole", complaint(capsys, "--out", tmp_path / "a", "--resume"))


def test_damaged_checkpoint(tmp_path, capsys):
    newest = finished(tmp_path) / "00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100] + bytes(100))
    capsys.readouterr()
    assert re.search("00000006.safetensors is damaged .* 00000004.safetensors is sound: remove 00000006.safetensors to go on", complaint(capsys, "--out", tmp_path / "a", "--resume"))


class Malicious:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.system, (f"touch {self.path}",))


def test_checkpoint_of_something_else_with_a_right_checksum(tmp_path, capsys):
    state = load_checkpoint(finished(tmp_path).parent)
    for spoilt, said in (({}, "step is missing"), ({k: v for k, v in state.items() if k != "average"}, "average is missing"), (state | {"optimizer": {}}, "remembers nothing")):
        save_checkpoint(tmp_path / "a", 6, spoilt, keep=9)
        capsys.readouterr()
        assert re.search(f"{said}.*00000006.safetensors, beside it 00000004.safetensors is whole", complaint(capsys, "--out", tmp_path / "a", "--resume"))


def test_malicious_pickle_given_as_a_checkpoint(tmp_path, capsys):
    torch.save({"step": 9, "network": Malicious(tmp_path / "trap")}, finished(tmp_path) / "00000009.safetensors")
    capsys.readouterr()
    assert "00000009.safetensors is damaged or no safetensors file" in complaint(capsys, "--out", tmp_path / "a", "--resume") and not (tmp_path / "trap").exists()
    with (tmp_path / "a" / "checkpoints" / "00000009.safetensors").open("rb") as file: torch.load(file, weights_only=False)
    assert (tmp_path / "trap").exists()  # the trap is real


def test_resumed_with_other_settings(tmp_path, capsys):
    folder = finished(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "latent_dim was 8, is 9" in complaint(capsys, "--out", tmp_path / "a", "--resume", "--set", "latent_dim=9")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_batches_that_end_early(tmp_path):
    from itertools import islice
    with pytest.raises(ValueError, match="stream: ended after 7 updates"): go(small(), tmp_path, stream=lambda number: islice(stream(number), 7))
    assert saved(tmp_path) == [7]


# -- the list ---------------------------------------------------------------------------------
def test_the_page_lists_these_faults_and_no_others():
    page = json.loads((Path(__file__).parents[1] / "nbs" / "07_training.ipynb").read_text())
    table = next("".join(cell["source"]) for cell in page["cells"] if "## What can go wrong" in "".join(cell["source"]))
    listed = [re.sub(r"\W+", "_", row.split("|")[1].strip().lower()) for row in table.splitlines() if row.startswith("| ") and not row.startswith(("| fault", "|--"))]
    there = [name.removeprefix("test_") for name in globals() if name.startswith("test_") and not name.startswith("test_the_page")]
    assert sorted(listed) == sorted(there) and len(listed) == 29
