"""What publishes tables: the miniature's benchmark and the tables of cost.

    cd tests && python -m benchmarks.miniature    docs/benchmarks/miniature.md
    cd tests && python -m benchmarks.cost         docs/benchmarks/cost.md

Both resume where they were interrupted, and measure again whatever was measured with other settings.
"""

from pathlib import Path

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
