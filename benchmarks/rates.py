"""Which learning rate of the encoder: the generation scenario with several, and the plain flow, judged on the validation split."""
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from lzn_nb.data import load_data
from lzn_nb.scenarios.base import make_trainer, work_of
from lzn_nb.scenarios.generation import GENERATION, GENERATION_PRESETS, evaluate_generation
from lzn_nb.training import get_preset, train

KEPT = ("proxy_fid_2", "proxy_fid_4", "proxy_fid_8", "proxy_fid_50", "curvature", "reconstruction_10")


def one_of(preset: str, data: str, seed: int, **changes) -> dict[str, float]:
    "Figures of one run on the validation split, and the mean loss of its last tenth; nothing of it is kept."
    config, images = get_preset(GENERATION_PRESETS, preset, **changes), load_data(data)
    trainer, last = make_trainer(GENERATION, config, images.shape, images.num_classes, seed, torch.device("cpu")), {}
    final = lambda network: last.update(evaluate_generation(network, images, config, split="valid", seed=seed)) or {}
    with tempfile.TemporaryDirectory() as folder:
        train(trainer, *work_of(GENERATION, config, images, seed, trainer.device), Path(folder), seed=seed, progress=False, final=final)
    return {key: last[key] for key in KEPT}


def measure(ratios: tuple = (1, 0.25, 0.05), seeds: tuple = (0, 1, 2), preset: str = "cpu", data: str = "digits", tell: Callable = lambda text: None, **changes) -> dict:
    "The table `rates`: by ratio of the encoder's learning rate to the decoder's."
    changes = {"tol": 0.1} | changes  # what RK45 finds is not kept
    base, rows = get_preset(GENERATION_PRESETS, preset, **changes), {}
    for name, more in ({"no zones": {"zones": False}} | {f"{ratio:g}": {"rate_encoder": ratio * base.rate_decoder} for ratio in ratios}).items():
        tell(f"rates: {name}")
        rows[name] = [one_of(preset, data, seed, **changes | more) for seed in seeds]
    protocol = {"preset": preset, "data": load_data(data).describe(), "steps": base.steps, "batch": base.batch, "latent_dim": base.latent_dim, "rate_decoder": base.rate_decoder,
                "drawn": base.drawn, "seeds": len(seeds)}
    return {"table": "rates", **machine.describe("cpu"), "protocol": protocol, "rows": rows}
