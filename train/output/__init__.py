"""What a run leaves as it goes: run folder, console, trackers."""
