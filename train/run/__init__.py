"""The stages of one run that `train/main.py` names."""
