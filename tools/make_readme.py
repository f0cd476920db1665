#!/usr/bin/env python3
"""README.md from nbs/index.ipynb, without Quarto.

    python tools/make_readme.py           write README.md and its figures
    python tools/make_readme.py --check   compare with the committed ones; exit status 1 on drift

The page shows what nbdev's documentation would: hidden and exported cells are left out, directives
are stripped, `echo: false` keeps only the output, and a figure's `fig-alt` or `fig-cap` becomes its
alternative text. Figures are files in nbs/images/, so that a code host can show them.
"""
import argparse
import difflib
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import extract_directives
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
INDEX, README, FIGURES = "nbs/index.ipynb", "README.md", "nbs/images"
NOTE = f"<!-- Made from {INDEX} by tools/make_readme.py; edit the notebook, not this file. -->\n\n"

# a figure before any table, a table before its plain text; nbconvert would prefer HTML to all
PRIORITY = ["image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/html", "text/latex", "text/plain"]
LEFT_OUT = {"hide", "default_exp", "export", "exporti"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def value(directives, option):
    "What stands behind a Quarto option, as one string without quotes."
    return " ".join(directives.get(option + ":", [])).strip("\"'")


def prepare_code(cell):
    "Apply the directives of a code cell; False when nothing of it belongs on the page."
    directives = extract_directives(cell, remove=False)
    if directives.keys() & LEFT_OUT or value(directives, "include") == "false":
        return False
    lines = [line for line in cell.source.splitlines() if not re.match(r"\s*#\s*\||.*#\|\s*hide_line\s*$", line)]
    cell.source = "\n".join(lines).strip("\n")
    only_output = value(directives, "echo") == "false" or not cell.source
    cell.metadata.transient = {"remove_source": only_output}  # nbconvert's own mark
    output = value(directives, "output")
    cell.outputs = [] if output == "false" else [o for o in cell.outputs if o.get("name") != "stderr"]
    for i, out in enumerate(cell.outputs):
        if out.output_type == "stream":
            out.text = ANSI.sub("", out.text)
            if output == "asis":
                cell.outputs[i] = nbformat.v4.new_output("display_data", {"text/markdown": out.text})
        elif "text/html" in out.get("data", {}):  # a code host shows the bodies of these as text
            out.data["text/html"] = re.sub(r"<(style|script)\b.*?</\1>\s*", "", out.data["text/html"], flags=re.S)
    cell.metadata.alt = value(directives, "fig-alt") or value(directives, "fig-cap")
    return bool(cell.outputs) or not only_output


def from_root(text, root):
    "Links to files beside the notebook, as seen from the repository's root."

    def turn(match):
        before, target, after = match.groups()
        path = target.split("#")[0]
        inside = path and (root / "nbs" / path).exists()
        return before + (posixpath.normpath(f"nbs/{target}") if inside else target) + after

    return re.sub(r"""(\]\(|\bsrc=["']|\bhref=["'])([^\s)"':]+)([\s)"'])""", turn, text)


def squeeze(text):
    "At most one blank line in a row outside of fenced code, none at the ends."
    kept, fenced = [], False
    for line in text.splitlines():
        fenced ^= bool(re.match(" {0,3}```", line))
        if fenced or line.strip() or (kept and kept[-1]):
            kept.append(line if line.strip() else "")
    return "\n".join(kept).strip("\n") + "\n"


def build(root=ROOT):
    "{path relative to `root`: content} of the README and its figures."
    nb = nbformat.read(root / INDEX, as_version=4)
    nb.metadata.language_info = {"name": "python"}  # nbdev_clean removes it; the fences want it
    nb.cells = [c for c in nb.cells if c.cell_type != "raw" and (c.cell_type != "code" or prepare_code(c))]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source, root)
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": PRIORITY}))
    body, resources = exporter.from_notebook_node(nb, {"unique_key": "index", "output_files_dir": FIGURES})

    def with_alt(match):  # nbconvert writes the file's type; its name tells the cell
        cell = nb.cells[int(match[2])]
        return f"![{cell.metadata.get('alt') or 'figure'}]({match[1]})"

    body = re.sub(rf"!\[\w*\]\(({FIGURES}/index_(\d+)_\d+\.\w+)\)", with_alt, body)
    files = {README: (NOTE + squeeze(body)).encode()}
    return files | {Path(name).as_posix(): data for name, data in resources.get("outputs", {}).items()}


def stale(root, files):
    "Figures of an earlier README that no cell makes any more."
    made = re.compile(r"index_\d+_\d+\.\w+")
    found = (p.relative_to(root).as_posix() for p in sorted((root / FIGURES).glob("index_*")) if made.fullmatch(p.name))
    return [name for name in found if name not in files]


def drift(root=ROOT):
    "What differs between the committed README with its figures and a fresh one, one string per file."
    files = build(root)
    for name, data in files.items():
        path = root / name
        old = path.read_bytes() if path.exists() else b""
        if old == data:
            continue
        if name == README:
            lines = [text.decode().splitlines() for text in (old, data)]
            yield "\n".join(difflib.unified_diff(*lines, "README.md (committed)", f"README.md (from {INDEX})", lineterm="", n=1))
        else:
            yield f"{name}: {'differs from' if old else 'is missing for'} the notebook's output"
    for name in stale(root, files):
        yield f"{name}: no cell makes this figure any more"


def write(root=ROOT):
    "Write what changed, remove what is stale."
    files = build(root)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
            print(f"written: {name}")
    for name in stale(root, files):
        (root / name).unlink()
        print(f"removed: {name}")


def main(argv=None):
    parser = argparse.ArgumentParser(description="README.md from nbs/index.ipynb")
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 on drift")
    if not parser.parse_args(argv).check:
        return write()
    differences = list(drift())
    print("\n".join(differences) or f"README.md agrees with {INDEX}")
    if differences:
        print("To mend it: python tools/make_readme.py")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
