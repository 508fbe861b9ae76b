"""The miniature and the cost models at their smallest."""

from tiny_cost import config, tiny_models, workload  # noqa: F401
from tiny_demo import threads_restored, tiny_setting, tiny_study  # noqa: F401
