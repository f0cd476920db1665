"""The folder of a run: what is written stays, what is read is what was meant, and many runs make a table."""
import json
import os
import subprocess
from pathlib import Path

import pytest

import lzn_nb.runs as runs
from lzn_nb.runs import (Diary, MetricsReader, append_line, compare_runs, describe_machine, final_figures, find_runs, git_revision, note_sitting, open_run,
                         read_metrics, read_sittings, write_atomically, write_metrics)


def steps(out): return [line["step"] for line in read_metrics(out)]


# -- files ------------------------------------------------------------------------------------
def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, lambda path: path.write_text("old"))

    def failing(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"): write_atomically(file, failing)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_the_new_file_is_complete_and_on_the_disk_when_it_takes_the_place(tmp_path, monkeypatch):
    (file := tmp_path / "a").write_text("old")
    seen, replace, fsync = [], os.replace, os.fsync

    def watching(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watching)
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append("fsync"), fsync(handle)))
    write_atomically(file, lambda path: path.write_text("new"))
    assert seen == ["fsync", ("new", "old"), "fsync"] and file.read_text() == "new"  # the file, its name, the folder


# -- figures ----------------------------------------------------------------------------------
def test_metrics_survive_a_cut_line_but_not_a_broken_one(tmp_path):
    assert read_metrics(tmp_path) == [] and final_figures(tmp_path) is None
    for step in (1, 2, 3): write_metrics(tmp_path, step=step, loss=0.1 * step)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    for cut in range(1, len('{"step": 3, "loss": 0.3')):
        file.write_text(whole[:-cut - 1])
        assert steps(tmp_path) == [1, 2]
    for text in ("{}\nnonsense\n{}\n", '{"step": 1}\nnonsense\nnonsense\n', 'nonsense\n{}\n{"resumed": 0}\n'):
        file.write_text(text)
        with pytest.raises(ValueError, match="line [12] of .*metrics.jsonl"): read_metrics(tmp_path)


def test_what_was_overtaken_is_forgotten_but_stays_in_the_file(tmp_path):
    for step in (1, 5, 6): write_metrics(tmp_path, step=step)
    with (tmp_path / "metrics.jsonl").open("a") as file: file.write('{"st')  # killed while it wrote
    write_metrics(tmp_path, resumed=5)
    write_metrics(tmp_path, step=6, final=True)
    assert steps(tmp_path) == [1, 5, 6] and final_figures(tmp_path)["step"] == 6
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 6
    write_metrics(tmp_path, resumed=0)
    assert read_metrics(tmp_path) == [] and final_figures(tmp_path) is None


def test_a_reader_goes_on_where_it_stopped_and_sees_what_a_new_one_sees(tmp_path):
    "Also a line that is cut in its midst, one that is written over, a file that is another one, as long as before, and one that is gone."
    reader, file = MetricsReader(tmp_path), tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": k, "note": "é" * k}, ensure_ascii=False) + "\n" for k in range(1, 6)).encode() + b'\n{"st\n{"resumed": 3}\n{"step": 4, "final": true}\n'
    for end in range(len(whole) + 1):
        file.write_bytes(whole[:end])
        assert reader.read() == read_metrics(tmp_path)
    assert [line["step"] for line in reader.read()] == [1, 2, 3, 4]
    reader.read().clear()  # what is given away is not what is kept
    for text in (whole.replace(b'"final": true', b'"final": 1234'), whole[:40], b"", b'{"step": 9}\n'): file.write_bytes(text); assert reader.read() == read_metrics(tmp_path)
    with file.open("a") as more: more.write("words\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="metrics: line 2 of .* is no record of a run"): reader.read()
    file.write_text('{"step": 9}\n{"step": 10}\n')
    assert [line["step"] for line in reader.read()] == [9, 10]
    file.unlink()
    assert reader.read() == []
    file.write_text('{"step": 1}\n')
    assert reader.read() == [{"step": 1}]


def test_only_a_cut_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step"')
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, resumed=0)
    write_metrics(tmp_path, step=1)
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_line_without_room_is_taken_back_and_comes_later(tmp_path, monkeypatch):
    diary, fsync = Diary(tmp_path), os.fsync
    diary.write(step=1)

    def full(handle): raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the line is in the file already when the disk says no
    with pytest.warns(UserWarning, match="metrics: cannot write to .* \\(No space left on device\\); training goes on") as told:
        for step in (2, 3): diary.write(step=step)
    assert len(told) == 1 and steps(tmp_path) == [1] and (tmp_path / "metrics.jsonl").read_text().endswith("}\n")
    monkeypatch.setattr(os, "fsync", fsync)
    diary.write(step=4)
    assert steps(tmp_path) == [1, 2, 3, 4]


