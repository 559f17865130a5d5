"""The planner: shape, hardware, memory, time, search, rendering. Standard library only."""
