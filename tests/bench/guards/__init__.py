"""How often the guards of a rollout err, and how much they must see, by simulation."""
