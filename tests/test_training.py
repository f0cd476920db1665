"""The loop: a run is a function of settings and seed, what is written stays, and broken numbers stop it."""
import dataclasses
import json
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lzn_nb.training as training
from lzn_nb.training import (TrainConfig, Trainer, averaged, drop_metrics_after, ema_decay, final_figures, get_preset, load_checkpoint,
                             open_run, pick_device, rate_factor, read_metrics, run_update, save_checkpoint, step_generator, train,
                             write_atomically, write_metrics)

GOLDENS = Path(__file__).parent / "goldens"


# -- a small run ------------------------------------------------------------------------------
class Small(nn.Module):
    "Two components, dropout, a buffer that moves with training, and a parameter that no loss reaches."
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(8, 1)
        self.idle = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x))


def small(**changes) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
    config = dataclasses.replace(TrainConfig(steps=40, batch=16, warmup=5, schedule="cosine", ema=0.9, log_every=3, save_every=10), **changes)
    return Trainer(network, config, {"body": (network.body.parameters(), 1e-2), "head": ([*network.head.parameters(), network.idle], 3e-2)})


def stream(step):
    while True:
        x = torch.randn(16, 3, generator=step_generator(5, step))
        yield x, torch.sin(x.sum(1, keepdim=True))
        step += 1


def losses(network, x, y, generator):
    fit = (network(x + 0.1 * torch.randn(x.shape, generator=generator)) - y).square().mean()
    return {"loss": 2 * fit, "fit": fit}


def go(trainer, out, losses=losses, stream=stream, seed=0):
    return train(trainer, losses, stream, out, seed=seed, progress=False)


def same(a, b) -> bool:
    "Equal bit for bit, but for the clock."
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "An uninterrupted run: its folder and its trainer."
    out, trainer = open_run(tmp_path_factory.mktemp("run"), {"seed": 0}), small()
    go(trainer, out)
    return out, trainer


def test_a_run_leaves_lines_and_two_checkpoints(finished):
    out, trainer = finished
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == [*range(3, 40, 3), 40]
    assert all(set(line) == {"step", "loss", "fit", "grad_norm", "seconds"} for line in lines)
    assert [a["seconds"] <= b["seconds"] for a, b in zip(lines, lines[1:])] == [True] * 13
    assert checkpoints(out) == ["00000030.pt", "00000040.pt"]
    assert same(load_checkpoint(out), trainer.state_dict())


def test_training_learns_and_returns_the_average_ready_to_use(tmp_path):
    trainer = small(steps=300, log_every=1)
    network = go(trainer, tmp_path)
    fit = [line["fit"] for line in read_metrics(tmp_path)]
    assert sum(fit[-50:]) < 0.7 * sum(fit[:50])
    assert network is trainer.average.module and not network.training and trainer.network.training
    assert not same(network.state_dict(), trainer.network.state_dict())
    assert network.calls == trainer.network.calls == 300  # buffers are kept in step, not averaged
    assert torch.equal(trainer.network.idle, torch.ones(2))


