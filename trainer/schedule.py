"""Learning rate over the steps of a run (pure)."""


def learning_rate_factor(step: int, *, steps: int, warmup: int, decay_fraction: float) -> float:
    """Return the share of the peak rate at a step, in ``(0, 1]``.

    Linear from 0 over the warm-up, constant, then linear to 0 over the last ``decay_fraction``.
    """
    decay_steps = max(1, round(steps * decay_fraction))
    return max(0.0, min(1.0, (step + 1) / (warmup + 1), (steps - step) / decay_steps))
