"""Learning rate over the steps of a run (pure)."""

DECAY_FRACTION = 0.5  # of the steps, at the end


def learning_rate_factor(step: int, *, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at a step, in ``(0, 1]``.

    Linear from 0 over the warm-up, constant, then linear to 0 over the second half.

    Args:
        step: Counts from 0.
        steps: Of the whole run.
        warmup: Steps of the warm-up.
    """
    decay_steps = max(1, round(steps * DECAY_FRACTION))
    return max(0.0, min(1.0, (step + 1) / (warmup + 1), (steps - step) / decay_steps))
