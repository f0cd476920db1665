"""The hygiene checks find what they are there to find, and are content with a clean project."""
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check_notebooks as check
import drop_views
import make_readme
import pytest
from execnb.nbio import nb2str
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["slow", "cuda"]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="  # PNG, one pixel


def md(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(True)}


def code(text, **data):
    "A code cell; keywords are its output, MIME types with `_` for `/`."
    out = {"data": {k.replace("_", "/"): v for k, v in data.items()}, "metadata": {}, "output_type": "display_data"}
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [out] if data else [],
            "source": text.splitlines(True)}


def notebook(*cells):
    nb = {"cells": [dict(c, id=f"c{i:02d}") for i, c in enumerate(cells)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    clean_nb(nb)
    return nb


def save(path, nb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nb2str(nb), encoding="utf-8")
    return path


def example():
    return notebook(
        md("# Example\n\n> One sentence."),
        code("#| default_exp example"),
        code("#| export\ndef double(x):\n    return 2 * x"),
        code("double(4)", text_plain="8"),
    )


def index():
    return notebook(
        md("# Project\n\n> What it is.\n\nSee [the example](00_example.ipynb#part)."),
        code("#| hide\nsecret = 1"),
        code("#| echo: false\n#| fig-alt: one dot\ndraw()", image_png=DOT, text_plain="<Figure>"),
        code("table()", text_html="<style>td {}</style><b>html</b>", text_markdown="| a |\n|---|", text_plain="plain"),
        code("x = 1\nsetup()  #| hide_line"),
    )


@pytest.fixture(scope="module")
def clean_project(tmp_path_factory):
    "A small project that agrees with itself; copied for each test, as exporting takes a second."
    root = tmp_path_factory.mktemp("clean")
    shutil.copy(ROOT / "settings.ini", root)
    save(root / "nbs/00_example.ipynb", example())
    save(root / "nbs/index.ipynb", index())
    for name, text in check.fresh_export(root).items():
        (root / "lzn_nb").mkdir(exist_ok=True)
        (root / "lzn_nb" / name).write_text(text, encoding="utf-8")
    make_readme.write(root)
    return root


@pytest.fixture
def project(clean_project, tmp_path):
    return Path(shutil.copytree(clean_project, tmp_path / "project"))


def faults(project, nb):
    "The findings about one notebook, as text."
    return "\n".join(map(str, check.notebook_findings(save(project / "nbs/01_new.ipynb", nb), project)))


def test_clean_project_has_no_findings(project):
    assert not list(check.findings(project))


@pytest.mark.parametrize("line", [
    "#| hide,", "#| hidden", "#| exprot", "#| export: utils", "#| export slow", "#| export a-b", "#| hide this", "#| default_exp",
    "#| eval false", "#| echo:", "#| echo: no", "#| hide_input", "# | export", "  #| export", "#export", "# hide", "#| ", "#|   - item",
    "x = 1\n#| export", "# comment\n#| slow", "x = 1  #| hide", "x = 1  # | hide_line",
])  # fmt: skip
def test_misspelled_directive_is_found(line):
    assert list(check.directive_faults(f"{line}\ny = 2", FLAGS)), line


@pytest.mark.parametrize("line", [
    "#| export", "#|export", "#| export nets.unet", "#| hide:", "#| slow", "#| eval: false", '#| fig-cap: "Zones: owners"', "%%time\n#| slow",
    "#| label: fig-a\n#| layout-ncol: 2", "# hide the axes", "x = 1  #| hide_line", "s = '''\n#| hide\n'''", "x = 1\n# | a | b |", "!ls\n%pip list",
])  # fmt: skip
def test_correct_directive_is_accepted(line):
    assert not list(check.directive_faults(f"{line}\ny = 2", FLAGS))


def test_long_export_cell(project):
    long = "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(30))
    assert "1: an export cell of 31 lines" in faults(project, notebook(code(long), code("#| default_exp new")))
    assert "export cell" not in faults(project, notebook(code(long.rpartition("\n")[0]), code("#| default_exp new")))


def test_export_without_module(project):
    assert "exports without a module" in faults(project, notebook(code("#| export\nx = 1")))


def test_widget_bundle_and_size(project):
    nb = example()
    nb["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": "x" * check.MAX_BYTES}}
    assert "metadata.widgets" in faults(project, nb) and "1.0 MB" in faults(project, nb)


def test_views_of_widgets_are_found_and_dropped(project):
    nb = notebook(md("# Widget"), code("#| fig-alt: a widget\nwidget", **{drop_views.VIEW.replace("/", "_"): {"model_id": "a1"}, "image_png": DOT, "text_plain": "<W>"}))
    assert "2: the output asks for a widget that is gone" in faults(project, nb)
    path = save(project / "nbs/01_new.ipynb", nb)
    drop_views.main(project / "nbs")
    kept = json.loads(path.read_text())["cells"][1]["outputs"][0]["data"]
    assert sorted(kept) == ["image/png", "text/plain"] and not check.notebook_findings(path, project)
    assert "drop_views.py" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("kind", ["image_png", "image_svg+xml", "image_jpeg"])
def test_picture_without_words_is_found(project, kind):
    shown = lambda text: faults(project, notebook(md("Dot:"), code(text, **{kind: DOT})))
    for text in ("#| fig-alt: one dot\ndraw()", "#| echo: false\n#| fig-alt: one dot\ndraw()"):
        assert not shown(text), text
    for text in ("draw()", "#| echo: false\ndraw()", "# fig-alt: one dot\ndraw()", "draw()\n#| fig-alt: one dot", "#| fig-alt:\ndraw()"):
        assert "2: a picture without words" in shown(text), text
    assert not faults(project, notebook(code("print()", text_plain="image/png")))


def test_in_ci_there_is_a_browser():
    workflow = (ROOT / ".github/workflows/test.yaml").read_text()
    assert re.search(r"run: .*apt-get install .*chromium", workflow) and workflow.index("chromium\n") < workflow.index("make test")


def test_ci_runs_on_every_python_that_the_makefile_looks_for():
    named = set(re.findall(r"python(3\.\d+)", re.search(r"for p in (python3 .*?); do", (ROOT / "Makefile").read_text())[1]))
    assert named == set(re.findall(r'"(3\.\d+)"', re.search(r"python-version: \[(.*)\]", (ROOT / ".github/workflows/test.yaml").read_text())[1])) and "3.10" in named


def test_dirty_metadata(project):
    nb = example()
    nb["cells"][3].update(execution_count=7, metadata={"tags": ["x"]})
    nb["metadata"]["language_info"] = {"name": "python"}
    found = faults(project, nb)
    assert "ipynb:4: not clean (execution_count, metadata)" in found and "ipynb: not clean (metadata)" in found


def test_written_otherwise_than_nbdev_clean_does(project):
    path = project / "nbs/01_new.ipynb"
    path.write_text(json.dumps(example()))
    assert [f.what for f in check.notebook_findings(path, project)] == ["not written the way nbdev_clean writes it; run `make export`"]


def test_error_output_and_machine_paths(project):
    nb = example()
    nb["cells"][3]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": ["File /home/someone/x.py"]}]
    found = faults(project, nb)
    assert "keeps an error" in found and "/home/someone/x.py" in found
    for text in [f"{project}/runs", "'/root/.cache'", "C:\\Users\\me", "/tmp/ipykernel_1/2.py:3: Warning"]:
        assert "path of this machine" in faults(project, notebook(code("show()", text_plain=text))), text
    assert not faults(project, notebook(code("#| fig-alt: x\nshow()", text_plain="https://host.org/home/x and runs/home/x", image_png="ab/home/x")))


def test_shape_of_a_notebook(project):
    shown, hidden = code("1", text_plain="1"), code("#| hide\n1", text_plain="1")
    assert "no outputs" in faults(project, notebook(*[code("1")] * 4))
    assert "3 of 9 code cells are hidden" in faults(project, notebook(*[shown] * 6, *[hidden] * 3, *[md("why")] * 3))
    assert "2 markdown cells for 9" in faults(project, notebook(*[shown] * 9, *[md("why")] * 2))
    assert not faults(project, notebook(*[shown] * 7, *[hidden] * 2, *[md("why")] * 3))


def test_repeated_id_and_unreadable_notebook(project):
    nb = example()
    nb["cells"][3]["id"] = "c00"
    assert "4: its id 'c00' occurs before" in faults(project, nb)
    path = project / "nbs/02_broken.ipynb"
    path.write_text("{")
    assert "cannot be read" in str(check.notebook_findings(path, project)[0])


def test_package_drift(project):
    lib = project / "lzn_nb"
    (lib / "by_hand.py").write_text("x = 1\n")
    (lib / "__init__.py").write_text('"""Ours."""\n__version__ = "0.0.9"\n')
    (lib / "_modidx.py").unlink()
    module = lib / "example.py"
    module.write_text(module.read_text().replace("2 * x", "3 * x"))
    found = {f.notebook.split("/")[1]: f.what for f in check.package_findings(project)}
    assert sorted(found) == ["__init__.py", "_modidx.py", "by_hand.py", "example.py"]
    assert "made from no notebook" in found["by_hand.py"] and "differs from its notebook" in found["example.py"]


def test_readme_shows_what_documentation_would(project):
    text = (project / "README.md").read_text()
    assert "[the example](nbs/00_example.ipynb#part)" in text
    assert "![one dot](nbs/images/index_1_0.png)" in text and "draw()" not in text
    assert (project / "nbs/images/index_1_0.png").read_bytes() == base64.b64decode(DOT)
    assert "| a |" in text and "plain" not in text and "html" not in text
    assert "x = 1" in text and "secret" not in text and "setup()" not in text and "#|" not in text


def test_readme_drift_and_stale_figure(project):
    (project / "nbs/images/index_9_0.png").write_bytes(b"old")
    (project / "nbs/images/index_1_0.png").write_bytes(b"other")
    readme = project / "README.md"
    readme.write_text(readme.read_text().replace("What it is.", "What it was."))
    found = "\n".join(make_readme.drift(project))
    assert "-> What it was." in found and "index_1_0.png: differs" in found and "index_9_0.png: no cell" in found
    make_readme.write(project)
    assert not list(make_readme.drift(project)) and not (project / "nbs/images/index_9_0.png").exists()


def test_command_line_names_cell_and_fails(project):
    bad = save(project / "nbs/03_bad.ipynb", notebook(md("# Bad"), code("#| hide,\nx = 1")))
    run = subprocess.run([sys.executable, ROOT / "tools/check_notebooks.py", bad], capture_output=True, text=True)
    assert run.returncode == 1 and "03_bad.ipynb:2: '#| hide,' is ignored" in run.stdout
