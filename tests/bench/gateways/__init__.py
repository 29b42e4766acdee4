"""What gateways cost a client, all against one mock engine on the same core each."""
