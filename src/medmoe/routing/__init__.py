"""What the routers decide: traces, statistics and figures."""
