"""Measurements behind every claim: speed, accuracy, memory. Each module is a command."""
