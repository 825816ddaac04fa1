"""What the numbers of a graph mean. A decoder knows nothing of sessions."""
