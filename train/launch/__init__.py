"""What runs on hosts: supervisor, agents, their protocol, and what becomes of faults."""
