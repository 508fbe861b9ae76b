"""Errors that end a run with one sentence."""

from __future__ import annotations


class AdtError(Exception):
    """The base of every error whose message alone is meant for the user: what is wrong, and the way out."""


class ConfigError(AdtError, ValueError):
    """A wrong option or combination of options; the message names the flag and the way out."""
