"""The loop: a run is a function of settings and seed, what is written stays, and broken numbers are left out."""
import dataclasses
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lzn_nb.runs as runs
import lzn_nb.training as training
from lzn_nb.checkpoints import checkpoint_paths, load_checkpoint, save_checkpoint
from lzn_nb.parallel import in_pieces
from lzn_nb.runs import final_figures, open_run, read_metrics
from lzn_nb.training import (Average, Component, StopRequest, Terminated, TrainConfig, Trainer, ema_decay, explain_fields, get_preset, load_weights,
                             in_words, pick_device, plan_run, plan_size, rate_factor, run_update, seed_everything, step_generator, train)

GOLDENS = Path(__file__).parent / "goldens"
CLOCKS = ("seconds", "images_per_second", "memory_gb")


# -- a small run ------------------------------------------------------------------------------
class Small(nn.Module):
    "Two components, dropout, a buffer that moves with training, a parameter that no loss reaches, and one that belongs to no component."
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(8, 1)
        self.head.idle = nn.Parameter(torch.ones(2))
        self.fixed = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x)) * self.fixed


def small(parts=None, **changes) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
    config = dataclasses.replace(TrainConfig(steps=40, batch=16, warmup=5, schedule="cosine", ema=0.9, log_every=3, save_every=10), **changes)
    return Trainer(network, config, {"body": Component(network.body, 1e-2, **(parts or {}).get("body", {})), "head": Component(network.head, 3e-2, **(parts or {}).get("head", {}))})


def stream(number, size=16):
    while True:
        x = torch.randn(size, 3, generator=step_generator(5, number))
        yield x, torch.sin(x.sum(1, keepdim=True))
        number += 1


def losses(network, x, y, generator):
    "Noise from the generator that is given, and from every global one."
    shift = 0.01 * (torch.randn(()) + random.gauss(0, 1) + np.random.randn())
    fit = (network(x + 0.1 * torch.randn(x.shape, generator=generator)) - y + shift).square().mean()
    return {"loss": 2 * fit, "fit": fit}


def go(trainer, out, losses=losses, stream=stream, seed=0, **more):
    return train(trainer, losses, stream, out, seed=seed, progress=False, **more)


def same(a, b) -> bool:
    "Equal bit for bit, but for the clocks."
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in CLOCKS)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def saved(out): return [int(path.stem) for path in checkpoint_paths(out)]


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
    assert all(set(line) == {"step", "loss", "fit", "grad_norm", "skipped", *CLOCKS} for line in lines)
    assert [a["seconds"] <= b["seconds"] for a, b in zip(lines, lines[1:])] == [True] * 13
    assert saved(out) == [30, 40] and same({key: value for key, value in load_checkpoint(out).items() if key != "settings"}, trainer.state_dict())
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.json", "environment.jsonl", "metrics.jsonl"]


def test_training_learns_and_returns_the_average_ready_to_use(tmp_path):
    trainer = small(steps=300, log_every=1)
    network = go(trainer, tmp_path)
    fit = [line["fit"] for line in read_metrics(tmp_path)]
    assert sum(fit[-50:]) < 0.8 * sum(fit[:50])
    assert network is trainer.average.module and not network.training and trainer.network.training
    assert not same(network.state_dict(), trainer.network.state_dict())
    assert network.calls == trainer.network.calls == 300  # buffers are kept in step, not averaged
    assert torch.equal(trainer.network.head.idle, torch.ones(2)) and torch.equal(trainer.network.fixed, torch.ones(1))
    other = Small()
    load_weights(other, load_checkpoint(tmp_path)["average"])
    assert same(other.state_dict(), network.state_dict())
    with pytest.raises(ValueError, match="checkpoint: does not fit this network"): load_weights(nn.Linear(1, 1), load_checkpoint(tmp_path)["average"])


def test_same_seed_same_run_other_seed_other_run(finished, tmp_path):
    _, trainer = finished
    torch.manual_seed(123)  # what the global generator did before is of no account
    again, other = small(), small()
    go(again, tmp_path / "again")
    go(other, tmp_path / "other", seed=1)
    assert same(again.state_dict(), trainer.state_dict()) and not same(other.state_dict(), trainer.state_dict())


def test_the_global_generators_are_left_alone(tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    go(small(steps=3), tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]


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
    assert saved(out)[-1:] == ([step - 1] if step > 1 else [])  # nothing is lost
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
    assert (tmp_path / "environment.jsonl").read_text().count("\n") == 5  # sittings


@pytest.mark.parametrize("part", ["stepper.step", "average.update"])
def test_an_update_cut_in_half_is_not_saved(finished, tmp_path, part):
    trainer = small()
    trainer.begin(losses)
    owner, name = part.split(".")
    cls = type(getattr(trainer, owner))

    def interrupted(self, *arguments):
        act(self, *arguments)
        if trainer.step == 23: raise KeyboardInterrupt

    act = getattr(cls, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, name, interrupted)
        with pytest.raises(KeyboardInterrupt): go(trainer, tmp_path)
    assert saved(tmp_path) == [10, 20] and read_metrics(tmp_path)[-1]["step"] == 21
    resumed = small()
    go(resumed, tmp_path)
    assert same(resumed.state_dict(), finished[1].state_dict()) and same(read_metrics(tmp_path), read_metrics(finished[0]))


def test_interrupted_between_update_and_its_line(finished, tmp_path, monkeypatch):
    "The line that was due is written when the run goes on."
    write = runs.write_metrics

    def late(out, **record):
        if record.get("step") == 24: raise KeyboardInterrupt
        write(out, **record)

    monkeypatch.setattr(runs, "write_metrics", late)
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path)
    monkeypatch.undo()
    assert saved(tmp_path)[-1] == 24
    go(small(), tmp_path)
    lines, whole = read_metrics(tmp_path), read_metrics(finished[0])
    assert [line["step"] for line in lines] == [line["step"] for line in whole] and same(lines, whole)
    assert same(load_checkpoint(tmp_path), load_checkpoint(finished[0]))


