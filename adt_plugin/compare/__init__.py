"""The command `adt compare`: one base, several candidates, the same noise for all; figures, a page, a verdict."""
