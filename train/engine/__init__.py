"""The engine: model, attention, step, checkpoint, export. Only here is torch imported."""
