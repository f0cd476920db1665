"""What matters in latent alignment, and to what it is compared with: one setting changed at a time, judged on the validation split."""
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from lzn_nb.data import load_data
from lzn_nb.metrics import accuracy
from lzn_nb.representation_metrics import centred, chosen_probe, effective_rank, nearest_class
from lzn_nb.scenarios.base import make_trainer, take_up_to, work_of
from lzn_nb.scenarios.representation import REPRESENTATION, REPRESENTATION_PRESETS, features_of, judge_alignment
from lzn_nb.training import get_preset, train

PUBLISHED = {"window": 0.0, "solver": "euler", "zone_steps": 20, "cutoff": 0.2}
SETTINGS = {
    "as it is": {},
    "batch 64, as many images": {"batch": 64, "steps": 4.0}, "batch 1,024, as many images": {"batch": 1024, "steps": 0.25},
    **{f"α = {alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.2, 0.7, 1.0)},
    **{f"cut-off {cutoff:.0%}": {"cutoff": cutoff} for cutoff in (0.2, 0.4, 0.8)},
    **{f"window λ ≤ {window:g}": {"window": window} for window in (0.5, 6.0, 19.0)}, "until it is certain": {"window": 0.0},
    **{f"{steps} evaluations": {"zone_steps": steps} for steps in (5, 20)},
    "published: Euler 20, cut-off 20%": PUBLISHED, "Euler 20, cut-off 60%": {**PUBLISHED, "cutoff": 0.6},
    **{f"latent {q}": {"latent_dim": q} for q in (16, 256)}, "head without norm": {"head_norm": False}, "head of one layer": {"head_layers": 1},
    "both directions": {"symmetric": True}, "probabilities, not their log": {"log_alignment": False},
    **{f"SimCLR, temperature {t:g}": {"method": "simclr", "temperature": t} for t in (0.1, 0.2, 0.5)},
    **{f"MoCo, temperature {t:g}, queue {queue:,}, momentum {m:g}": {"method": "moco", "temperature": t, "queue": queue, "momentum": m}
       for t, queue, m in ((0.2, 4096, 0.99), (0.1, 4096, 0.99), (0.5, 4096, 0.99), (0.2, 1024, 0.99), (0.2, 4096, 0.9), (0.2, 4096, 0.999))},
}


def one_of(preset: str, images, seed: int, **changes) -> dict[str, float]:
    "Figures of one run on the validation split; nothing of it is kept."
    config, last = get_preset(REPRESENTATION_PRESETS, preset, **changes), {}
    trainer = make_trainer(REPRESENTATION, config, images.shape, images.num_classes, seed, torch.device("cpu"))
    def judge(network) -> dict:
        (train_part, labels), (valid_part, wanted) = (take_up_to(part, 10_000, trainer.device) for part in (images.train, images.valid))
        for kind, (x, y) in features_of(network, [train_part, valid_part], config, seed, zones=False).items():
            x, y = centred(x, y)
            last.update({f"probe_{kind}": chosen_probe((x, labels), (y, wanted), (y, wanted), epochs=config.probe_epochs, seed=seed)["top1"],
                         f"knn_{kind}": accuracy(nearest_class(x, labels, y), wanted), f"rank_{kind}": effective_rank(y)})
        last.update(judge_alignment(network, valid_part[:config.batch], config, seed))
        return {}
    with tempfile.TemporaryDirectory() as folder:
        train(trainer, *work_of(REPRESENTATION, config, images, seed, trainer.device), Path(folder), seed=seed, progress=False, final=judge)
    return last


def measure(settings: tuple = tuple(SETTINGS), seeds: tuple = (0, 1, 2), preset: str = "cpu", data: str = "mnist", image_size: int | None = 14, steps: int = 300,
            tell: Callable = lambda text: None, **changes) -> dict:
    "The table `study`: by what is changed. Batches of other sizes see as many images; `steps` is the number of updates of the others."
    images, rows = load_data(data, image_size=image_size), {}
    base = get_preset(REPRESENTATION_PRESETS, preset, steps=steps, eval_every=0, **changes)
    for name in settings:
        tell(f"study: {name}")
        more = dict(SETTINGS[name])
        if "steps" in more: more["steps"] = max(1, round(more["steps"] * steps))
        rows[name] = [one_of(preset, images, seed, **{"steps": steps, "eval_every": 0} | changes | more) for seed in seeds]
    protocol = {"preset": preset, "data": images.describe(), "steps": steps, "batch": base.batch, "latent_dim": base.latent_dim, "alpha": base.alpha, "cutoff": base.cutoff, "window": base.window,
                "zone_steps": base.zone_steps, "seeds": len(seeds)}
    return {"table": "study", **machine.describe("cpu"), "protocol": protocol, "rows": rows}
