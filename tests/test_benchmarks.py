"The benchmarks at tiny size: well-formed numbers, correct bookkeeping, tables and command line. Nothing here is about how fast."
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import accuracy, full_set, gpu, joint_study, memory, process, rates, report, scaling, speed, study, training
from benchmarks.candidates import CANDIDATES, make_question, prepared
from lzn_nb.data import load_data
from lzn_nb.scenarios.joint import JOINT_PRESETS
from lzn_nb.scenarios.representation import REPRESENTATION_PRESETS
from lzn_nb.training import get_preset
from lzn_nb.zones import LatentZones

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"speed": speed, "memory": memory, "accuracy": accuracy, "full-set": full_set, "gpu": gpu, "training": training, "scaling": scaling, "rates": rates, "study": study, "joint-study": joint_study}


@pytest.fixture
def here(monkeypatch):
    "Measurements run in this process, and leave its threads as they were: starting a new one for each takes seconds."
    threads, apart = torch.get_num_threads(), scaling.ask
    def call(task, *, time_cap=None, environment=None, **arguments):
        module, name = task.split(":")
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))
    for module in (speed, memory, full_set, gpu, training): monkeypatch.setattr(module, "fresh", call)
    monkeypatch.setattr(scaling, "ask", lambda task, ranks=1, **given: apart(task, ranks, **given) if ranks > 1 else scaling.work(task, **given))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few(monkeypatch):
    "Of the digits thirty to judge by: what is measured of them means nothing here."
    digits = load_data("digits")
    some = replace(digits, valid=digits.valid.some(30))
    for module in (rates, study, joint_study): monkeypatch.setattr(module, "load_data", lambda *name, **how: some)


def measure(table, **more): return command.rounded(MODULES[table].measure(**command.TINY[table], **more))


def leaves(x):
    if isinstance(x, dict): x = list(x.values())
    if isinstance(x, (list, tuple)): return [leaf for part in x for leaf in leaves(part)]
    return [x]


def well_formed(result, differences=()):
    "Finite and, but for `differences` of two timings, not negative; through JSON and back, and rendered with machine and date."
    assert all(math.isfinite(x) for x in differences)
    numbers = [x for x in leaves(result) if isinstance(x, (int, float)) and x not in differences]
    assert numbers and all(math.isfinite(x) and x >= 0 for x in numbers)
    assert json.loads(json.dumps(result)) == result
    text = report.render(result)
    assert text.startswith("## ") and result["date"] in text and f"torch {result['versions']['torch']}" in text
    for block in text.split("\n\n"):  # every row of a table has as many cells as its head
        if block.startswith("|"): assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1, block
    return text


# -- tables ----------------------------------------------------------------------------------------

def test_speed(here):
    result = measure("speed")
    text = well_formed(result)
    for row in result["rows"].values():
        assert len(row["times"]["ours"]) == 2 and len(row["times"]["bare"]) == 3
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["ours_seconds"] > 0
        assert row["times_faster"] == pytest.approx(row["published"]["seconds"] / row["published"]["ours_seconds"], rel=1e-3)
    assert "n = 48" in text and "seven matrix products" in text
    assert "not asked for" in well_formed(measure("speed", baseline=False))


def test_ratio_is_to_the_neighbours_in_time():
    "A machine that gets slower by the minute: each of ours takes twice what the products take at that moment."
    bare = [1.0, 2.0, 3.0, 4.0]
    found = speed.compare({"bare": bare, "ours": [3.0, 5.0, 7.0]})
    assert found["ratio"] == found["ratio_min"] == found["ratio_max"] == 2.0


def test_of_several_runs_of_the_published_solver_the_middle_one_counts():
    runs = [{"seconds": seconds, "ours_seconds": 0.5, "peak_bytes": 8} for seconds in (9.0, 1.0, 2.0)]
    found = speed.middle_run(runs)
    assert (found["times_faster_min"], found["times_faster"], found["times_faster_max"]) == (2.0, 4.0, 18.0) and found["published"] is runs[2]
    assert "4.0 × (2.00–18.0)" in report.factor(found)
    assert speed.middle_run([runs[0], {"skipped": "no room"}]) == {"published": {"skipped": "no room"}}


def test_ours_and_published_do_the_same_work(monkeypatch):
    "With the library's own published Euler instead of its solver, gradients of all that is timed agree."
    for module in (speed, memory): monkeypatch.setattr(module, "LatentZones", partial(LatentZones, solver="euler"))
    pairs = [(speed.ours(part, 24, 6, 5, "cpu")(), speed.published(part, 24, 6, 5, "cpu")()) for part in speed.PARTS]
    pairs += zip(*(memory.batch(whose, 24, 6, 5, "cpu")() for whose in ("ours", "published")))
    assert len(pairs) == 5
    for mine, theirs in pairs: assert theirs.norm() > 0.01 and (mine - theirs).norm() < 1e-3 * theirs.norm()


