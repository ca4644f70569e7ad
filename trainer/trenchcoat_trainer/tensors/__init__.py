"""Tensors as bytes in the safetensors format; torch is loaded only where tensors are at hand."""