# -- settings ---------------------------------------------------------------------------------
def test_settings_are_kept_and_compared(tmp_path):
    settings = {"steps": 3, "mults": (1, 2), "name": "ä"}
    out = open_run(tmp_path / "a" / "b", settings)
    assert json.loads((out / "config.json").read_text()) == {"steps": 3, "mults": [1, 2], "name": "ä"}
    assert open_run(out, {"steps": 4}) == out  # nothing logged, nothing saved: no run yet
    open_run(out, settings)
    write_metrics(out, step=1)
    with pytest.raises(ValueError, match="out: .* already holds a run"): open_run(out, settings)
    assert open_run(out, settings, resume=True) == out
    for changed, words in (({"steps": 4}, "steps was 3, is 4"), ({"new": 1}, "new was None, is 1")):
        with pytest.raises(ValueError, match=words): open_run(out, settings | changed, resume=True)
    assert json.loads((out / "config.json").read_text())["steps"] == 3
    open_run(out, settings | {"later": (1, 2)}, resume=True, defaults={"later": (1, 2), "steps": 9})  # begun before there was such a setting
    with pytest.raises(ValueError, match="later was \\[1, 2\\], is 3"): open_run(out, settings | {"later": 3}, resume=True, defaults={"later": (1, 2)})
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match="other settings"): open_run(out, settings, resume=True)


def test_folders_that_cannot_be_written(tmp_path):
    (file := tmp_path / "file").write_text("mine")
    places = [file, file / "below"] + [Path("/proc/nothing/here")] * Path("/proc/self").exists()
    for place in places:
        with pytest.raises(ValueError, match=f"out: cannot write to {place} "): open_run(place, {})
    assert file.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="out: cannot write"): open_run(tmp_path, {})
    tmp_path.chmod(0o700)


# -- where it ran -----------------------------------------------------------------------------
def test_the_revision_says_if_something_was_changed(tmp_path, monkeypatch):
    def git(*words): return subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True, text=True).stdout
    assert git_revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("one")
    git("add", "a"); git("commit", "-qm", "one")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")[:12]
    (package := tmp_path / "package").mkdir()
    (package / "b").write_text("installed here, but not of this repository")
    assert git_revision(package) is None
    git("add", "package"); git("commit", "-qm", "two")
    (tmp_path / "a").write_text("two")
    assert git_revision(package) == git("rev-parse", "HEAD")[:12]  # what changed is not of the code
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")[:12] + "+"
    (package / "new").write_text("a module that nobody has committed")
    assert git_revision(package).endswith("+")
    monkeypatch.setenv("PATH", "")
    assert git_revision(tmp_path) is None


