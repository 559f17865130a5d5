"""What a host is: hostfile, flavor, Slurm's nodes, devices, network. Standard library only."""
