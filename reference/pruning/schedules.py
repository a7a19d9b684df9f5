r"""How sparse to be at which step: fast at first, when there is much to spare, and slowly at the end.

.. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n\,\Delta t}\right)^3

================ ===========
paper            code
================ ===========
:math:`s_i`      initial
:math:`s_f`      final
:math:`t_0`      begin_step
:math:`n`        n_updates
:math:`\Delta t` every
================ ===========
"""


def gradual(step: int, *, initial: float, final: float, begin_step: int, n_updates: int, every: int = 1) -> float:
    """Sparsity at a training step, changed every ``every`` steps along a cubic.

    Args:
        step: from 0.
        initial, final: at and before ``begin_step``, and after the last update.
        begin_step: first step of the ramp, 0 or more.
        n_updates: number of changes, 1 or more; the last comes at ``begin_step + n_updates · every``.
        every: steps between two changes, 1 or more; in between the value stays.

    Returns:
        Between ``initial`` and ``final``, monotone in ``step``, both ends exact.

    Raises:
        ValueError: ``n_updates`` or ``every`` is below 1, ``begin_step`` below 0, or a sparsity is outside 0 to 1.

    Source: Zhu and Gupta 2017, eq. 1.

    Example:
        >>> [round(gradual(step, initial=0.0, final=0.8, begin_step=0, n_updates=2), 3) for step in range(4)]
        [0.0, 0.7, 0.8, 0.8]

    Chapter: pruning/magnitude
    """
    if n_updates < 1 or every < 1:
        raise ValueError(f"n_updates is {n_updates} and every is {every}; both may be 1 or more")
    if begin_step < 0:
        raise ValueError(f"begin_step is {begin_step}; it may be 0 or more")
    _check_fractions(initial=initial, final=final)
    updates = min(max((step - begin_step) // every, 0), n_updates)
    return _cubic(updates / n_updates, initial, final)


def cubic(step: int, total: int, initial: float, final: float, warmup: int, cooldown: int) -> float:
    """The same cubic between a warm-up and a cool-down, as movement pruning runs it (there on the density).

    Args:
        step: from 0.
        total: steps of the run.
        initial: up to and including step ``warmup``.
        final: after step ``total - cooldown``.
        warmup, cooldown: steps, 0 or more, together below ``total``.

    Returns:
        Between ``initial`` and ``final``, monotone in ``step``.

    Raises:
        ValueError: warm-up and cool-down leave no step for the ramp (the value would jump), or a value is out of
            range. Short runs with settings made for long ones end here.

    Source: Sanh et al. 2020, "Movement pruning", eq. 4 and the authors' code.

    Example:
        >>> [cubic(step, 10, 1.0, 0.1, warmup=2, cooldown=2) for step in (0, 2, 8, 10)]
        [1.0, 1.0, 0.1, 0.1]

    Chapter: pruning/magnitude
    """
    if warmup < 0 or cooldown < 0:
        raise ValueError(f"warmup is {warmup} and cooldown is {cooldown}; both may be 0 or more")
    if warmup + cooldown >= total:
        raise ValueError(f"warmup {warmup} and cooldown {cooldown} leave no ramp in total {total} steps")
    _check_fractions(initial=initial, final=final)
    if step <= warmup:
        return initial
    if step > total - cooldown:
        return final
    return _cubic((step - warmup) / (total - cooldown - warmup), initial, final)


def _cubic(progress: float, initial: float, final: float) -> float:
    if progress == 0:  # exact, where final + (initial - final) is not
        return initial
    return final + (initial - final) * (1 - progress) ** 3


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it may be 0 to 1")
