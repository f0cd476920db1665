#!/usr/bin/env python3
"""Hygiene of the notebooks and of what is made from them.

    python tools/check_notebooks.py                       everything
    python tools/check_notebooks.py nbs/00_flow.ipynb …   only these notebooks, without package and README

One line per finding, `notebook:cell: what, and how to mend it` with cells counted from 1; exit status 1
when there is any. Each check is a function that yields findings, so that tests can call it alone.
"""
import argparse
import difflib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import drop_views  # beside this file
from execnb.nbio import nb2str
from nbdev.clean import clean_nb
from nbdev.process import first_code_ln

ROOT = Path(__file__).resolve().parent.parent

MAX_BYTES = 1_000_000  # a code host shows no larger notebook
MAX_EXPORT_LINES = 30
SMALL = 8  # notebooks with no more code cells than this may have any share of prose and of hidden cells
MAX_HIDDEN, MIN_PROSE = 1 / 4, 1 / 3

# nbdev's directives with the numbers of arguments they take (at least, at most)
NBDEV = {"default_exp": (1, 1), "export": (0, 1), "exporti": (0, 1), "exports": (0, 1), "exec_doc": (0, 0),
         "hide": (0, 0), "hide_line": (0, 0), "filter_stream": (1, 99)}
EXPORTS = {"export", "exporti", "exports"}
# Quarto's options of a code cell (https://quarto.org/docs/reference/cells/cells-jupyter.html)
QUARTO = set("""
    label classes renderings tags id eval echo code-fold code-summary code-overflow code-line-numbers lst-label lst-cap
    output warning error include panel output-location fig-width fig-height fig-cap fig-subcap fig-link fig-align
    fig-alt fig-env fig-pos fig-scap fig-column fig-cap-location tbl-cap tbl-subcap tbl-colwidths tbl-column
    tbl-cap-location layout layout-ncol layout-nrow layout-align layout-valign column cap-location
    html-table-processing plotly-connected title padding expandable content context order width height""".split())
BOOLEAN = {"true", "false"}
VALUES = {"eval": BOOLEAN, "include": BOOLEAN, "error": BOOLEAN, "warning": BOOLEAN,
          "echo": BOOLEAN | {"fenced"}, "output": BOOLEAN | {"asis"}, "code-fold": BOOLEAN | {"show"}}
RENAMED = {"hide_input": "echo: false", "hide_output": "output: false", "collapse": "code-fold: true"}  # of nbdev 1
# nbdev 1 wrote directives without the bar; to nbdev 2 these are plain comments
WITHOUT_BAR = re.compile(r"#\s*(export[is]?|hide|default_exp\s+\S+)\s*[,:]?")

# paths that mean something on one machine only; the checkout's own folder is added when it is known
MACHINE_PATH = r"(?<![\w./:+-])/(?:home|root|Users|work|workspace|tmp/ipykernel_\d+)/[^\s\"'<>]*|[A-Z]:\\Users\\[^\s\"'<>]*"


class Finding(NamedTuple):
    notebook: str
    cell: int | None
    what: str

    def __str__(self):
        return f"{self.notebook}{'' if self.cell is None else f':{self.cell}'}: {self.what}"


def settings(root=ROOT):
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def notebooks(root=ROOT):
    "The notebooks nbdev would look at."
    nbs = root / settings(root)["nbs_path"]
    return [p for p in sorted(nbs.rglob("*.ipynb")) if not any(part[0] in "_." for part in p.relative_to(nbs).parts)]


# -- directives ---------------------------------------------------------------------------------
def comments(source):
    "The comments of `source` with their line numbers (from 0), as far as it can be read as Python."
    source = re.sub(r"^[ \t]*[%!?].*", "", source, flags=re.M)  # magics and shell commands
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0] - 1, token.string
    except (tokenize.TokenError, SyntaxError):
        return


def directive_fault(line, flags):
    "What is wrong with a directive line at the head of a cell; None when nbdev and Quarto will both understand it."
    text = line.strip()
    match = re.fullmatch(r"#\|[ \t]*([\w-]+)(.*)", text)
    if not match or line[0].isspace():
        return f"'{text}' is not read as a directive; write '#| name' or '#| option: value' on one line"
    name, rest = match[1], match[2]
    known = NBDEV | dict.fromkeys(flags, (0, 0))
    if name in QUARTO:
        setting = rest[1:].strip() if rest.startswith(":") else ""
        if not setting:
            return f"'{text}' is ignored; write '#| {name}: value'"
        if name in VALUES and setting not in VALUES[name]:
            return f"'{text}': '{name}' takes {' or '.join(sorted(VALUES[name]))}"
    elif name in known:
        args = [] if rest.strip() == ":" else rest.split()
        least, most = known[name]
        if rest.strip() != ":" and rest and not rest[0].isspace():
            return f"'{text}' is ignored; write '#| {name}' without '{rest.strip()}'"
        if not least <= len(args) <= most:
            return f"'{text}': '{name}' takes {least if least == most else f'{least} to {most}'} argument(s); one directive per line"
        misplaced = name in EXPORTS and args and args[0] in known  # a second directive on the line
        if misplaced or name in EXPORTS | {"default_exp"} and args and not re.fullmatch(r"\w+(\.\w+)*", args[0]):
            return f"'{text}' would export to a module named '{args[0]}'; one directive per line"
    elif name in RENAMED:
        return f"'{text}' is not known to nbdev 2; write '#| {RENAMED[name]}'"
    else:
        near = difflib.get_close_matches(name, [*known, *QUARTO], 1)
        return f"'{text}': unknown directive '{name}'" + (f"; did you mean '{near[0]}'?" if near else "; remove it or correct it")


