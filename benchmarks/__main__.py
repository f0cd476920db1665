"""`python -m benchmarks TABLE`: measure, print as Markdown, and with --save keep the numbers as JSON."""
import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import accuracy, full_set, gpu, joint_study, memory, rates, scaling, speed, study, training
from benchmarks.process import on_gpu
from benchmarks.report import TABLES, render

RESULTS = Path(__file__).parent / "results"
MEASURE = {"speed": speed.measure, "memory": memory.measure, "accuracy": accuracy.measure, "full-set": full_set.measure, "gpu": gpu.measure, "training": training.measure,
           "scaling": scaling.measure, "rates": rates.measure, "study": study.measure, "joint-study": joint_study.measure}

# Sizes that try the code in seconds; their numbers mean nothing.
TINY = {
    "speed": dict(n=48, q=16, steps=3, pairs=2, baseline_runs=1),
    "memory": dict(sizes=(24, 48), q=16, steps=3),
    "accuracy": dict(families=["gaussian-q16", "gaussian-q2"], seeds=(0,), n=40, truth_steps=50),
    "full-set": dict(m=60, n=200, q=16, steps=3, repeats=2),
    "gpu": dict(shapes=((40, 24),), steps=2, pairs=2, repeats=2),
    "training": dict(batch=16, repeats=2, threads=(1,), overhead=((8, 16),), options={"as it is again": {}, "pieces of a quarter": {"piece": -4}}),
    "scaling": dict(updates=[(16, 8, 3, 1), (16, 8, 3, 2)], small=8, large=256, repeats=3),
    "rates": dict(ratios=(0.25,), seeds=(0, 1), preset="tiny", steps=2, drawn=20),
    "study": dict(settings=("as it is", "batch 64, as many images", "SimCLR, temperature 0.2"), seeds=(0, 1), preset="tiny", data="digits", image_size=None, steps=2),
    "joint-study": dict(settings=("as it is", "batch 32, as many images", "no generation"), seeds=(0, 1), preset="tiny", data="digits", image_size=None, steps=2, drawn=40),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks",
                                description="Measure the library against bare matrix products and the published solvers; print Markdown.")
    p.add_argument("table", nargs="?", default="all", choices=[*TABLES, "all"])
    p.add_argument("--tiny", action="store_true", help="sizes that only try the code")
    p.add_argument("--save", action="store_true", help="write the numbers to OUT/TABLE.json")
    p.add_argument("--out", type=Path, help="folder for --save (default: benchmarks/results)")
    p.add_argument("--n", type=int, help="anchors (speed, full-set), or the largest batch (memory)")
    p.add_argument("--m", type=int, help="queries (full-set)")
    p.add_argument("--pairs", type=int, help="turns of bare products and ours (speed, gpu)")
    p.add_argument("--device", help="cpu or cuda (default: cuda for gpu, cpu for the others)")
    p.add_argument("--no-baseline", action="store_true", help="leave out the published solver (speed, memory, gpu), which takes minutes")
    p.add_argument("--time-cap", type=float, help="seconds after which a measurement is given up (speed, memory, full-set, gpu)")
    return p


def options(table: str, args: argparse.Namespace) -> dict:
    "Arguments of the table's `measure`: the tiny ones, then what the command line says."
    chosen = dict(TINY[table]) if args.tiny else {}
    if table in ("accuracy", "training", "scaling", "rates", "study", "joint-study"): return chosen
    if args.n and table in ("speed", "full-set"): chosen["n"] = args.n
    if args.n and table == "memory": chosen["sizes"] = sorted({n for n in chosen.get("sizes", memory.SIZES) if n < args.n} | {args.n})
    if args.m and table == "full-set": chosen["m"] = args.m
    if args.pairs and table in ("speed", "gpu"): chosen["pairs"] = args.pairs
    if args.device: chosen["device"] = args.device
    if args.no_baseline and table != "full-set": chosen["baseline"] = False
    if args.time_cap: chosen["time_cap"] = args.time_cap
    return chosen


def rounded(x):
    "Floats with five significant digits, all the way down: no measurement here knows more."
    if isinstance(x, float): return float(f"{x:.5g}")
    if isinstance(x, dict): return {str(key): rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, (list, tuple)) else x


def main(argv: list[str] | None = None) -> None:
    p = parser()
    args = p.parse_args(argv)
    if args.save and args.tiny and not args.out: p.error("--save: tiny numbers are no results; give another folder with --out")
    tell = lambda text: print(f"== {text}", file=sys.stderr, flush=True)
    for table in TABLES if args.table == "all" else [args.table]:
        if on_gpu(args.device or ("cuda" if table == "gpu" else "cpu")) and not torch.cuda.is_available():
            print(f"{table}: no CUDA device here, nothing measured. To try the code: python -m benchmarks gpu --device cpu --tiny\n")
            continue
        try: result = rounded(MEASURE[table](**options(table, args), tell=tell))
        except FileNotFoundError as error:  # data that are not there: of all tables, the others are measured all the same
            print(f"{p.prog}: {table}: {error}", file=sys.stderr)
            if args.table == "all": continue
            p.exit(2)
        print(render(result), flush=True)
        if args.save:
            out = args.out or RESULTS
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{table}.json").write_text(json.dumps(result, indent=1) + "\n")
            tell(f"written: {table}.json")


if __name__ == "__main__":
    main()
