"Ranks for tests: processes that talk to each other, forked from a server that has imported everything once."
import multiprocessing

import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch", "benchmarks.scenarios"])


def on_ranks(function, world: int, *more) -> None:
    "Call `function(rank, world, *more)` in `world` processes; one that fails ends all, and its error is raised."
    mp.start_processes(function, (world, *more), nprocs=world, start_method="forkserver")