def test_same_seed_same_run_other_seed_other_run(finished, tmp_path):
    _, trainer = finished
    torch.manual_seed(123)  # what the global generator did before is of no account
    again, other = small(), small()
    go(again, tmp_path / "again")
    go(other, tmp_path / "other", seed=1)
    assert same(again.state_dict(), trainer.state_dict()) and not same(other.state_dict(), trainer.state_dict())


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    go(small(steps=3), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# -- resume -----------------------------------------------------------------------------------
def stopping_at(step, error=KeyboardInterrupt):
    "Losses that fail in update `step`."
    def failing(network, x, y, generator):
        values = losses(network, x, y, generator)
        if generator.initial_seed() == step - 1: raise error  # seed 0: the generator's seed is the number of updates done
        return values
    return failing


@pytest.mark.parametrize("step", [1, 2, 10, 11, 12, 13, 29, 40])
def test_resumed_is_uninterrupted(finished, tmp_path, step):
    whole, reference = finished
    out = open_run(tmp_path, {"seed": 0})
    with pytest.raises(KeyboardInterrupt): go(small(), out, stopping_at(step))
    assert (step == 1) or checkpoints(out)[-1] == f"{step - 1:08d}.pt"  # nothing is lost
    trainer = small()
    network = go(trainer, open_run(tmp_path, {"seed": 0}, resume=True))
    assert same(trainer.state_dict(), reference.state_dict())
    assert same(network.state_dict(), reference.average.module.state_dict())
    assert same(read_metrics(out), read_metrics(whole))


def test_interrupted_again_and_again(finished, tmp_path):
    for step in (4, 5, 18, 33):
        with pytest.raises(RuntimeError, match="night"): go(small(), tmp_path, stopping_at(step, RuntimeError("night")))
    trainer = small()
    go(trainer, tmp_path)
    assert same(trainer.state_dict(), finished[1].state_dict()) and same(read_metrics(tmp_path), read_metrics(finished[0]))


@pytest.mark.filterwarnings("ignore:Seems like")  # PyTorch notices the replaced method
@pytest.mark.parametrize("part", ["optimizer.step", "average.update_parameters"])
def test_an_update_cut_in_half_is_not_saved(finished, tmp_path, part):
    trainer = small()
    owner, name = part.split(".")
    act = getattr(getattr(trainer, owner), name)

    def interrupted(*arguments):
        act(*arguments)
        if trainer.step == 24: raise KeyboardInterrupt

    setattr(getattr(trainer, owner), name, interrupted)
    with pytest.raises(KeyboardInterrupt): go(trainer, tmp_path)
    assert checkpoints(tmp_path) == ["00000010.pt", "00000020.pt"] and read_metrics(tmp_path)[-1]["step"] == 24
    resumed = small()
    go(resumed, tmp_path)
    assert same(resumed.state_dict(), finished[1].state_dict()) and same(read_metrics(tmp_path), read_metrics(finished[0]))


def test_interrupted_between_update_and_its_line(finished, tmp_path, monkeypatch):
    def late(out, **record):
        if record["step"] == 24: raise KeyboardInterrupt
        write_metrics(out, **record)

    monkeypatch.setattr(training, "write_metrics", late)
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path)
    monkeypatch.undo()
    go(small(), tmp_path)
    assert same(read_metrics(tmp_path), read_metrics(finished[0]))  # the line is there, once


def test_killed_without_warning(finished, tmp_path):
    "As after a power cut: lines later than the checkpoint, the last of them cut, and half of a file that was being written."
    whole, reference = finished
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(21))
    text = (whole / "metrics.jsonl").read_text().splitlines(True)
    (tmp_path / "metrics.jsonl").write_text("".join(text[:9]) + text[9][:20])
    (tmp_path / "checkpoints" / ".00000030.pt.part").write_bytes(b"half")
    trainer = small()
    go(trainer, open_run(tmp_path, {}, resume=True) if (tmp_path / "config.json").exists() else tmp_path)
    assert same(trainer.state_dict(), reference.state_dict()) and same(read_metrics(tmp_path), read_metrics(whole))
    assert checkpoints(tmp_path) == ["00000030.pt", "00000040.pt"]


def test_a_finished_run_is_not_trained_further(finished, tmp_path):
    shutil.copytree(finished[0], out := tmp_path / "copy")
    trainer = small()
    network = go(trainer, out, lambda *_: pytest.fail("an update"), lambda step: pytest.fail("a batch"))
    assert same(network.state_dict(), finished[1].average.module.state_dict())
    assert (out / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()


def test_time_adds_up_over_sittings(tmp_path):
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(20))
    state = load_checkpoint(tmp_path)
    state["seconds"] = 1000.0
    save_checkpoint(tmp_path, state["step"], state)
    go(small(), tmp_path)
    seconds = [line["seconds"] for line in read_metrics(tmp_path)]
    assert seconds[5] < 1000 < seconds[6] < seconds[-1]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    go(small(steps=10), tmp_path)
    other = small()
    other.network.head = nn.Linear(9, 1)
    with pytest.raises(ValueError, match="checkpoint: does not fit this network"): go(other, tmp_path)


# -- numbers that break -----------------------------------------------------------------------
def nan_loss(network, x, y, generator):
    values = losses(network, x, y, generator)
    return values if generator.initial_seed() != 24 else values | {"fit": values["fit"] * math.nan, "loss": values["loss"] * math.nan}


def nan_gradient(network, x, y, generator):
    values = losses(network, x, y, generator)
    return values if generator.initial_seed() != 24 else values | {"loss": values["fit"].detach() + (0 * network.head.bias).sqrt().sum()}


