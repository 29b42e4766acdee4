"""What clients feel of fifty swaps, ten of them to bundles that are bad in some way."""
