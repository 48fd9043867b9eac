"""The engine plane: vLLM servers as supervised process trees, placed and replaced by Ray Serve."""