@pytest.mark.parametrize("broken, words", [(nan_loss, ["loss is nan", "fit is nan"]), (nan_gradient, ["grad_norm is nan", "gradient of head.bias)"])])
def test_nan_stops_before_anything_moves(finished, tmp_path, broken, words):
    trainer = small()
    with pytest.raises(FloatingPointError, match="^update 25: ") as caught: go(trainer, tmp_path, broken)
    message = str(caught.value)
    assert all(word in message for word in words) and "lower learning rates" in message and "\n" not in message
    assert trainer.step == 24 and checkpoints(tmp_path)[-1] == "00000024.pt"
    assert same(load_checkpoint(tmp_path), trainer.state_dict())
    assert same(read_metrics(tmp_path), read_metrics(finished[0])[:8])  # up to update 24, nothing lost
    with pytest.raises(FloatingPointError, match="^update 25: "): go(small(), tmp_path, broken)  # the same numbers again
    repaired = small()
    go(repaired, tmp_path)
    assert same(repaired.state_dict(), finished[1].state_dict())


def test_infinite_loss_stops_too(tmp_path):
    with pytest.raises(FloatingPointError, match="update 1: loss is inf"):
        go(small(), tmp_path, lambda *a: {"loss": losses(*a)["loss"] * math.inf})
    assert checkpoints(tmp_path) == []  # no update, nothing to save


def test_nan_in_the_data_is_named():
    x, y = next(stream(0))
    x[3, 1] = math.nan
    with pytest.raises(FloatingPointError, match=r"not finite: batch\[0\]"): run_update(small(), losses, (x, y), seed=0)


def test_an_error_about_infinite_numbers_is_a_divergence():
    def diverged(*_): raise ValueError("anchors: row 0 holds NaN or infinity, wanted finite numbers")
    with pytest.raises(FloatingPointError, match="update 1: anchors: .* lower learning rates"): run_update(small(), diverged, next(stream(0)), seed=0)


def test_a_mistake_stays_a_mistake_and_is_not_blamed_on_an_earlier_gradient():
    trainer = small()
    with pytest.raises(FloatingPointError):
        run_update(trainer, lambda n, *_: {"loss": (0 * n.head.bias).sqrt().sum()}, next(stream(0)), seed=0)

    def mistaken(*_): raise ValueError("image: got shape [3]")
    with pytest.raises(ValueError, match=r"^update 1: image: got shape \[3\]$"): run_update(trainer, mistaken, next(stream(0)), seed=0)


# -- one update -------------------------------------------------------------------------------
@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_is_one_norm_over_all_components(clip):
    trainer, plain = small(clip=clip), small()
    x, y = next(stream(0))
    for model in (trainer.network, plain.network): model.eval()
    figures = trainer.update(losses(trainer.network, x, y, step_generator(0, 0)))
    losses(plain.network, x, y, step_generator(0, 0))["loss"].backward()
    raw = torch.cat([p.grad.flatten() for p in plain.network.parameters() if p.grad is not None])
    clipped = torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])
    assert figures["grad_norm"] == pytest.approx(float(raw.norm()), rel=1e-6)  # logged before clipping
    assert torch.allclose(clipped, raw * min(1, clip / float(raw.norm())), rtol=1e-4)


def test_each_component_has_its_rate_times_the_factor():
    trainer = small(warmup=10, schedule="constant")
    rates = []
    for batch, _ in zip(stream(0), range(12)):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        run_update(trainer, losses, batch, seed=0)
    assert np.allclose(rates, [[1e-2 * min(1, k / 10), 3e-2 * min(1, k / 10)] for k in range(1, 13)])


def test_dropout_and_noise_are_other_random_numbers():
    drawn = {}

    def spy(network, x, y, generator):
        drawn["noise"], drawn["global"] = torch.rand(64, generator=generator), torch.rand(64)
        return losses(network, x, y, generator)

    with torch.random.fork_rng(): run_update(small(), spy, next(stream(0)), seed=3)
    assert not torch.isin(drawn["noise"], drawn["global"]).any()


def test_no_two_updates_draw_the_same():
    "PyTorch's generator looks at 32 bits of the seed: a million updates of each of a hundred runs are apart in them."
    first, last = ([step_generator(seed, step).initial_seed() % 2**32 for seed in range(100)] for step in (0, 999_999))
    assert all(b - a == 999_999 for a, b in zip(first, last)) and all(b > a for a, b in zip(last, first[1:]))


# -- schedules --------------------------------------------------------------------------------
def test_published_warmup():
    config = TrainConfig(steps=200_000, batch=2000, warmup=5000)
    assert rate_factor(0, config) == pytest.approx(1 / 5000) and rate_factor(2499, config) == pytest.approx(0.5)
    assert rate_factor(4999, config) == rate_factor(199_999, config) == 1


