"""The cost models at their smallest."""

from tiny_cost import config, tiny_models, workload  # noqa: F401
