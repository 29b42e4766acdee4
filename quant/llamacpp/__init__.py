"""GGUF for llama.cpp: made, read back, tried; needs the extra ``gguf``, and loads it."""
