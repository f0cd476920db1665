#!/usr/bin/env python3
"""The trained networks that ship with the package, made anew.

    python tools/make_pretrained.py                        digits-joint, digits-text: two and five minutes on a core
    python tools/make_pretrained.py --name digits-text     one of them
    python tools/make_pretrained.py --out FOLDER           somewhere else, to compare
    python tools/make_pretrained.py --preset tiny --out …  does it work at all? seconds

Run twice on one machine it makes the same file. On another processor its figures come again, its bits do not:
nbs/06e_saved.ipynb compares two.
"""
import argparse
import tempfile
from pathlib import Path

import torch

from lzn_nb.saved import save
from lzn_nb.scenarios.joint import JOINT_PRESETS, run_joint
from lzn_nb.scenarios.text import TEXT_PRESETS, run_text

HERE = Path(__file__).resolve().parent.parent / "lzn_nb" / "pretrained"
SHIPPED = {  # by name: what trains it, settings beside the preset cpu, figures that it tells
    "digits-joint": (run_joint, {}, ("accuracy", "agreement", "asked_proxy_fid", "free_proxy_fid", "reconstruction", "judge_accuracy")),
    "digits-text": (run_text, {"steps": 800, "jitter": 0.3, "rate_decoder": 4e-3}, ("accuracy", "agreement", "told_digit", "told_thickness", "told_slant", "drawn_digit", "drawn_thickness", "drawn_slant", "free_proxy_fid", "judge_accuracy"))}


def make(out: Path, name: str = "digits-joint", preset: str = "cpu", seed: int = 0, progress: bool = True) -> Path:
    "Train the network called `name` on digits and write its averaged weights to `out`/`name`.safetensors, in half precision."
    train, changes, shown = SHIPPED[name]
    with tempfile.TemporaryDirectory() as folder:
        done = train("digits", preset, Path(folder) / "run", seed=seed, progress=progress, **changes if preset == "cpu" else {})
    config, figures = done.config, done.figures
    told = "".join(f", {key} {value:g}" for key, value in changes.items() if key != "steps")
    trained = (f"{done.data.describe()}; preset {preset}{told}, seed {seed}, {config.steps} updates of batch {config.batch}, zones by Adams, {config.zone_steps} evaluations; "
               f"{figures['device']}, {figures['threads']} thread(s), torch {figures['torch']}; averaged weights, kept in float16")
    notes = {"scenario": done.scenario.name, "trained": trained, "figures of the test split, before rounding": {key: round(figures[key], 4) for key in shown if key in figures}}
    out.mkdir(parents=True, exist_ok=True)
    return save(done.network, out / f"{name}.safetensors", notes=notes, dtype=torch.float16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the trained networks that ship with the package anew.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: the package's)")
    parser.add_argument("--name", choices=list(SHIPPED), help="which one (default: all)")
    parser.add_argument("--preset", default="cpu", choices=[name for name in JOINT_PRESETS if name in TEXT_PRESETS], help="of the scenario (default: cpu)")
    asked = parser.parse_args()
    if asked.preset != "cpu" and asked.out == HERE: parser.error("--preset: what ships is of the preset cpu; give another folder with --out")
    try: asked.out.mkdir(parents=True, exist_ok=True)
    except OSError as error: parser.error(f"--out: {asked.out} is no folder and cannot be made one ({error.strerror})")
    torch.set_num_threads(1)  # networks this small are fastest on one core, and sums do not depend on how many cores there are
    for name in [asked.name] if asked.name else SHIPPED: print(make(asked.out, name, asked.preset))