def test_cosine_falls_from_one_to_zero():
    factors = [rate_factor(k, TrainConfig(steps=100, batch=1, warmup=0, schedule="cosine")) for k in range(101)]
    assert factors[0] == 1 and factors[50] == pytest.approx(0.5) and factors[100] == pytest.approx(0) and factors == sorted(factors, reverse=True)


class TwoTensors(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)


@pytest.mark.parametrize("schedule, restore", [(name, restore) for name in ("d0999999", "d05", "d09_const") for restore in (False, True)])
def test_average_equals_the_published_one(schedule, restore):
    golden = np.load(GOLDENS / "ema.npz", allow_pickle=False)
    first, second = (torch.from_numpy(golden[f"param{i}_seq"]) for i in (0, 1))
    make = lambda: averaged(TwoTensors(first[0].clone(), second[0].clone()), float(golden[f"{schedule}__decay_max"]),
                            warmup=bool(golden[f"{schedule}__use_num_updates"]))
    average = make()
    for k in range(1, len(first)):
        average.update_parameters(TwoTensors(first[k], second[k]))
        if restore:  # through a state dict, counter included
            average, state = make(), average.state_dict()
            average.load_state_dict(state)
        for name, i in (("a", 0), ("b", 1)):
            expected = torch.from_numpy(golden[f"{schedule}__shadow{i}"][k])
            assert torch.allclose(getattr(average.module, name), expected, atol=1e-6, rtol=0), (k, name)
        if bool(golden[f"{schedule}__use_num_updates"]):
            assert ema_decay(k, float(golden[f"{schedule}__decay_max"])) == pytest.approx(float(golden[f"{schedule}__decay"][k - 1]), abs=1e-12)


def test_published_decay_table():
    golden = np.load(GOLDENS / "ema.npz", allow_pickle=False)
    for name, decay in (("09999", 0.9999), ("0999999", 0.999999)):
        expected = [ema_decay(int(k), decay) for k in golden["decay_table_k"]]
        assert np.allclose(expected, golden[f"decay_table_{name}"], atol=1e-12, rtol=0)


# -- presets ----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Fields(TrainConfig):
    rate: float = 1e-3
    mults: tuple[int, ...] = (1, 2)
    sizes: tuple[int, ...] = ()
    flip: bool = False


PRESETS = {"a": Fields(steps=10, batch=2, warmup=0)}


@pytest.mark.parametrize("changes", [{}, {"steps": 3}, {"rate": 1}, {"flip": True}, {"mults": (4,)}, {"mults": [1, 2, 2]}, {"schedule": "cosine"}])
def test_preset_changes_only_what_was_asked(changes):
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    assert dataclasses.asdict(get_preset(PRESETS, "a", **changes)) == dataclasses.asdict(PRESETS["a"]) | expected


@pytest.mark.parametrize("changes, words", [
    ({"stepz": 3}, "preset key: got 'stepz'"), ({"steps": "3"}, "steps: got '3'"), ({"steps": 3.0}, "steps: got 3.0"), ({"steps": True}, "steps: got True"),
    ({"flip": 1}, "flip: got 1"), ({"rate": "1e-3"}, "rate: got '1e-3'"), ({"rate": True}, "rate: got True"), ({"mults": 2}, "mults: got 2"),
    ({"mults": ("a",)}, "mults: got"), ({"mults": [1, 2.5]}, "mults: got"), ({"schedule": None}, "schedule: got None"),
    ({"schedule": "linear"}, "schedule: got 'linear'"), ({"steps": 0}, "steps: got 0"), ({"batch": -1}, "batch: got -1"), ({"warmup": -1}, "warmup"),
    ({"log_every": 0}, "log_every: got 0"), ({"save_every": 0}, "save_every: got 0"), ({"clip": 0.0}, "clip: got 0"), ({"clip": math.nan}, "clip: got nan"),
    ({"ema": 1.5}, "ema: got 1.5"), ({"ema": math.nan}, "ema: got nan")])
def test_wrong_changes_are_named(changes, words):
    with pytest.raises(ValueError, match=words): get_preset(PRESETS, "a", **changes)


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset: got 'b', wanted one of \\['a'\\]"): get_preset(PRESETS, "b")


def test_device():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda", "mps")
    for name in ("cuda:99", "abacus", "", "cpu:x", "cud"):
        with pytest.raises(ValueError, match=f"device: got '{name}'"): pick_device(name)