@pytest.mark.parametrize("when", [20, 40])
def test_an_evaluation_that_fails_is_made_up_for(tmp_path, when):
    "Twice in a row, in the middle and at the very end: no evaluation and no line is lost."
    settings, score = dict(log_every=10, eval_every=20), lambda network: {"score": float(network.head.weight.detach().sum())}
    train(small(**settings), losses, stream, tmp_path / "whole", seed=3, progress=False, evaluate=score)
    def failing(network):
        if trainer.step == when: raise RuntimeError("no room on the GPU")
        return score(network)
    for _ in range(2):
        trainer = small(**settings)
        with pytest.raises(RuntimeError, match="no room on the GPU"): train(trainer, losses, stream, tmp_path / "torn", seed=3, progress=False, evaluate=failing)
        assert saved(tmp_path / "torn")[-1] == when
    for _ in range(2): train(small(**settings), losses, stream, tmp_path / "torn", seed=3, progress=False, evaluate=score)
    assert same(read_metrics(tmp_path / "torn"), read_metrics(tmp_path / "whole")) and [line["step"] for line in read_metrics(tmp_path / "torn")] == [10, 20, 30, 40]
    assert same(load_checkpoint(tmp_path / "torn"), load_checkpoint(tmp_path / "whole"))


def test_a_run_goes_on_with_its_own_seed_and_settings_only(tmp_path):
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(21))
    with pytest.raises(ValueError, match="out: .* was begun with other settings: clip was 1.0, is 0.1; it is "): go(small(clip=0.1), tmp_path)
    with pytest.raises(ValueError, match="seed was 0, is 4"): train(small(), losses, stream, tmp_path, seed=4, progress=False)
    go(small(keep=1, save_every=40, max_skipped=3), tmp_path)
    assert saved(tmp_path) == [40]


def test_a_score_that_is_nan_is_never_the_best(tmp_path):
    scores = iter([math.nan, 1.0, math.nan, 0.5])
    train(trainer := small(eval_every=10), losses, stream, tmp_path, seed=3, progress=False, evaluate=lambda network: {"score": next(scores)})
    assert trainer.best == {"step": 20, "score": 1.0}


def test_killed_without_warning(finished, tmp_path):
    "As after a power cut: lines later than the checkpoint, the last of them cut, and half of a file that was being written."
    whole, reference = finished
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(21))
    text = (whole / "metrics.jsonl").read_text().splitlines(True)
    (tmp_path / "metrics.jsonl").write_text("".join(text[:9]) + text[9][:20])
    (tmp_path / "checkpoints" / ".00000030.safetensors.part").write_bytes(b"half")
    trainer = small()
    go(trainer, tmp_path)
    assert same(trainer.state_dict(), reference.state_dict()) and same(read_metrics(tmp_path), read_metrics(whole))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000030.safetensors", "00000040.safetensors"]


def test_a_finished_run_is_not_trained_further(finished, tmp_path):
    shutil.copytree(finished[0], out := tmp_path / "copy")
    trainer = small()
    network = go(trainer, out, lambda *_: pytest.fail("an update"), lambda step: pytest.fail("a batch"))
    assert same(network.state_dict(), finished[1].average.module.state_dict())
    assert (out / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()


def test_time_adds_up_over_sittings(tmp_path):
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(20))
    state = load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, state["step"], state | {"seconds": 1000.0})
    go(small(), tmp_path)
    seconds = [line["seconds"] for line in read_metrics(tmp_path)]
    assert seconds[5] < 1000 < seconds[6] < seconds[-1] < 1100


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt): go(small(), tmp_path, stopping_at(21))
    other = small()
    other.network.head = nn.Linear(9, 1)
    with pytest.raises(ValueError, match="checkpoint: does not fit this network"): go(other, tmp_path)


def test_a_stream_that_ends_is_named(tmp_path):
    from itertools import islice
    with pytest.raises(ValueError, match="stream: ended after 7 updates, wanted batches for 40"): go(small(), tmp_path, stream=lambda number: islice(stream(number), 7))
    assert saved(tmp_path) == [7]


# -- killed, by the system --------------------------------------------------------------------
SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_training as t
import lzn_nb.runs as runs
if {slow}:  # more time in the middle of writing a checkpoint
    replace = runs.os.replace
    def slowly(*a): time.sleep({slow}); replace(*a)
    runs.os.replace = slowly