def test_bare_products_are_seven_per_evaluation():
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter: speed.bare(20, 6, 3, "cpu")()
    assert speed.flops(20, 6, 3) == 2 * 20 * 20 * 6 * 7 * 3 == counter.get_total_flops()


def test_memory(here):
    result = measure("memory")
    text = well_formed(result)
    assert list(result["rows"]) == ["ours", "published"] and list(result["rows"]["ours"]) == ["24", "48"]
    assert "fits in" not in text
    row = {"seconds": 2.0, "peak_bytes": 3e9, "whole_bytes": 3.5e9}
    big = {**result, "protocol": {**result["protocol"], "sizes": [8192]}, "rows": {"ours": {"8192": row}}}
    assert "A batch of 8,192 fits in 4 GB: 3.00 GB" in report.render(big)
    row["whole_bytes"] = 4.1e9
    assert "does not fit" in report.render(big)


def test_memory_leaves_out_what_would_not_fit_or_take_too_long(monkeypatch):
    tried = []
    monkeypatch.setattr(memory, "fresh", lambda task, whose, n, **_: tried.append((whose, n)) or {"seconds": n**2 / 1e4, "peak_bytes": n, "whole_bytes": n})
    monkeypatch.setattr(memory, "too_large", lambda need, device: "out of memory (needs about 9 GB)" if need > memory.published_bytes(150, 16, 3) else None)
    result = memory.measure((100, 200, 400), 16, 3, time_cap=5)
    assert tried == [("ours", 100), ("ours", 200), ("published", 100)]
    assert "minutes" in result["rows"]["ours"]["400"]["skipped"] and "9 GB" in result["rows"]["published"]["200"]["skipped"]
    assert "9 GB" in well_formed(result)


def test_accuracy(here):
    result = measure("accuracy")
    text = well_formed(result)
    assert "DPM-Solver++ (9 evaluations)" in text and "gaussian-q2" in text
    assert result["products"]["euler"] == {"5": 10, "10": 20, "20": 40}
    assert result["products"]["ours"]["20"] == pytest.approx(41, abs=0.1)
    for row in result["families"].values():
        assert row["ours"]["20"]["mean"] < row["ours"]["10"]["mean"] < row["ours"]["5"]["mean"]
        assert row["ours"]["20"]["mean"] < min(row["euler"]["20"]["mean"], row["dpm"]["20"]["mean"])
    for row in result["precision"].values(): assert row["latents"]["max"] < 1e-5


def test_summary_by_hand():
    "Two families whose errors are powers of ten; the published best counts fewer evaluations, too."
    def row(euler, dpm, ours):
        wrap = lambda counts, values: {str(c): {"mean": v, "min": v, "max": v} for c, v in zip(counts, values)}
        return {"euler": wrap((5, 10, 20), euler), "dpm": wrap((5, 9, 10, 20), dpm), "ours": wrap((5, 10, 20), ours)}
    families = {"a": row((1, 1e-1, 1e-2), (1, 1e-3, 1, 1), (1e-1, 1e-2, 1e-4)),
                "b": row((1, 1e-1, 1e-2), (1, 1, 1, 1e-1), (1e-1, 1e-2, 1e-4))}
    found = accuracy.summary(families, (5, 10, 20))
    assert found["worse"] == {"5": [], "10": ["a"], "20": []}
    assert found["fewer_against_more"]["families"] == {"a": pytest.approx(0.1), "b": pytest.approx(1)}
    assert found["equal"]["families"] == {"a": pytest.approx(10), "b": pytest.approx(100)}
    assert found["equal"]["of_better_solver"] == pytest.approx(100)  # Euler: 1e-2 in both
    assert found["equal"]["of_family_best"] == pytest.approx(math.sqrt(1000))


def test_full_set(here):
    result = measure("full-set")
    text = well_formed(result)
    assert result["flops"] == 4 * 60 * 200 * 16 * 3 and len(result["flops_per_second"]) == 5
    assert all(result["parts"][name]["ratio"] > 0 for name in ("encode", "guests", "decode")) and 0 <= result["at_home"] <= 1
    assert "m = 60 queries among n = 200" in text
    well_formed({**{key: result[key] for key in ("table", "machine", "versions", "date", "protocol")}, "skipped": "out of memory"})


