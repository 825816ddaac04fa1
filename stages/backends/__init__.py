"""How a graph is run. A backend knows nothing of boxes."""
