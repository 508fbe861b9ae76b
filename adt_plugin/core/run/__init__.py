"""What a run keeps and shows: its state on disk, its health, its rows and pictures."""
