"""What a run leaves on disk: its folder, checkpoints and log, and how it continues from them."""
