"""Where the time of an update goes, in each scenario, and what makes it faster: options, and images that are read ahead."""
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from benchmarks.process import fresh
from benchmarks.scenarios import LOSSES, WITHOUT_ZONES, network_of, trainer_of
from lzn_nb.data import Split, batches, load_data
from lzn_nb.scenarios.representation import views_of
from lzn_nb.training import run_update, step_generator
from lzn_nb.zones import LatentZones

OPTIONS = {"as it is again": {}, "channels last": {"channels_last": True}, "torch.compile": {"compile": True}, "bf16": {"precision": "bf16"}, "pieces of a quarter": {"piece": -4}}


def enough(split: Split, batch: int) -> Split:
    "A split in memory with at least `batch` images: moved copies, one pixel further each time, where it has fewer."
    copies = -(-batch // len(split))
    return split if copies == 1 else Split(torch.cat([split.pixels.roll(k, 3) for k in range(copies)]), split.labels.repeat(copies), split.top)


def ready(batch: int, options: dict, scenario: str = "joint", zones: bool = True, data=None, seed: int = 0):
    "A trainer of the preset `cpu` on digits (or other data), and its first batches."
    options = {name: batch // -value if name == "piece" else value for name, value in options.items()}
    data = data or load_data("digits")
    config, network = network_of(scenario, "cpu", data.shape, data.num_classes, seed, **{"batch": batch} | options)
    trainer = trainer_of(scenario, config, network, None if zones else WITHOUT_ZONES[scenario])
    return trainer, batches(enough(data.train, batch), batch, seed=seed)


def seconds_of(function: Callable) -> float:
    "Seconds of one call."
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turns(functions: dict[str, Callable], repeats: int, skip: int = 2) -> dict[str, float]:
    "Median seconds of each function, called in turns, `skip` turns first: a machine that slows down for a while slows all of them."
    turns = [{name: seconds_of(function) for name, function in functions.items()} for _ in range(repeats + skip)][skip:]
    return {name: median(turn[name] for turn in turns) for name in functions}


def parts_of(scenario: str, batch: int, repeats: int) -> dict:
    "Seconds of an update of a scenario, and of what it is made of."
    trainer, stream = ready(batch, {}, scenario)
    plain, _ = ready(batch, {}, scenario, zones=False)
    given = next(stream)
    gradient = lambda who: who.gradient([given], step_generator(0, 0))
    parts = {"update": lambda: run_update(trainer, [given], 0), "data": lambda: next(stream), "both": lambda: gradient(trainer), "networks, forward and backward": lambda: gradient(plain),
             "optimizer": trainer.optimizer.step, "average": lambda: trainer.average.update(trainer.network)}
    if scenario == "representation": parts["two views"] = lambda: views_of(trainer.config, given[0], step_generator(0, 0))
    found = in_turns(parts, repeats)
    both, plainly = found.pop("both"), found["networks, forward and backward"]
    found["networks, forward and backward"] -= found.get("two views", 0.0)
    return found | {"zones and alignment": both - plainly, "everything else": found["update"] - both - found["optimizer"] - found["average"]}


def overhead_of(batch: int, repeats: int, pixels: int) -> dict:
    "Seconds of an update of the generation scenario on images of `pixels` × `pixels`, and of what zones add to it: all between the anchors and the latents, both ways."
    trainer, stream = ready(batch, {}, "generation", data=load_data("digits", image_size=pixels))
    image, config, given = trainer.network["image"], trainer.config, next(stream)
    with torch.no_grad(): anchors = image.anchors(given[0])
    noise, gradient = torch.randn_like(anchors), torch.randn_like(anchors)

    def zones() -> None:
        mine = anchors.clone().requires_grad_()
        LatentZones(mine, steps=image.zone_steps, checked=False).encode(torch.arange(batch), noise, config.alpha).backward(gradient)
    return in_turns({"update": lambda: run_update(trainer, [given], 0), "zones": zones}, repeats, skip=1)


def option_of(batch: int, options: dict, repeats: int) -> dict:
    "First update with options for speed, then updates in turns with those of a trainer without: medians, and how many times faster."
    (plain, given), (trainer, stream) = ready(batch, {}), ready(batch, options)
    update = lambda who, batches: run_update(who, list(islice(batches, 1)), 0)
    first = seconds_of(lambda: update(trainer, stream))
    losses = [float(update(trainer, stream)["loss"]) for _ in range(5)]
    for _ in range(3): update(plain, given)
    turns = [(seconds_of(lambda: update(plain, given)), seconds_of(lambda: update(trainer, stream))) for _ in range(repeats)]
    gains = [one / other for one, other in turns]
    return {"first": first, "plain": median(one for one, _ in turns), "seconds": median(other for _, other in turns),
            "gain": median(gains), "gain_min": min(gains), "gain_max": max(gains), "loss": losses[-1]}


def make_photos(folder: Path, number: int, size: int) -> None:
    "So many JPEG files in two folders, noise at several scales."
    random = np.random.RandomState(0)
    for i in range(number):
        (where := folder / "ab"[i % 2]).mkdir(exist_ok=True)
        layers = [Image.fromarray(random.randint(0, 256, (s, s, 3), dtype=np.uint8)).resize((size, size)) for s in (2, 8, 32)]
        Image.fromarray(np.mean([np.asarray(layer) for layer in layers], 0).astype(np.uint8)).save(where / f"{i:04}.jpg")


def reading_of(batch: int, repeats: int, size: int, threads: int) -> dict:
    "Seconds of an update on so many threads, of reading its batch of photos one by one, of both after each other, and as `batches` has it."
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), 2 * batch, size)
        data = load_data(f"folder:{folder}", image_size=8)
        trainer, ahead = ready(batch, {}, data=data)
        read = lambda: (torch.stack([data.train[i][0] for i in range(batch)]), data.train.labels[:batch])
        given = read()
        update = lambda given: run_update(trainer, [given], 0)
        phases = {"update": lambda: update(given), "reading": read, "reading, then update": lambda: update(read())}
        found = in_turns(phases, repeats) | in_turns({"update from `batches`": lambda: update(next(ahead))}, repeats)  # nobody reads ahead while the others are timed
        ahead.close()
    return found


