"""Data: read, tokenize, order, pack. numpy, datasets, sentencepiece, tokenizers; no torch."""
