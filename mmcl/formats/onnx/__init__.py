"""ONNX and OpenVINO graphs of text towers."""
