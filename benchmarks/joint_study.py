"""What matters in joint training: one setting changed at a time, judged on the validation split, with few and with many images in the space."""
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from lzn_nb.data import load_data
from lzn_nb.metrics import Judge, accuracy
from lzn_nb.scenarios.base import make_trainer, take_up_to, work_of
from lzn_nb.scenarios.joint import JOINT, JOINT_PRESETS, judge_asked, judge_way_back
from lzn_nb.training import get_preset, train
from lzn_nb.zones import LatentZones

SETTINGS = {
    "as it is": {},
    "whole zones aligned": {"alignment_alpha": 1.0}, "half the noise": {"alignment_alpha": 0.5},
    "followed until it is certain": {"sharpness": 0.0},
    "whole zones, until it is certain": {"alignment_alpha": 1.0, "sharpness": 0.0},
    "the same, probabilities": (published := {"alignment_alpha": 1.0, "sharpness": 0.0, "log_alignment": False}),
    **{f"these three, batch {batch}, as many updates": {**published, "batch": batch} for batch in (32, 512)},
    **{f"sharpness {sharpness:g}": {"sharpness": sharpness} for sharpness in (1.0, 5.0)},
    **{f"cut-off {cutoff:.0%}": {"cutoff": cutoff} for cutoff in (0.05, 0.6)},
    "probabilities, not their log": {"log_alignment": False},
    **{f"alignment weighs {weight:g}": {"alignment_weight": weight} for weight in (0.25, 4.0)},
    "decoder not told the class": {"one_hot": False},
    "batch 32, as many images": {"batch": 32, "steps": 4.0}, "batch 512, as many images": {"batch": 512, "steps": 0.25},
    "spaces of 16 and more": {"smallest_space": 16},
    "no generation": {"drawing": False},
}
SPACES, ALPHAS = (20, 128, 1000), (0.0, 1.0)


def named_in_spaces(network, valid: tuple, crowd: int | LatentZones, alpha: float, seed: int) -> float:
    "Accuracy where so many images share a space at a time, or where each joins the zones `crowd` alone."
    (images, labels), generator = valid, torch.Generator().manual_seed(seed)
    parts, company = (images[:len(images) // crowd * crowd].split(crowd), None) if isinstance(crowd, int) else ([images], crowd)
    named = torch.cat([network.classify(part, alpha=alpha, among=company, generator=generator) for part in parts])
    return accuracy(named, labels[:len(named)])


def one_of(preset: str, images, seed: int, drawn: int, **changes) -> dict[str, float]:
    "Figures of one run on the validation split; nothing of it is kept."
    config, last = get_preset(JOINT_PRESETS, preset, **changes), {}
    trainer = make_trainer(JOINT, config, images.shape, images.num_classes, seed, torch.device("cpu"))

    def judge(network) -> dict:
        train_part, valid = (take_up_to(part, limit, trainer.device) for part, limit in ((images.train, 10_000), (images.valid, 2000)))
        company, generator = network.zones_of("image", train_part[0]), torch.Generator().manual_seed(seed)
        last.update({f"accuracy_{size}_{alpha:g}": named_in_spaces(network, valid, size, alpha, seed) for size in SPACES for alpha in ALPHAS if size <= len(valid[0])})
        last.update({f"accuracy_all_{alpha:g}": named_in_spaces(network, valid, company, alpha, seed) for alpha in ALPHAS})
        if config.drawing:
            asked = judge_asked(network, Judge(*train_part), valid[0], config, generator, drawn)
            last.update(agreement=asked["agreement"].value, asked=asked["asked_proxy_fid"].value, reconstruction=judge_way_back(network, config, valid[0][:200], valid[1][:200], generator).value)
        return {}

    with tempfile.TemporaryDirectory() as folder:
        train(trainer, *work_of(JOINT, config, images, seed, trainer.device), Path(folder), seed=seed, progress=False, final=judge)
    return last


def measure(settings: tuple = tuple(SETTINGS), seeds: tuple = (0, 1, 2), preset: str = "cpu", data: str = "mnist", image_size: int | None = 14, steps: int = 300, drawn: int = 500,
            tell: Callable = lambda text: None, **changes) -> dict:
    "The table `joint-study`: by what is changed. `steps` is the number of updates, unless batches of another size see \"as many images\"."
    images, rows = load_data(data, image_size=image_size), {}
    base = get_preset(JOINT_PRESETS, preset, steps=steps, **changes)
    for name in settings:
        tell(f"joint-study: {name}")
        more = dict(SETTINGS[name])
        if "steps" in more: more["steps"] = max(1, round(more["steps"] * steps))
        rows[name] = [one_of(preset, images, seed, drawn, **{"steps": steps} | changes | more) for seed in seeds]
    protocol = {"preset": preset, "data": images.describe(), "steps": steps, "batch": base.batch, "latent_dim": base.latent_dim, "cutoff": base.cutoff, "sharpness": base.sharpness, "drawn": drawn, "seeds": len(seeds)}
    return {"table": "joint-study", **machine.describe("cpu"), "protocol": protocol, "rows": rows}
