"""From a checkpoint to a bundle that the engine serves as it is."""
