"""Where frames and results go: video files, JSONL, images, a window."""
