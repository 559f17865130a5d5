"""What runs on hosts: supervisor, agents, protocol, faults. Standard library only."""
