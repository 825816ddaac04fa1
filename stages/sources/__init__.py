"""Where frames come from: files, images, cameras, synthetic scenes."""
