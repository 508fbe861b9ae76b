"""What is measured on a card, by one command: `tests/gpu/run.sh OUT`."""
