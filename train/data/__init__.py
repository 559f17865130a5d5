"""Data: read, tokenise, order, pack. numpy, datasets, sentencepiece, tokenizers; no torch."""
