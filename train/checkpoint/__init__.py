"""The rank-free format: folder, slices, tensor files, identity. numpy, xxhash; no torch."""
