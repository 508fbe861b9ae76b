"""Everything again on a device that is not the CPU: `python -m pytest tests/accelerator`, in a process of its own."""
