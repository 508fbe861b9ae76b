"""A test kit: the real training scripts of sd-scripts, run unmodified on tiny random models.

`run.run_host` starts a script in a process of its own, `models` writes what it trains on, `families` has one module per
model family, and `site` is the folder on that process's PYTHONPATH that shrinks the host. See the fixtures in conftest.py.
"""
