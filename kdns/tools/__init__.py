"""What the commands do beside serving: ask servers, read clusters, compare, explain."""