def directive_faults(source, flags):
    "What is wrong with the directives of one code cell."
    lines = source.splitlines()
    head = first_code_ln(lines)
    head = len(lines) if head is None else head
    for line in lines[:head]:
        if re.match(r"\s*#\s*\|", line):
            fault = directive_fault(line, flags)
            if fault:
                yield fault
    for number, comment in comments(source):
        bar = re.match(r"#\s*\|\s*([\w-]+)", comment)
        if WITHOUT_BAR.fullmatch(comment):
            yield f"'{comment}' is a plain comment; write '#| {comment[1:].strip(' ,:')}'"
        elif number >= head and bar and bar[1] in {*NBDEV, *QUARTO, *flags}:
            if bar[1] != "hide_line":
                yield f"'{comment}' comes after the first line of code and is ignored; move it to the top of the cell"
            elif not re.fullmatch(r"#\|\s*hide_line\s*", comment):
                yield f"'{comment}' is ignored; write '#| hide_line'"


def directives(source):
    "{name: arguments} of a cell's correct directives."
    lines = source.splitlines()
    found = (re.match(r"#\|\s*([\w-]+)\s*:?(.*)", line) for line in lines[: first_code_ln(lines)])
    return {m[1]: m[2].split() for m in found if m}


# -- one notebook -------------------------------------------------------------------------------
def source(cell):
    return "".join(cell["source"])


def directive_findings(nb, flags):
    for i, cell in enumerate(nb["cells"], 1):
        if cell["cell_type"] == "code":
            yield from ((i, fault) for fault in directive_faults(source(cell), flags))
        elif re.match(r"#\|", source(cell)):
            yield i, "a directive in a markdown cell does nothing; make it a code cell or remove the line"
    marks = [directives(source(c)) for c in nb["cells"] if c["cell_type"] == "code"]
    if any(d.keys() & EXPORTS for d in marks) and not any("default_exp" in d for d in marks):
        yield None, "exports without a module; begin with a cell '#| default_exp name'"


def shape_findings(nb):
    "Size and proportion: can a reader follow it?"
    code = [(i, c, directives(source(c))) for i, c in enumerate(nb["cells"], 1) if c["cell_type"] == "code"]
    prose = sum(c["cell_type"] == "markdown" for c in nb["cells"])
    for i, cell, marks in code:
        lines = len(source(cell).splitlines())
        if marks.keys() & EXPORTS and lines > MAX_EXPORT_LINES:
            yield i, f"an export cell of {lines} lines; split it, {MAX_EXPORT_LINES} at most"
        if any(o["output_type"] == "error" for o in cell["outputs"]):
            yield i, "keeps an error as output; mend and run it, or show the failure with try/except"
    if len(code) > 3 and not any(c["outputs"] for _, c, _ in code):
        yield None, "has no outputs, a reader on a code host sees nothing; run it and save"
    hidden = sum("hide" in marks or marks.get("include") == ["false"] for *_, marks in code)
    if len(code) > SMALL and hidden > MAX_HIDDEN * len(code):
        yield None, f"{hidden} of {len(code)} code cells are hidden, a quarter at most; show them or move them to tests/"
    if len(code) > SMALL and prose < MIN_PROSE * len(code):
        yield None, f"{prose} markdown cells for {len(code)} code cells; explain more, one for three at least"


def output_text(output):
    "All text a code cell's output carries."
    bundle = [v for k, v in output.get("data", {}).items() if k.startswith("text") or k.endswith(("json", "javascript", "svg+xml"))]
    bundle += [output.get("text", ""), output.get("traceback", "")]
    return "\n".join("".join(v) if isinstance(v, (list, str)) else json.dumps(v) for v in bundle)


def path_findings(nb, root=None):
    pattern = MACHINE_PATH + (f"|{re.escape(str(root))}[^\\s\"'<>]*" if root and len(str(root)) > 1 else "")
    for i, cell in enumerate(nb["cells"], 1):
        found = {m[0] for out in cell.get("outputs", []) for m in re.finditer(pattern, output_text(out))}
        if found:
            yield i, f"the output shows a path of this machine ({min(found)}); print it relative, run again"


def view_findings(nb):
    "Outputs that ask for a widget whose process has ended."
    for i, cell in enumerate(nb["cells"], 1):
        if any(drop_views.VIEW in out.get("data", {}) for out in cell.get("outputs", [])):
            yield i, "the output asks for a widget that is gone, which hides the picture beside it; run `make export`"


