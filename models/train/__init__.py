"""Recipes that train the project's own models: `python -m models.train NAME`."""
