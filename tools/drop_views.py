#!/usr/bin/env python3
"""Remove from the notebooks' outputs what asks for a widget.

    python tools/drop_views.py    all notebooks in nbs/; `make export` does it after nbdev_clean

An output of a widget names a model of the process that made it, and beside it holds a picture. That
process has ended: a page that prefers the model shows an error, or nothing, where the picture could be.
"""
import json
import sys
from pathlib import Path

from execnb.nbio import nb2str

ROOT = Path(__file__).resolve().parent.parent
VIEW = "application/vnd.jupyter.widget-view+json"


def drop_views(nb):
    "Without views of widgets in its outputs; whether there were any."
    found = [out["data"].pop(VIEW, None) for cell in nb["cells"] for out in cell.get("outputs", []) if "data" in out]
    return any(found)


def main(folder=ROOT / "nbs"):
    for path in sorted(Path(folder).rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        if drop_views(nb):
            path.write_text(nb2str(nb), encoding="utf-8")
            print(f"without views of widgets: {path.name}")


if __name__ == "__main__":
    sys.exit(main())