def picture_findings(nb):
    "Pictures that nothing is said about to a reader who cannot see them."
    for i, cell in enumerate(nb["cells"], 1):
        kinds = (kind for out in cell.get("outputs", []) for kind in out.get("data", {}))
        if any(kind.startswith("image/") for kind in kinds) and not directives(source(cell)).get("fig-alt"):
            yield i, "a picture without words for those who cannot see it; write '#| fig-alt: what is to be seen' at the top of the cell"


def clean_findings(text, cfg):
    "What nbdev_clean would change."
    before, after = json.loads(text), json.loads(text)
    clean_nb(after, allowed_metadata_keys=cfg.get("allowed_metadata_keys", "").split(),
             allowed_cell_metadata_keys=cfg.get("allowed_cell_metadata_keys", "").split(),
             clean_ids=cfg.getboolean("clean_ids"))
    dirty = False
    pairs = [(None, {k: v for k, v in before.items() if k != "cells"}, after), *zip(range(1, 10**6), before["cells"], after["cells"])]
    for i, old, new in pairs:
        keys = [k for k in {**old, **new} if k != "cells" and old.get(k) != new.get(k)]
        if keys:
            dirty = True
            yield i, f"not clean ({', '.join(keys)}); run `make export`"
    if not dirty and nb2str(after) != text:
        yield None, "not written the way nbdev_clean writes it; run `make export`"


def notebook_findings(path, root=ROOT):
    "Every check of one notebook by itself."
    cfg, text = settings(root), path.read_text(encoding="utf-8")
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    try:
        nb = json.loads(text)
        found = [*directive_findings(nb, cfg["tst_flags"].split()), *shape_findings(nb), *path_findings(nb, root), *view_findings(nb),
                 *picture_findings(nb), *clean_findings(text, cfg)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = [(None, f"cannot be read as a notebook ({error!r}); open and save it in JupyterLab")]
    else:
        ids = [c.get("id") for c in nb["cells"]]
        found += [(i, f"its id '{ids[i - 1]}' occurs before; remove the id and run `make export`")
                  for i in range(1, len(ids) + 1) if ids[i - 1] and ids[i - 1] in ids[: i - 1]]
        if "widgets" in nb["metadata"]:
            found.append((None, "carries metadata.widgets (megabytes of saved widgets); remove the key, keep the static twin"))
    size = len(text.encode())
    if size > MAX_BYTES:
        found.append((None, f"{size / 1e6:.1f} MB, {MAX_BYTES / 1e6:.0f} MB at most; smaller or fewer figures"))
    return [Finding(name, cell, what) for cell, what in found]


# -- what is made from the notebooks ------------------------------------------------------------
def fresh_export(root=ROOT):
    "{path: text} of the package as nbdev_export writes it from the notebooks into an empty folder."
    cfg = settings(root)
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        shutil.copy(root / "settings.ini", there)
        for path in notebooks(root):
            copy = there / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        # a process of its own: nbdev remembers the first settings.ini it has read
        subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export as e; e.__wrapped__()"], cwd=there, check=True,
                       capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "IN_TEST"})
        return python_files(there / cfg["lib_path"])


def python_files(folder):
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


def package_findings(root=ROOT):
    "Differences between the committed package and a fresh export."
    lib = settings(root)["lib_path"]
    try:
        fresh = fresh_export(root)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return [Finding(lib, None, f"nbdev_export fails: {reason}")]
    found, have = [], python_files(root / lib)
    for name in sorted({*fresh, *have}):
        where = f"{lib}/{name}"
        if name not in fresh:
            found.append(Finding(where, None, "made from no notebook; remove it or write it in one"))
        elif name not in have:
            found.append(Finding(where, None, "missing; run `make export`"))
        elif name == "__init__.py":  # nbdev only keeps the version in it, the rest is ours
            if fresh[name].strip() not in have[name]:
                found.append(Finding(where, None, f"does not say {fresh[name].strip()}; run `make export`"))
        elif have[name] != fresh[name]:
            pairs = zip(have[name].splitlines() + [""], fresh[name].splitlines() + [""])
            line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), 1)
            found.append(Finding(where, None, f"differs from its notebook from line {line} on; edit the notebook, run `make export`"))
    return found


def readme_findings(root=ROOT):
    import make_readme  # beside this file; nbconvert takes a second to import

    if not (root / make_readme.INDEX).exists():
        return [Finding(make_readme.INDEX, None, "missing; README.md is made from it")]
    return [Finding(make_readme.INDEX, None, f"README does not agree; run `make export`\n{diff}") for diff in make_readme.drift(root)]


def findings(root=ROOT):
    "Everything, over the whole project."
    for path in notebooks(root):
        yield from notebook_findings(path, root)
    yield from package_findings(root)
    yield from readme_findings(root)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Hygiene of the notebooks and of what is made from them.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="only these, without package and README")
    chosen = [p.resolve() for p in parser.parse_args(argv).notebooks]
    found = [f for p in chosen for f in notebook_findings(p)] if chosen else list(findings())
    for finding in found:
        print(finding)
    print(f"{len(chosen or notebooks())} notebooks, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
