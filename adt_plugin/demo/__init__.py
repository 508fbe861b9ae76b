"""The miniature: the paper's experiment on scikit-learn's digits, on a CPU, in minutes.

`python -m adt_plugin demo` tunes a small denoiser with and without adversarial supervision and shows both;
`python -m adt_plugin bench` does it over several seeds with the ablations. `finetune.py` is also the worked example
of using `AdversarialTurn` in a training loop of one's own.
"""
