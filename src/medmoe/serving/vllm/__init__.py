"""vLLM, where one process is not enough: the plugin it loads, and it as an engine of our server."""
