"""The server: an OpenAI-compatible interface, a page, and the engines that answer behind them."""
