"""Runs read back: tables, figures, one HTML page."""
