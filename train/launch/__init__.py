"""Launching: hostfiles, flavors, commands, Slurm, preflight, supervision. Standard library only."""