def measure(batch: int = 128, repeats: int = 20, options: dict = OPTIONS, photo: int = 160, overhead: tuple = ((8, 256), (8, 2000), (28, 256), (28, 2000)), threads: tuple = (1, os.cpu_count() or 1),
            tell: Callable = lambda text: None) -> dict:
    "The table `training`; `threads`: of how many cores compute while images are read."
    found = {"parts": {}, "options": {}}
    for scenario in LOSSES:
        tell(f"training: parts of an update of {batch}, {scenario}")
        found["parts"][scenario] = fresh("benchmarks.training:parts_of", scenario=scenario, batch=batch, repeats=repeats)
    found["overhead"] = []
    for pixels, size in overhead:
        tell(f"training: what zones add to an update of {size:,} images of {pixels} × {pixels}")
        found["overhead"].append({"pixels": pixels, "batch": size} | fresh("benchmarks.training:overhead_of", batch=size, repeats=max(3, min(repeats, 2000 // size + 3)), pixels=pixels))
    tell("training: images read ahead")
    cores = os.cpu_count() or 1
    found["reading"] = {f"{k} of {cores} cores compute": fresh("benchmarks.training:reading_of", batch=batch, repeats=repeats, size=photo, threads=k) for k in sorted(set(threads))}
    for name, chosen in options.items():
        tell(f"training: {name}")
        found["options"][name] = fresh("benchmarks.training:option_of", batch=batch, options=chosen, repeats=repeats)
    return {"table": "training", **machine.describe("cpu"), "protocol": {"batch": batch, "repeats": repeats, "preset": "cpu", "data": "digits", "photo": photo}, **found}
