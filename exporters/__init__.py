"""From torch to ONNX files that describe themselves."""
