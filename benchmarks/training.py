"""Where the time of an update of the joint scenario goes, and what the options for its speed bring."""
import dataclasses
import time
from collections.abc import Callable
from itertools import islice
from statistics import median

import torch

from benchmarks import machine
from benchmarks.process import fresh
from benchmarks.scaling import without_zones
from lzn_nb.data import batches, load_data
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_losses, joint_trainer
from lzn_nb.training import run_update, step_generator

OPTIONS = {"as it is again": {}, "channels last": {"channels_last": True}, "torch.compile": {"compile": True}, "bf16": {"precision": "bf16"}, "pieces of a quarter": {"piece": -4}}


def ready(batch: int, options: dict, zones: bool, seed: int = 0):
    "A trainer of the preset `cpu` on digits, and its first batches."
    options = {name: batch // -value if name == "piece" else value for name, value in options.items()}
    config, data = dataclasses.replace(JOINT_PRESETS["cpu"], batch=batch, **options), load_data("digits")
    trainer = joint_trainer(config, data.shape, data.num_classes, seed, torch.device("cpu"))
    losses = joint_losses if zones else without_zones
    trainer.begin(lambda *given: losses(config, *given, n=batch))
    return trainer, batches(data.train, batch, seed=seed)


def seconds_of(function: Callable) -> float:
    "Seconds of one call."
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def timed(function: Callable, repeats: int, skip: int = 2) -> float:
    "Median seconds of a call, after `skip` more."
    return median([seconds_of(function) for _ in range(repeats + skip)][skip:])


def parts_of(batch: int, repeats: int) -> dict:
    "Seconds of an update, and of what it is made of."
    trainer, stream = ready(batch, {}, True)
    plain, _ = ready(batch, {}, False)
    given = next(stream)
    gradient = lambda who: who.gradient([given], step_generator(0, 0))
    found = {"update": timed(lambda: run_update(trainer, [given], 0), repeats), "data": timed(lambda: next(stream), repeats)}
    both, networks = timed(lambda: gradient(trainer), repeats), timed(lambda: gradient(plain), repeats)
    found |= {"networks, forward and backward": networks, "zones and alignment": both - networks, "optimizer": timed(trainer.optimizer.step, repeats),
              "average": timed(lambda: trainer.average.update(trainer.network), repeats)}
    return found | {"everything else": found["update"] - both - found["optimizer"] - found["average"]}


def option_of(batch: int, options: dict, repeats: int) -> dict:
    "First update with options for speed, then updates in turns with those of a trainer without: medians, and how many times faster."
    (plain, given), (trainer, stream) = ready(batch, {}, True), ready(batch, options, True)
    update = lambda who, batches: run_update(who, list(islice(batches, 1)), 0)
    first = seconds_of(lambda: update(trainer, stream))
    losses = [float(update(trainer, stream)["loss"]) for _ in range(5)]
    for _ in range(3): update(plain, given)
    turns = [(seconds_of(lambda: update(plain, given)), seconds_of(lambda: update(trainer, stream))) for _ in range(repeats)]
    gains = [one / other for one, other in turns]
    return {"first": first, "plain": median(one for one, _ in turns), "seconds": median(other for _, other in turns),
            "gain": median(gains), "gain_min": min(gains), "gain_max": max(gains), "loss": losses[-1]}


def measure(batch: int = 128, repeats: int = 20, options: dict = OPTIONS, tell: Callable = lambda text: None) -> dict:
    "The table `training`."
    tell(f"training: parts of an update of {batch}")
    found = {"parts": fresh("benchmarks.training:parts_of", batch=batch, repeats=repeats), "options": {}}
    for name, chosen in options.items():
        tell(f"training: {name}")
        found["options"][name] = fresh("benchmarks.training:option_of", batch=batch, options=chosen, repeats=repeats)
    return {"table": "training", **machine.describe("cpu"), "protocol": {"batch": batch, "repeats": repeats, "preset": "cpu", "data": "digits"}, **found}
