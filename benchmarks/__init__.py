"""Measurements of the library against the published implementation's solvers; nothing in the package needs them.

`python -m benchmarks --help` lists the tables; README.md in this folder says what each measures.
"""