def test_training(here):
    result = measure("training")
    text = well_formed(result, differences=[part[name] for part in result["parts"].values() for name in ("zones and alignment", "everything else")])
    (row,) = result["overhead"]
    assert (row["pixels"], row["batch"]) == (8, 16) and 0 < row["zones"] < row["update"] and "| 8 × 8 | 16 |" in text
    assert result["parts"].keys() == {"generation", "representation", "joint"} and all(part["update"] > part["optimizer"] > 0 for part in result["parts"].values()) and "zones and alignment" in text
    losses = [row["loss"] for row in result["options"].values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # a batch in pieces is the batch


def test_a_batch_larger_than_the_data_has_moved_copies():
    from benchmarks.training import enough
    split = load_data("digits").train
    assert enough(split, len(split)) is split
    more = enough(split, 2 * len(split) + 1)
    assert len(more) == 3 * len(split) == len(more.pixels) and torch.equal(more.labels[-len(split):], split.labels)
    assert torch.equal(more.pixels[len(split):2 * len(split)], split.pixels.roll(1, 3)) and len(more.pixels.flatten(1).unique(dim=0)) > 2.9 * len(split)


def test_scaling(here):
    "One rank in this process, and two in their own."
    result = measure("scaling")
    text = well_formed(result)
    assert [row["ranks"] for row in result["rows"]] == [1, 2] and all(row["seconds"] > 0 for row in result["rows"]) and result["rates"]["bandwidth"] > 0
    assert set(result["rows"][1]["predicted"]) == {"fixed", "networks", "zones", "messages"} and "Mflop a sample" in text


def test_rates(few):
    "Validation split, one row for the plain flow and one for each ratio, a figure for each seed."
    result = measure("rates")
    text = well_formed(result)
    assert list(result["rows"]) == ["no zones", "0.25"] and all(len(runs) == 2 and runs[0] != runs[1] for runs in result["rows"].values())
    assert "validation" in text and "2 seeds" in text


def test_study(few):
    "Each setting is a change that the configuration knows; batches of other sizes see as many images."
    result = measure("study")
    text = well_formed(result)
    assert list(result["rows"]) == list(command.TINY["study"]["settings"]) and all(len(runs) == 2 and runs[0] != runs[1] for runs in result["rows"].values())
    assert "validation" in text and "2 seeds" in text and "SimCLR, temperature 0.2" in text
    for name, changes in study.SETTINGS.items(): get_preset(REPRESENTATION_PRESETS, "cpu", **{**changes, "steps": 100})
    assert all(64 * study.SETTINGS[name]["steps"] * 4 == 1024 for name in ["batch 64, as many images"]) and 1024 * study.SETTINGS["batch 1,024, as many images"]["steps"] == 256


def test_joint_study(few):
    "A setting without a decoder draws nothing; the others have all figures."
    result = measure("joint-study")
    text = well_formed(result)
    assert list(result["rows"]) == list(command.TINY["joint-study"]["settings"]) and all(len(runs) == 2 and runs[0] != runs[1] for runs in result["rows"].values())
    assert "agreement" not in result["rows"]["no generation"][0] and "accuracy_all_1" in result["rows"]["no generation"][0] and "agreement" in result["rows"]["as it is"][0]
    assert "validation" in text and "20 images, α = 0" in text and "all training images, α = 1" in text
    for changes in joint_study.SETTINGS.values(): get_preset(JOINT_PRESETS, "cpu", **{**changes, "steps": 100})


class Reader:
    "Names what the first pixel says, with noise one class on; remembers what it was asked."
    def __init__(self): self.asked = []
    def classify(self, images, *, alpha, among, generator):
        self.asked.append((len(images), alpha, among, generator.initial_seed()))
        return images[:, 0, 0, 0].long() + (alpha > 0)


def test_naming_is_judged_in_spaces_of_so_many_images_with_so_much_noise():
    "Those beyond the last whole space do not count; among ready zones all are named at once."
    labels = torch.arange(50) % 10
    images, company = (labels + (torch.arange(50) >= 40)).float().reshape(50, 1, 1, 1), LatentZones(torch.eye(3))
    for alpha, wanted in ((0.0, 1.0), (1.0, 0.0)):
        assert joint_study.named_in_spaces(reader := Reader(), (images, labels), 20, alpha, 7) == wanted and reader.asked == [(20, alpha, None, 7)] * 2
    assert joint_study.named_in_spaces(reader := Reader(), (images, labels), company, 0.0, 3) == pytest.approx(0.8) and reader.asked == [(50, 0.0, company, 3)]


def test_figures_of_the_joint_study_are_called_what_they_are(monkeypatch, few):
    "By how many share the space, the zones of all training images at last, and by the noise; on validation images, with the run's seed."
    asked, images = [], joint_study.load_data("digits")
    monkeypatch.setattr(joint_study, "SPACES", (20, 25, 1000))  # of which thirty images fill two
    monkeypatch.setattr(joint_study, "train", lambda trainer, *_, final, **more: final(trainer.network))
    monkeypatch.setattr(joint_study, "named_in_spaces", lambda network, valid, crowd, alpha, seed: asked.append((valid, seed)) or (crowd if isinstance(crowd, int) else len(crowd)) + alpha / 2)
    found = joint_study.one_of("tiny", images, 4, 40, drawing=False)
    assert found == {f"accuracy_{name}_{alpha:g}": size + alpha / 2 for name, size in ((20, 20), (25, 25), ("all", 1258)) for alpha in joint_study.ALPHAS}
    assert all(torch.equal(valid[0], images.valid.images) and seed == 4 for valid, seed in asked)


def test_kept_figures_of_the_joint_study_are_those_that_it_measures():
    rows = json.loads((ROOT / "benchmarks/results/joint-study.json").read_text())["rows"]
    named = {f"accuracy_{size}_{alpha:g}" for size in (*joint_study.SPACES, "all") for alpha in joint_study.ALPHAS}
    assert list(rows) == list(joint_study.SETTINGS)
    for name, runs in rows.items():
        assert len(runs) == 3, name
        drawn = {"agreement", "asked", "reconstruction"} if joint_study.SETTINGS[name].get("drawing", True) else set()
        assert all(run.keys() == named | drawn for run in runs), name


def test_rate_and_fixed_time_of_two_timings():
    assert scaling.rate_and_fixed([10.0, 30.0], [2.0, 4.0]) == pytest.approx((10.0, 1.0))
    assert scaling.rate_and_fixed([10.0, 30.0], [1.0, 4.0]) == pytest.approx((8.0, 0.0), rel=0.1)  # nothing takes less than no time
    with pytest.raises(RuntimeError, match="took no longer"): scaling.rate_and_fixed([10.0, 30.0], [4.0, 1.0])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_gpu_table_on_the_cpu(here, monkeypatch):
    monkeypatch.setitem(gpu.CANDIDATES, "broken", None)
    result = measure("gpu", device="cpu")
    text = well_formed(result)
    rows = result["candidates"][0]["rows"]
    assert list(rows) == [gpu.BARE, *CANDIDATES]
    assert rows["blocked"]["tf32"]["skipped"] == "no TF32 on this device" and "skipped" in rows["broken"]["fp32"]
    assert max(rows["library"]["fp32"]["errors"].values()) < 1e-5 < rows["blocked"]["bf16"]["errors"]["mean"] < 0.05
    assert "no TF32" in text and "### One evaluation, n = 40, q = 24" in text


# -- candidates ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["library", "blocked", "sdpa", "sdpa-columns", "flex"])
@pytest.mark.parametrize("m, n, q", [(30, 50, 8), (70, 33, 13)])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_candidates_agree(name, m, n, q):
    found = gpu.errors(prepared(name), make_question(m, n, q, "cpu"), "fp32")
    assert ("log_prob" in found) == (not name.startswith("sdpa"))
    if "no_gradient" not in found: assert {"by_y", "by_anchors"} <= found.keys()
    else: assert name == "flex"
    assert all(error < 1e-5 for key, error in found.items() if key != "no_gradient")


def test_blocks_of_a_candidate_add_up(monkeypatch):
    "Several blocks of rows, the last one smaller."
    from benchmarks import candidates
    monkeypatch.setattr(candidates, "block_size", lambda n, device: 16)
    for name in ("library", "blocked"):
        assert max(gpu.errors(prepared(name), make_question(50, 40, 8, "cpu"), "fp32").values()) < 1e-5


def test_triton_kernel_in_its_interpreter():
    pytest.importorskip("triton")
    code = ("import json\nfrom benchmarks import gpu\nfrom benchmarks.candidates import make_question, prepared\n"
            "print(json.dumps([gpu.errors(prepared('triton'), make_question(*shape, 'cpu'), 'fp32') for shape in ((70, 50, 24), (130, 33, 16))]))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for errors in json.loads(run.stdout): assert len(errors) == 4 and max(errors.values()) < 1e-5


# -- processes and command line --------------------------------------------------------------------

def test_a_process_of_its_own_sees_its_own_peak(tmp_path):
    (tmp_path / "probe.py").write_text(
        "import time\nimport torch\nfrom benchmarks.process import gauge\n"
        "def hold(numbers):\n    torch.ones(60_000_000)\n    return gauge(lambda: torch.ones(numbers).sum())\n"
        "def sleep(): time.sleep(60)\ndef full(): raise MemoryError('no room')\ndef wrong(): raise KeyError('x')\n")
    env = {"PYTHONPATH": str(tmp_path)}
    found = process.fresh("probe:hold", numbers=20_000_000, environment=env)
    if Path("/proc/self/clear_refs").exists(): assert 75e6 < found["peak_bytes"] < 110e6  # not the larger one before
    assert found["seconds"] > 0 and found["whole_bytes"] > found["peak_bytes"]
    assert process.fresh("probe:full", environment=env) == {"skipped": "out of memory (no room)"}
    assert process.fresh("probe:sleep", environment=env, time_cap=0.2) == {"skipped": "stopped after 0.2 s"}
    with pytest.raises(RuntimeError, match="probe:wrong"): process.fresh("probe:wrong", environment=env)


def test_what_cannot_fit_is_said_beforehand():
    assert process.too_large(1.0) is None and "needs about 1e+09 GB" in process.too_large(1e18).replace("1,000,000,000", "1e+09")


def test_command_line(tmp_path):
    run = lambda *args: subprocess.run([sys.executable, "-m", "benchmarks", *args], cwd=ROOT, capture_output=True, text=True)
    done = run("full-set", "--tiny", "--m", "40", "--save", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "## A whole data set" in done.stdout and "== full-set: 40 queries among 200 anchors" in done.stderr
    assert json.loads((tmp_path / "full-set.json").read_text())["protocol"]["m"] == 40


def test_data_that_are_not_there_are_named_in_one_line(monkeypatch, capsys):
    "Of a single table that is the end; of all of them the others are measured all the same."
    monkeypatch.delenv("LZN_DATA", raising=False)
    with pytest.raises(SystemExit) as ended: command.main(["joint-study"])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "joint-study: mnist: no folder to look in" in said[-1] and "LZN_DATA" in said[-1] and len(said) == 1
    measured = []
    monkeypatch.setattr(command, "TABLES", {"joint-study": None, "rates": None})
    monkeypatch.setitem(command.MEASURE, "rates", lambda **given: measured.append("rates") or {})
    monkeypatch.setattr(command, "render", lambda result: "measured")
    command.main(["all"])
    assert measured == ["rates"] and "joint-study: mnist" in capsys.readouterr().err


def test_tiny_numbers_are_not_kept_among_the_results(capsys):
    with pytest.raises(SystemExit): command.main(["speed", "--tiny", "--save"])
    assert "tiny numbers are no results" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    command.main(["gpu"])
    assert "no CUDA device here" in capsys.readouterr().out


def test_options_reach_the_measurements():
    parse = lambda *argv: (args := command.parser().parse_args(argv)) and command.options(args.table, args)
    assert parse("memory", "--n", "3000") == {"sizes": [256, 512, 1000, 2048, 3000]}
    assert parse("full-set", "--m", "7", "--n", "9", "--no-baseline") == {"m": 7, "n": 9}
    assert parse("gpu", "--pairs", "3", "--no-baseline", "--time-cap", "9", "--device", "cpu") == {
        "pairs": 3, "device": "cpu", "baseline": False, "time_cap": 9}
    assert parse("accuracy", "--n", "3") == {}


def test_numbers_as_text():
    assert [report.digits(x) for x in (0, 1234.5, 12.345, 0.01234, 1.5e-5, 0.9999)] == ["0", "1,234", "12.3", "0.0123", "1.50e-05", "1.000"]
    assert [report.duration(x) for x in (12.34, 0.0123, 4.5e-6)] == ["12.3 s", "12.3 ms", "4.50 µs"]
    assert report.size(4.3e9) == "4.30 GB" and report.size(2.5e7) == "25.0 MB"
    assert command.rounded({1: [0.123456789, 3, "x", None]}) == {"1": [0.12346, 3, "x", None]}


def test_committed_results_render():
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        result = json.loads(path.read_text())
        assert path.stem == result["table"] and "/home/" not in path.read_text()
        well_formed(result)


@pytest.mark.parametrize("page, name", [("31_benchmarks", "speed"), ("31_benchmarks", "memory"), ("31_benchmarks", "accuracy"), ("31_benchmarks", "full-set"), ("31_benchmarks", "training"), ("30_scaling", "scaling")])
def test_pages_show_the_numbers_that_are_kept(page, name):
    "A table measured anew wants its page run anew."
    cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text())["cells"]
    shown = ["".join(output.get("data", {}).get("text/markdown", "")).strip() for cell in cells for output in cell.get("outputs", [])]
    assert report.render(json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()), title=False).strip() in shown
