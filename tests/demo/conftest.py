"""The miniature at its smallest."""

from tiny_demo import threads_restored, tiny_setting, tiny_study  # noqa: F401
