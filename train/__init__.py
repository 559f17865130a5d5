"""anyrank: fine-tune a language model on any number of GPUs by changing one number."""

__version__ = "0.2.0"