# -- files ------------------------------------------------------------------------------------
def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, lambda path: path.write_text("old"))

    def failing(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"): write_atomically(file, failing)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_the_new_file_is_complete_when_it_takes_the_place(tmp_path, monkeypatch):
    (file := tmp_path / "a").write_text("old")
    seen, replace = [], os.replace

    def watching(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watching)
    write_atomically(file, lambda path: path.write_text("new"))
    assert seen == [("new", "old")] and file.read_text() == "new"


def test_settings_are_kept_and_compared(tmp_path):
    settings = {"steps": 3, "mults": (1, 2), "name": "ä"}
    out = open_run(tmp_path / "a" / "b", settings)
    assert json.loads((out / "config.json").read_text()) == {"steps": 3, "mults": [1, 2], "name": "ä"}
    assert open_run(out, {"steps": 4}) == out  # nothing logged, nothing saved: no run yet
    open_run(out, settings)
    write_metrics(out, step=1)
    with pytest.raises(ValueError, match="out: .* already holds a run"): open_run(out, settings)
    assert open_run(out, settings, resume=True) == out
    for changed, words in (({"steps": 4}, "steps was 3, is 4"), ({"new": 1}, "new was None, is 1")):
        with pytest.raises(ValueError, match=words): open_run(out, settings | changed, resume=True)
    assert json.loads((out / "config.json").read_text())["steps"] == 3
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match="other settings"): open_run(out, settings, resume=True)


def test_folders_that_cannot_be_written(tmp_path):
    (file := tmp_path / "file").write_text("mine")
    places = [file, file / "below"] + [Path("/proc/nothing/here")] * Path("/proc/self").exists()
    for place in places:
        with pytest.raises(ValueError, match=f"out: cannot write to {place} "): open_run(place, {})
    assert file.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="out: cannot write"): open_run(tmp_path, {})
    tmp_path.chmod(0o700)


def test_metrics_survive_a_cut_line_but_not_a_broken_one(tmp_path):
    assert read_metrics(tmp_path) == [] and final_figures(tmp_path) is None
    for step in (1, 2, 3): write_metrics(tmp_path, step=step, loss=0.1 * step)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    for cut in range(1, len('{"step": 3, "loss": 0.3')):
        file.write_text(whole[:-cut - 1])
        assert [line["step"] for line in read_metrics(tmp_path)] == ([1, 2, 3] if cut == 0 else [1, 2])
    file.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match="line 2 of .*metrics.jsonl"): read_metrics(tmp_path)


def test_later_lines_are_dropped(tmp_path):
    drop_metrics_after(tmp_path, 5)
    for step in (1, 5, 6): write_metrics(tmp_path, step=step)
    with (tmp_path / "metrics.jsonl").open("a") as file: file.write('{"st')
    drop_metrics_after(tmp_path, 5)
    write_metrics(tmp_path, step=6, final=True)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 5, 6] and final_figures(tmp_path)["step"] == 6
    drop_metrics_after(tmp_path, 0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_only_a_cut_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    drop_metrics_after(tmp_path, 0)
    write_metrics(tmp_path, step=1)
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_the_newest_checkpoints_are_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (9, 10, 100): save_checkpoint(tmp_path, step, {"step": step, "x": torch.ones(2) * step})
    assert checkpoints(tmp_path) == ["00000010.pt", "00000100.pt"]
    assert same(load_checkpoint(tmp_path), {"step": 100, "x": torch.ones(2) * 100})


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"no checkpoint at all" * 40, lambda b: b[:100] + b"x" * 50 + b[150:]])
def test_a_damaged_newest_checkpoint_is_named(tmp_path, damage):
    trainer = small(steps=20)
    go(trainer, tmp_path)
    newest = tmp_path / "checkpoints" / "00000020.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint: .*00000020.pt is damaged.* remove it to go on from 00000010.pt") as caught: go(small(steps=20), tmp_path)
    assert "\n" not in str(caught.value)
    newest.unlink()  # as it says
    resumed = small(steps=20)
    go(resumed, tmp_path)
    assert same(resumed.state_dict(), trainer.state_dict())


class Malicious:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("write", [lambda state, path: torch.save(state, path), lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2)),
                                   lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, write):
    state, trap = small().state_dict(), tmp_path / "trap"
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "00000001.pt"
    write(state | {"extra": Malicious(trap)}, path)
    with pytest.raises(ValueError, match="checkpoint: .*00000001.pt .*holds more than tensors.* remove it to start anew"): go(small(), tmp_path)
    assert not trap.exists()
    with path.open("rb") as file:  # the trap is real: unpickled without care it springs
        try: torch.load(file, weights_only=False)
        except Exception: pass
    assert trap.exists()