def losses(*a):
    time.sleep(0.004)
    return t.losses(*a)
t.go(t.small(save_every=2, log_every=1), {out!r}, losses)
"""


def child(out, slow=0.0):
    source = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), slow=slow)
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A run of its own process from start to end: its folder."
    out = tmp_path_factory.mktemp("undisturbed")
    process = child(out)
    assert process.communicate(timeout=120) and process.returncode == 0
    return out


def wait_for(out, step, process):
    deadline = time.monotonic() + 100
    while (not saved(out) or saved(out)[-1] < step) and time.monotonic() < deadline and process.poll() is None: time.sleep(0.001)


def being_written(out): return any((out / "checkpoints").glob(".*.part"))


@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_kill_9_at_random_moments(undisturbed, tmp_path, slow):
    "Killed three times, with `slow` in the middle of writing a checkpoint; resumed each time: bit for bit the run that nobody disturbed."
    moments, halves = random.Random(int(100 * slow)), 0
    for until in (6, 16, 26):
        process = child(tmp_path, slow)
        wait_for(tmp_path, until, process)
        while slow and not being_written(tmp_path) and process.poll() is None: pass
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and saved(tmp_path)[-1] < 40
        halves += being_written(tmp_path)
    assert halves if slow else True
    process = child(tmp_path)
    assert process.communicate(timeout=120) and process.returncode == 0
    assert same(load_checkpoint(tmp_path), load_checkpoint(undisturbed)) and same(read_metrics(tmp_path), read_metrics(undisturbed))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000038.safetensors", "00000040.safetensors"]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_finishes_the_update_and_saves(undisturbed, tmp_path, number, status):
    process = child(tmp_path)
    wait_for(tmp_path, 10, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (status, -number) and (("Traceback" in err) == (number == signal.SIGINT))
    assert saved(tmp_path)[-1] == read_metrics(tmp_path)[-1]["step"] < 40
    process = child(tmp_path)
    assert process.communicate(timeout=120) and process.returncode == 0
    assert same(load_checkpoint(tmp_path), load_checkpoint(undisturbed)) and same(read_metrics(tmp_path), read_metrics(undisturbed))


def test_a_second_ctrl_c_acts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is before and Terminated().code == 143


def test_training_in_a_thread_hears_no_signals(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool: pool.submit(go, small(steps=3), tmp_path).result()
    assert saved(tmp_path) == [3]


# -- numbers that break -----------------------------------------------------------------------
def nan_loss(network, x, y, generator): return {name: value * math.nan for name, value in losses(network, x, y, generator).items()}
def inf_loss(network, x, y, generator): return losses(network, x, y, generator) | {"loss": 0 * network.head.bias.sum() + math.inf}
def nan_gradient(network, x, y, generator):
    values = losses(network, x, y, generator)
    return values | {"loss": values["fit"].detach() + (0 * network.head.bias).sqrt().sum()}


def breaking(broken, first, last):
    return lambda *given: (broken if first <= given[-1].initial_seed() + 1 <= last else losses)(*given)


@pytest.mark.parametrize("broken", [nan_loss, inf_loss, nan_gradient])
def test_an_update_that_is_not_finite_is_left_out_and_counted(tmp_path, broken):
    trainer, before = small(log_every=1), {}

    def watching(*given):
        before[given[-1].initial_seed()] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat(trainer.state_dict()).items()}
        return breaking(broken, 25, 27)(*given)

    go(trainer, tmp_path, watching)
    for later in (25, 26, 27):  # before update 26 … 28 everything is as it was before update 25, but the counts
        changed = {name for name, value in before[later].items() if not same(value, before[24][name])}
        assert changed == {"step", "skipped"}, changed
    assert before[27]["skipped"].tolist() == [3, 3] and trainer.skipped.tolist() == [3, 0] and trainer.step == 40
    assert [line["skipped"] for line in read_metrics(tmp_path)][23:29] == [0, 1, 2, 3, 3, 3]
    assert all(p.isfinite().all() for p in trainer.average.module.parameters())


def flat(state, path=""):
    if not isinstance(state, dict): return {path: state}
    return {name: value for key, part in state.items() if key not in CLOCKS for name, value in flat(part, f"{path}.{key}" if path else key).items()}


@pytest.mark.parametrize("broken, word", [(nan_loss, "gradient of body.0.weight"), (nan_gradient, "not finite: gradient of head.bias)")])
def test_after_too_many_in_a_row_training_stops_with_a_diagnosis(finished, tmp_path, broken, word):
    trainer = small(max_skipped=4)
    with pytest.raises(FloatingPointError, match="^update 28: loss or gradient was not finite 4 times in a row") as caught: go(trainer, tmp_path, breaking(broken, 25, 99))
    message = str(caught.value)
    assert word in message and "lower learning rates" in message and "\n" not in message
    assert saved(tmp_path)[-1] == 28 and all(p.isfinite().all() for p in load_checkpoint(tmp_path)["network"].values())
    with pytest.raises(FloatingPointError, match="^update 29: .* 5 times in a row"): go(small(max_skipped=4), tmp_path, breaking(broken, 25, 99))  # resumed: again


def test_nan_in_the_data_is_named(tmp_path):
    def holes(number):
        for x, y in stream(number): yield x.index_fill(0, torch.tensor(3), math.nan), y
    with pytest.raises(FloatingPointError, match=r"update 2: .* 2 times in a row \(not finite: batch\[0\]"): go(small(max_skipped=2), tmp_path, stream=holes)


def test_an_error_about_infinite_numbers_is_a_divergence():
    from lzn_nb.zones import LatentZones
    def diverged(*_): LatentZones(torch.full((2, 2), math.inf))
    (trainer := small()).begin(diverged)
    with pytest.raises(FloatingPointError, match="update 1: anchors: .* lower learning rates"): run_update(trainer, [next(stream(0))], seed=0)


def test_a_mistake_stays_a_mistake_and_is_not_blamed_on_an_earlier_gradient():
    trainer = small()
    trainer.begin(nan_gradient)
    run_update(trainer, [next(stream(0))], seed=0)

    def mistaken(network, *_):
        network.calls += 1
        raise ValueError("image: got shape [3], wanted finite dimensions")
    trainer.begin(mistaken)
    with pytest.raises(ValueError, match=r"^update 2: image: got shape \[3\]"): run_update(trainer, [next(stream(0))], seed=0)
    assert trainer.network.calls == 0  # of an update left out, and of one that failed


# -- one update -------------------------------------------------------------------------------
@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_is_one_norm_over_all_components(clip):
    trainer, plain = small(clip=clip), small()
    trainer.begin(losses)
    for model in (trainer.network, plain.network): model.eval()
    (x, y), _ = next(stream(0)), seed_everything(0, 0)
    figures = trainer.update([(x, y)], step_generator(0, 0))
    seed_everything(0, 0)
    losses(plain.network, x, y, step_generator(0, 0))["loss"].backward()
    raw = torch.cat([p.grad.flatten() for p in plain.network.parameters() if p.grad is not None])
    clipped = torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])
    assert float(figures["grad_norm"]) == pytest.approx(float(raw.norm()), rel=1e-6)  # logged before clipping
    assert torch.allclose(clipped, raw * min(1, clip / float(raw.norm())), rtol=1e-4)


def test_each_component_has_its_rate_schedule_and_warmup():
    trainer = small({"head": {"schedule": "cosine", "warmup": 0, "budget": 8}}, warmup=10, schedule="constant")
    trainer.begin(losses)
    rates = []
    for batch, _ in zip(stream(0), range(12)):
        run_update(trainer, [batch], seed=0)
        rates.append({group["name"]: group["lr"] for group in trainer.optimizer.param_groups})
    assert np.allclose([r["body"] for r in rates], [1e-2 * min(1, k / 10) for k in range(1, 13)])
    assert np.allclose([r["head"] for r in rates[:8]], [3e-2 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])
    assert all(set(r) == {"body"} for r in rates[8:])


def test_a_component_is_frozen_after_its_budget(tmp_path):
    trainer, weights = small({"head": {"budget": 12}}), []

    def watching(network, *given):
        weights.append([p.detach().clone() for p in (*network.head.parameters(), *network.body.parameters())])
        return losses(network, *given)

    go(trainer, tmp_path, watching)
    head = len(list(trainer.network.head.parameters()))
    assert not same(weights[11][:1], weights[12][:1]) and all(same(weights[12][:head], later[:head]) for later in weights[13:])
    assert all(not same(a[head:], b[head:]) for a, b in zip(weights, weights[1:]))
    assert all(p.grad is None and not p.requires_grad and p not in trainer.optimizer.state for p in trainer.network.head.parameters())
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["body"] and not [n for n in load_checkpoint(tmp_path)["optimizer"] if n.startswith("head")]
    for name, p in trainer.average.module.head.named_parameters(): assert not torch.equal(p, dict(trainer.network.head.named_parameters())[name]) or name == "idle"  # its average stays, too


@pytest.mark.parametrize("step", [5, 12, 13, 14])
def test_resumed_around_the_end_of_a_budget(tmp_path, step):
    "Stopped within an update, and between two."
    budget = {"head": {"budget": 12}}
    whole, resumed = small(budget), small(budget)
    go(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt): go(small(budget), tmp_path / "stopped", stopping_at(step))
    go(resumed, tmp_path / "stopped")
    assert same(whole.state_dict(), resumed.state_dict())
    with pytest.raises(ValueError, match="ended after"): go(small(budget), tmp_path / "between", stream=lambda k: islice(stream(k), step))
    assert saved(tmp_path / "between")[-1] == step
    go(resumed := small(budget), tmp_path / "between")
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_trainer_goes_back_over_the_end_of_a_budget(tmp_path):
    "The checkpoint is from before, the trainer from behind it: what was frozen trains again."
    budget = {"head": {"budget": 12}}
    go(whole := small(budget), tmp_path / "whole")
    with pytest.raises(ValueError, match="ended after"): go(trainer := small(budget), tmp_path / "a", stream=lambda k: islice(stream(k), 25))
    for path in checkpoint_paths(tmp_path / "a"):
        if path.stem != "00000010": path.unlink()
    save_checkpoint(tmp_path / "a", 10, checkpoint_of(small(budget), tmp_path / "b", 10))
    go(trainer, tmp_path / "a")
    assert same(whole.state_dict(), trainer.state_dict())


def checkpoint_of(trainer, out, step):
    with pytest.raises(ValueError, match="ended after"): go(trainer, out, stream=lambda k: islice(stream(k), step))
    return load_checkpoint(out)


def test_statistics_of_a_frozen_part_come_to_rest():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    trainer = Trainer(network, TrainConfig(steps=9, batch=16, warmup=0), {"first": Component(network[:2], 1e-2, 3), "last": Component(network[2], 1e-2)})
    trainer.begin(lambda network, x, y, generator: {"loss": (network(x) - y).square().mean()})
    seen, batches = [], stream(0)
    for _ in range(6):
        run_update(trainer, [next(batches)], 0)
        seen.append([b.clone() for b in network[1].buffers()])
    assert not all(map(torch.equal, seen[1], seen[2])) and all(map(torch.equal, seen[2], seen[5]))


def test_budgets_that_all_end_before_the_run():
    with pytest.raises(ValueError, match="components: all budgets end before the 40 updates"): small({"head": {"budget": 12}, "body": {"budget": 39}})


def test_accumulated_parts_give_their_mean_gradient():
    "Where samples do not know of each other, parts of a batch are the batch."
    plain = lambda network, x, y, generator: {"loss": (network(x) - y).square().mean()}
    found = []
    for parts in (1, 4):
        trainer = small(accumulate=parts)
        trainer.begin(plain)
        trainer.network.eval()
        x, y = next(stream(0))
        figures = trainer.update(list(zip(x.chunk(parts), y.chunk(parts))), step_generator(0, 0))
        found.append([figures["loss"], figures["grad_norm"], *trainer.network.parameters()])
    for a, b in zip(*found): torch.testing.assert_close(a, b)
    assert small(accumulate=4).config.zone_batch == 4


def test_accumulated_and_resumed(tmp_path):
    quarter = lambda number: stream(number, 4)
    whole, resumed = small(accumulate=4), small(accumulate=4)
    go(whole, tmp_path / "whole", stream=quarter)
    calls = []

    def failing(*given):
        calls.append(1)
        if len(calls) == 4 * 17 + 3: raise KeyboardInterrupt  # in the middle of an update
        return losses(*given)

    with pytest.raises(KeyboardInterrupt): go(small(accumulate=4), tmp_path / "stopped", failing, quarter)
    assert saved(tmp_path / "stopped")[-1] == 17
    go(resumed, tmp_path / "stopped", stream=quarter)
    assert same(whole.state_dict(), resumed.state_dict())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a compiler")
def test_compiled_networks_compute_the_same(finished, tmp_path):
    changes = dict(compile=True, steps=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        whole, plain = small(**changes), small(steps=12)
        for trainer in (whole, plain): trainer.network.body[2].p = 0.0  # the compiler has random numbers of its own
        go(whole, tmp_path / "compiled")
    go(plain, tmp_path / "plain")
    compiled = lambda trainer: [part.module._compiled_call_impl is not None for part in trainer.components.values()]
    assert all(compiled(whole)) and not any(compiled(plain))
    for (name, a), b in zip(whole.network.state_dict().items(), plain.network.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    assert load_checkpoint(tmp_path / "compiled")["network"].keys() == load_checkpoint(tmp_path / "plain")["network"].keys()


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}])
def test_other_ways_of_computing_resume_exactly_too(tmp_path, changes):
    whole, resumed = small(**changes), small(**changes)
    go(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt): go(small(**changes), tmp_path / "stopped", stopping_at(17))
    go(resumed, tmp_path / "stopped")
    assert same(whole.state_dict(), resumed.state_dict())
    assert all(p.dtype == torch.float32 for p in whole.network.parameters())


def test_channels_last_is_how_weights_lie_in_memory():
    from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_network, joint_trainer
    for wanted in (False, True):
        trainer = joint_trainer(dataclasses.replace(JOINT_PRESETS["tiny"], channels_last=wanted), (1, 8, 8), 4, 0, torch.device("cpu"))
        trainer.begin(losses)
        kernels = [p for p in trainer.network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) == wanted for p in kernels)


def test_bf16_is_used_in_the_networks_and_not_in_the_state(tmp_path):
    seen = []

    def watching(network, x, y, generator):
        seen.append(network.body[0](x).dtype)
        return losses(network, x, y, generator)

    go(small(steps=1, precision="bf16"), tmp_path / "a", watching)
    go(small(steps=1), tmp_path / "b", watching)
    assert seen == [torch.bfloat16, torch.float32]


def test_precisions_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="precision: got 'fp16' on a CPU"): small(precision="fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision: got 'no', but accelerate launch says 'bf16'"): small()
    assert small(precision="bf16").accelerator.mixed_precision == "bf16"


def test_trackers_get_the_figures(tmp_path):
    with pytest.raises(ValueError, match="track: got 'notebook', wanted one of"): small(track="notebook")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    go(small(track="tensorboard"), tmp_path, final=lambda network: {"accuracy": 0.75, "device": "cpu"})
    (events,) = tmp_path.rglob("events.out*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in found.Scalars("fit")] == [(line["step"], line["fit"]) for line in read_metrics(tmp_path)[:-1]]
    assert [(e.step, e.value) for e in found.Scalars("final_accuracy")] == [(40, 0.75)]


def test_the_end_of_a_run_is_judged_once_and_made_up_for(tmp_path):
    "An end that breaks is made up for on resuming, from the checkpoint, with the very network; and then never again."
    seen = []

    def judge(network):
        seen.append([p.clone() for p in network.parameters()])
        if len(seen) == 1: raise OSError("no judge today")
        return {"accuracy": 0.5}

    with pytest.raises(OSError, match="no judge"): go(small(), tmp_path, final=judge)
    assert saved(tmp_path)[-1] == 40 and not final_figures(tmp_path)
    network = go(small(), tmp_path, final=judge)
    assert len(seen) == 2 and all(map(torch.equal, seen[0], seen[1])) and all(map(torch.equal, seen[0], network.parameters()))
    assert {key: final_figures(tmp_path)[key] for key in ("final", "step", "accuracy")} == {"final": True, "step": 40, "accuracy": 0.5} and final_figures(tmp_path)["wall_seconds"] > 0


def test_dropout_and_noise_are_other_random_numbers():
    drawn = {}

    def spy(network, x, y, generator):
        drawn["noise"], drawn["global"] = torch.rand(64, generator=generator), torch.rand(64)
        return losses(network, x, y, generator)

    (trainer := small()).begin(spy)
    with torch.random.fork_rng(): run_update(trainer, [next(stream(0))], seed=3)
    assert not torch.isin(drawn["noise"], drawn["global"]).any()


def test_ranks_have_dropout_of_their_own():
    drawn = []
    for rank in range(4):
        with torch.random.fork_rng():
            seed_everything(3, 7, rank)
            drawn.append(torch.rand(64))
    assert len({tuple(row.tolist()) for row in drawn}) == 4


def test_no_two_updates_draw_the_same():
    "PyTorch's generator looks at 32 bits of the seed: a million updates of each of a hundred runs are apart in them."
    first, last = ([step_generator(seed, step).initial_seed() % 2**32 for seed in range(100)] for step in (0, 999_999))
    assert all(b - a == 999_999 for a, b in zip(first, last)) and all(b > a for a, b in zip(last, first[1:]))


# -- evaluation, the best, a full disk --------------------------------------------------------
def test_the_best_checkpoint_stays(finished, tmp_path):
    scores = {8: 0.1, 16: 0.7, 24: 0.3, 32: 0.7, 40: 0.2}
    trainer = small(eval_every=8)
    go(trainer, tmp_path, evaluate=lambda network: {"score": scores[trainer.step], "error": float(not network.training)})
    assert saved(tmp_path) == [16, 30, 40] and trainer.best == {"step": 16, "score": 0.7}
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert [lines[step]["valid_score"] for step in scores] == list(scores.values()) and lines[8]["valid_error"] == 1.0 and "valid_score" not in lines[9]
    assert same(load_checkpoint(tmp_path)["network"], finished[1].state_dict()["network"])  # looking changes nothing
    assert load_checkpoint(tmp_path, step=16)["step"] == 16 and load_checkpoint(tmp_path)["best"]["step"] == 16


def test_the_best_is_remembered_over_a_resume(tmp_path):
    scores = {8: 0.1, 16: 0.7, 24: 0.3, 32: 0.6, 40: 0.2}
    for step in (20, None):
        trainer = small(eval_every=8)
        evaluate = lambda network: {"score": scores[trainer.step]}
        if step is None: go(trainer, tmp_path, evaluate=evaluate)
        else:
            with pytest.raises(KeyboardInterrupt): go(trainer, tmp_path, stopping_at(step), evaluate=evaluate)
    assert saved(tmp_path) == [16, 30, 40] and trainer.best["step"] == 16


def test_a_full_disk_does_not_stop_training(finished, tmp_path, monkeypatch):
    "Checkpoints cannot be written from update 20 to 30: told, the old one stays, and the next one is there again."
    write = training.save_checkpoint

    def full(out, step, *more):
        if 20 <= step <= 30: raise OSError(28, "No space left on device")
        return write(out, step, *more)

    monkeypatch.setattr(training, "save_checkpoint", full)
    trainer = small()
    with pytest.warns(UserWarning, match="checkpoint: cannot write that of update .* \\(No space left on device\\); training goes on, the newest one is that of update 10") as told: go(trainer, tmp_path)
    assert len([w for w in told if "checkpoint" in str(w.message)]) == 2 and saved(tmp_path) == [10, 40]
    assert same(trainer.state_dict(), finished[1].state_dict())


def test_a_plan_is_measured_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    plan = plan_run(small(), losses, stream)
    assert plan["training, without evaluations [s]"] == pytest.approx(plan["first update [s]"] + 39 * plan["update [s]"], abs=0.06) and plan["peak memory [MB]"] > 50
    assert not list(tmp_path.iterdir()) and torch.equal(torch.get_rng_state(), before)


def test_a_plan_reckons_with_budgets(monkeypatch):
    "Seconds are made up: an update takes as many as there are components that train."
    monkeypatch.setattr(training, "timed_update", lambda trainer, *more: (run_update(trainer, [next(stream(0))], 0), sum(part.trains(trainer.step - 1) for part in trainer.components.values()))[1])
    plan = plan_run(small({"body": {"budget": 30}}), losses, stream)
    assert plan["update [s]"] == 2 and plan["update from 31 on [s]"] == 1 and plan["training, without evaluations [s]"] == 2 * 30 + 10 and plan["that is"] == "1 min 10 s"
    assert [in_words(s) for s in (5.2, 3600 * 5 + 120, 86400 * 3 + 3600 * 2)] == ["0 min 5 s", "5 h 2 min", "3 d 2 h"]


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])


def test_a_plan_knows_the_memory_before_anything_is_computed():
    "Of each layer, the output of its tanh is kept for the way back, that of its linear map dies: 8 tables [1000,64], and at the peak the square and two derivatives."
    def make():
        network = Layers()
        return network, {"layers": Component(network.layers, 1e-3)}, (torch.empty(1000, 64),)

    config = TrainConfig(steps=50, batch=1000, warmup=0, save_every=20)
    plan = plan_size(config, make, lambda network, x, generator: {"loss": network.layers(x).square().sum()})
    numbers, table = 8 * 65 * 64, 4 * 64_000 / 1e6
    assert plan["parameters of layers"] == numbers and plan["updates"] == 50 and plan["samples an update"] == 1000 and plan["checkpoints"] == 3
    assert plan["weights, Adam, average [MB]"] == round(16 * numbers / 1e6, 2) and plan["a checkpoint [MB]"] == round(16 * numbers / 1e6, 2)
    assert 8 * table < plan["activations, zones, gradients [MB]"] < 11.5 * table
    gradients = 4 * numbers / 1e6
    half = plan_size(config, make, lambda network, x, generator: {"loss": network.layers(x).square().sum()}, ranks=2)
    assert half["activations, zones, gradients [MB]"] == pytest.approx((plan["activations, zones, gradients [MB]"] + gradients) / 2, abs=0.01) and half["ranks"] == 2
    pieces = plan_size(config, make, lambda network, x, generator: {"loss": in_pieces(network.layers, 100, x).square().sum()})
    assert 2 * table < pieces["activations, zones, gradients [MB]"] < 4.5 * table  # the whole output and its derivative, and a tenth of the rest


@pytest.mark.parametrize("spoil, said", [
    (lambda s: {}, "step is missing"), (lambda s: s | {"step": "x"}, "update x"), (lambda s: s | {"network": [1]}, "network is "), (lambda s: s | {"best": 3}, "best is '3'"),
    (lambda s: {k: v for k, v in s.items() if k != "average"}, "average is missing"), (lambda s: s | {"skipped": "no"}, "not fit"), (lambda s: s | {"settings": "mine"}, "settings"),
    (lambda s: s | {"optimizer": {k: {n: v[..., :1] if v.ndim else v for n, v in m.items()} for k, m in s["optimizer"].items()}}, "remembers of .* does not belong"),
    (lambda s: s | {"optimizer": {}}, "remembers nothing"), (lambda s: s | {"step": -5}, "update -5"), (lambda s: s | {"step": 41}, "update 41"),
    (lambda s: s | {"network": {k: v.half() if v.is_floating_point() else v for k, v in s["network"].items()}}, "torch.float16"),
    (lambda s: s | {"network": {k: v for k, v in s["network"].items() if k != "fixed"}}, "fixed"), (lambda s: s | {"network": s["network"] | {"more": torch.ones(1)}}, "more")])
def test_whole_checkpoints_of_something_else_are_refused_by_name(finished, tmp_path, spoil, said):
    "Their checksum is right, what they hold is not."
    state = load_checkpoint(finished[0])
    save_checkpoint(tmp_path, 30, state | {"step": 30})
    save_checkpoint(tmp_path, 40, spoil(state))
    with pytest.raises(ValueError, match=said) as told: go(small(), tmp_path)
    assert re.search("00000040.safetensors.* 00000030.safetensors is (whole|sound)", str(told.value))


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
    make = lambda: Average(TwoTensors(first[0].clone(), second[0].clone()), float(golden[f"{schedule}__decay_max"]),
                           warmup=bool(golden[f"{schedule}__use_num_updates"]))
    average = make()
    for k in range(1, len(first)):
        average.update(TwoTensors(first[k], second[k]))
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
    ({"precision": "half"}, "precision: got 'half', wanted 'no' or 'bf16' or 'fp16'"), ({"accumulate": 3}, "accumulate: got 3, wanted a number that divides the batch of 2"),
    ({"accumulate": 0}, "accumulate: got 0"), ({"piece": -1}, "piece: got -1"), ({"keep": 0}, "keep: got 0"), ({"max_skipped": 0}, "max_skipped: got 0"), ({"workers": -1}, "workers"),
    ({"ema": 1.5}, "ema: got 1.5"), ({"ema": math.nan}, "ema: got nan")])
def test_wrong_changes_are_named(changes, words):
    with pytest.raises(ValueError, match=words): get_preset(PRESETS, "a", **changes)


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset: got 'b', wanted one of \\['a'\\]"): get_preset(PRESETS, "b")


def test_device():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda", "mps")
    for name in ("cuda:99", "abacus", "", "cpu:x", "cud"):
        with pytest.raises(ValueError, match=f"device: got '{name}'"): pick_device(name)


def test_every_field_is_explained():
    rows = explain_fields(Fields, PRESETS["a"])
    assert [row[0] for row in rows] == [f.name for f in dataclasses.fields(Fields)]
    assert rows[0] == ("steps", "10", "updates") and all(meaning for name, _, meaning in rows if name not in ("rate", "mults", "sizes", "flip"))


def test_a_checkpoint_under_another_name_eats_no_new_ones(finished, tmp_path):
    save_checkpoint(tmp_path, 30, load_checkpoint(finished[0]) | {"step": 30})
    shutil.copy(tmp_path / "checkpoints" / "00000030.safetensors", tmp_path / "checkpoints" / "00000099.safetensors")
    with pytest.raises(ValueError, match="00000099.safetensors holds the state of update 30.* 00000030.safetensors is sound"): go(small(keep=1), tmp_path)
    save_checkpoint(tmp_path, 40, {"step": 40}, keep=1)
    assert saved(tmp_path) == [40, 99]  # what has just been written stays


def test_the_best_of_those_that_could_be_saved_stays(tmp_path, monkeypatch):
    "There was no room for that of update 20, which would have been the best."
    scores = iter([1.0, 2.0, 0.5, 0.0])

    def full(out, step, *more):
        if step == 20: raise OSError(28, "No space left on device")
        return save_checkpoint(out, step, *more)

    monkeypatch.setattr(training, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="cannot write that of update 20"): go(trainer := small(keep=1, eval_every=10), tmp_path, evaluate=lambda network: {"score": next(scores)})
    assert saved(tmp_path) == [10, 40] and trainer.best == {"step": 10, "score": 1.0}


@pytest.mark.parametrize("step", [7, 30])
def test_streams_and_evaluations_may_draw_as_they_like(tmp_path, step):
    "From the global generators, that is; the run is a function of its seed all the same, and the draws of batches are not those of dropout."
    def noisy(k): return ((x + 0.1 * torch.randn_like(x) + random.gauss(0, 0.1) + np.random.randn(), y) for x, y in stream(k))
    def judge(network): return {"score": np.float32(torch.rand(()))}

    runs_ = [small(eval_every=10) for _ in range(3)]
    for trainer, name in zip(runs_, "ab"):
        torch.rand(3)
        go(trainer, tmp_path / name, stream=noisy, evaluate=judge)
    with pytest.raises(ValueError, match="ended after"): go(small(eval_every=10), tmp_path / "c", stream=lambda k: islice(noisy(k), step), evaluate=judge)
    go(runs_[2], tmp_path / "c", stream=noisy, evaluate=judge)
    assert all(same(runs_[0].state_dict(), other.state_dict()) for other in runs_[1:]) and same(read_metrics(tmp_path / "a"), read_metrics(tmp_path / "c"))
    drawn = []
    for use in (0, 1, 2): seed_everything(0, 5, use=use); drawn.append(torch.rand(9))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_loss_that_is_infinite_while_its_gradient_hides_it(tmp_path):
    "Behind a closed gate the derivative is zero, whatever comes down to it."
    def hidden(network, x, y, generator):
        bad = 20 <= generator.initial_seed() < 23
        return {"loss": (network(x) - 1e6).relu().square().mean() + math.inf if bad else (network(x) - y).square().mean()}

    go(trainer := small(), tmp_path, hidden)
    assert trainer.skipped.tolist() == [3, 0] and read_metrics(tmp_path)[-1]["skipped"] == 3


def test_accumulation_is_ours_whatever_the_environment_says(monkeypatch):
    found = []
    for number in (None, "4"):
        if number: monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", number)
        (trainer := small()).begin(losses)
        found.append(float(run_update(trainer, [next(stream(0))], 0)["grad_norm"]))
    assert found[0] == found[1]


def test_signals_act_at_once_when_all_is_saved(tmp_path):
    "During the evaluation that ends a run, and one that came in the last update; both are made up for."
    def told(network): os.kill(os.getpid(), signal.SIGTERM); pytest.fail("went on")
    with pytest.raises(Terminated): go(small(), tmp_path / "a", final=told)
    assert saved(tmp_path / "a")[-1] == 40
    go(small(), tmp_path / "a", final=lambda network: {"accuracy": 1.0})
    assert final_figures(tmp_path / "a")["accuracy"] == 1.0

    def late(network): os.kill(os.getpid(), signal.SIGTERM); return {"score": 1.0}
    with pytest.raises(KeyboardInterrupt): go(small(eval_every=40), tmp_path / "b", evaluate=interrupting)
    with pytest.raises(Terminated): go(small(eval_every=40), tmp_path / "b", evaluate=late, final=lambda network: pytest.fail("judged"))


def interrupting(network): raise KeyboardInterrupt
