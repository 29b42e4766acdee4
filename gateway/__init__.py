"""The OpenAI-compatible front end, its engines and its rollouts."""
