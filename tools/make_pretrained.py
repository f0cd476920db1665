#!/usr/bin/env python3
"""The trained networks that ship with the package, made anew.

    python tools/make_pretrained.py                        digits-joint: about two minutes on a core
    python tools/make_pretrained.py --out FOLDER           somewhere else, to compare
    python tools/make_pretrained.py --preset tiny --out …  does it work at all? seconds

Run twice on one machine it makes the same file. The one in the package was made on another processor and by an
earlier state of the code: its figures come again, its bits do not. nbs/06e_saved.ipynb compares them.
"""
import argparse
import tempfile
from pathlib import Path

import torch

from lzn_nb.saved import save
from lzn_nb.scenarios.joint import run_joint

HERE = Path(__file__).resolve().parent.parent / "lzn_nb" / "pretrained"
SHOWN = ("accuracy", "agreement", "asked_proxy_fid", "free_proxy_fid", "reconstruction", "judge_accuracy")


def make(out: Path, preset: str = "cpu", seed: int = 0, progress: bool = True) -> Path:
    "Train the joint model on digits and write its averaged network to `out`/digits-joint.safetensors, in half precision."
    with tempfile.TemporaryDirectory() as folder:
        done = run_joint("digits", preset, Path(folder) / "run", seed=seed, progress=progress)
    config, figures = done.config, done.figures
    trained = (f"{done.data.describe()}; preset {preset}, seed {seed}, {config.steps} updates of batch {config.batch}, zones by Adams, {config.zone_steps} evaluations; "
               f"{figures['device']}, {figures['threads']} thread(s), torch {figures['torch']}; averaged weights, kept in float16")
    notes = {"scenario": "joint", "trained": trained, "figures of the test split, before rounding": {key: round(figures[key], 4) for key in SHOWN}}
    out.mkdir(parents=True, exist_ok=True)
    return save(done.network, out / "digits-joint.safetensors", notes=notes, dtype=torch.float16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the trained networks that ship with the package anew.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files (default: the package's)")
    parser.add_argument("--preset", default="cpu", help="of the joint scenario (default: cpu)")
    asked = parser.parse_args()
    if asked.preset != "cpu" and asked.out == HERE: parser.error("--preset: what ships is of the preset cpu; give another folder with --out")
    torch.set_num_threads(1)  # networks this small are fastest on one core, and sums do not depend on how many cores there are
    print(make(asked.out, asked.preset))