def test_a_line_for_each_sitting(tmp_path):
    note_sitting(tmp_path, device="cpu", seed=3)
    note_sitting(tmp_path, device="cpu", seed=3, ranks=2)
    first, second = [json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert {"began", "python", "torch", "accelerate", "revision", "hardware", "cores", "threads", "device", "cuda"} <= first.keys()
    assert second["ranks"] == 2 and first["seed"] == 3 and describe_machine()["device"] == "cpu"


# -- many runs --------------------------------------------------------------------------------
def study(folder):
    for name, seed, rate in (("a", 0, 0.1), ("b/c", 1, 0.1), ("d", 0, 0.2)):
        out = open_run(folder / name, {"scenario": "x", "steps": 9, "seed": seed, "rate": rate})
        write_metrics(out, step=4, loss=seed + rate, note="text")
        if name == "a": write_metrics(out, final=True, step=9, accuracy=0.98765, loss=0.01)
    return folder


def test_runs_are_listed_with_what_differs(tmp_path):
    rows = compare_runs(study(tmp_path))
    assert [row["run"] for row in rows] == ["a", "b/c", "d"] and [row["state"] for row in rows] == ["finished", "4 of 9", "4 of 9"]
    assert [row["differs in"] for row in rows] == ["rate=0.1, seed=0", "rate=0.1, seed=1", "rate=0.2, seed=0"]
    assert rows[0]["accuracy"] == "0.9877" and rows[1]["accuracy"] == "–" and rows[1]["loss"] == "1.1" and "note" not in rows[0]
    assert list(compare_runs(tmp_path, ["loss"])[0]) == ["run", "state", "differs in", "loss"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"] and compare_runs(tmp_path / "a")[0]["run"] == "a"
    assert compare_runs(tmp_path / "a" / "checkpoints") == []


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    (study(tmp_path) / "a" / "metrics.jsonl").write_text("x\n{}\n")
    (tmp_path / "d" / "config.json").write_text("{")
    rows = compare_runs(tmp_path)
    assert rows[0]["state"].startswith("unreadable: metrics: line 1") and rows[2]["state"].startswith("unreadable") and rows[1]["state"] == "4 of 9"


def test_wrong_questions_about_runs(tmp_path):
    with pytest.raises(ValueError, match="folder: got .*nowhere, wanted a folder with runs"): compare_runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="figures: got 'beauty', wanted some of \\['accuracy', 'loss'\\]"): compare_runs(study(tmp_path), ["loss", "beauty"])


def test_room_for_a_part_of_a_line(tmp_path):
    "What was written of it is taken back, so that the file stays whole."
    resource = pytest.importorskip("resource")
    for step in (1, 2): write_metrics(tmp_path, step=step)
    file, limits = tmp_path / "metrics.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = file.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 7, limits[1]))
    try:
        with pytest.raises(OSError): write_metrics(tmp_path, step=3, loss=0.123456789)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    write_metrics(tmp_path, step=3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_settings_that_are_free_may_change(tmp_path):
    write_metrics(open_run(tmp_path, {"steps": 10, "keep": 2}), step=1)
    assert json.loads((open_run(tmp_path, {"steps": 10, "keep": 5}, resume=True, free=["keep"]) / "config.json").read_text()) == {"steps": 10, "keep": 5}
    with pytest.raises(ValueError, match="steps was 10, is 20"): open_run(tmp_path, {"steps": 20, "keep": 5}, resume=True, free=["keep"])


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3, "lo\n{"resum', "\0" * 20])
def test_lines_cut_by_crashes_spoil_nothing(tmp_path, cut):
    "Also at the end of a finished run, and twice in a row."
    for step in (1, 2): write_metrics(tmp_path, step=step)
    with (tmp_path / "metrics.jsonl").open("a") as file: file.write(cut)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write_metrics(tmp_path, step=3, final=True)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3] and final_figures(tmp_path)


@pytest.mark.parametrize("text", ["5", "[1]", '{"step": "x"}', "words"])
def test_lines_that_are_no_records_are_named(tmp_path, text):
    write_metrics(tmp_path, step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file: file.write(text + "\n")
    with pytest.raises(ValueError, match="metrics: line 2 of .* is no record of a run"): read_metrics(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "null", "[" * 100_000, "", "\0"])
def test_a_foreign_folder_does_not_hide_the_runs_beside_it(tmp_path, text):
    study(tmp_path)
    (tmp_path / "bad" / "checkpoints").mkdir(parents=True)
    (tmp_path / "bad" / "config.json").write_text(text)
    rows = compare_runs(tmp_path)
    assert sum(row["state"].startswith("unreadable: config: ") for row in rows) == 1 and len(rows) > 1
    write_metrics(tmp_path / "bad", step=1)
    with pytest.raises(ValueError, match="config: .*config.json"): open_run(tmp_path / "bad", {"steps": 1}, resume=True)


@pytest.mark.parametrize("name, text", [("config.json", '{"theme": "dark"}'), ("config.json", "theme: dark"), ("report.html", "<html>")])
def test_a_new_run_writes_over_nothing_that_is_not_its_own(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"{name}.*wanted"): open_run(tmp_path, {"steps": 3}, resume=resume)
    assert (tmp_path / name).read_text() == text


def test_a_run_that_died_before_its_first_line_is_begun_anew(tmp_path):
    open_run(tmp_path, {"steps": 3})
    note_sitting(tmp_path)
    open_run(tmp_path, {"steps": 4})
    assert runs.read_settings(tmp_path) == {"steps": 4}


def test_sittings_are_read_back(tmp_path):
    assert read_sittings(tmp_path) == []
    for seed in (1, 2): note_sitting(tmp_path, seed=seed)
    with (tmp_path / "environment.jsonl").open("a") as file: file.write('[1]\n{"seed": 3, "ha')
    assert [sitting["seed"] for sitting in read_sittings(tmp_path)] == [1, 2] and read_sittings(tmp_path)[0]["python"]
