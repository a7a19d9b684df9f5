"""Quantisation: grids, round to nearest, and the solvers built on them."""


class CalibrationWarning(UserWarning):
    """There is too little calibration text, or too much alike, for what is asked of it.

    Example:
        >>> import warnings, torch
        >>> from reference.calibration import batches
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     drawn = batches(torch.arange(20), sequences=4, length=10)  # 40 tokens out of 20
        >>> caught[0].category.__name__
        'CalibrationWarning'

    Chapter: none (a warning; quantization/gptq shows what it warns of)
    """


class ServingWarning(UserWarning):
    """A checkpoint will be what transformers loads and vLLM refuses.

    Example:
        >>> issubclass(ServingWarning, UserWarning)
        True

    Chapter: none (a warning; :func:`reference.checkpoint.served.refused` finds what it says)
    """
