"""A test kit: the real training scripts of sd-scripts, run unmodified on tiny random models.

`run.run_host` starts a script in a process of its own, `models` writes what it trains on, `families` has one module per
model family, and `site` is the folder on that process's PYTHONPATH that shrinks the host. See the fixtures in conftest.py.
`true_size` writes models of the real sizes, for measurements of time and memory, from the trees in `true`.

A family's checkpoint is made of `weights` (random tensors from a tree of shapes), `autoencoders`, `text_encoders` and
`tokenizers`; these modules and the families are imported in the host's process, too.
"""
