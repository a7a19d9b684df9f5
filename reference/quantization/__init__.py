"""Quantisation: grids, round to nearest, and the solvers built on them."""


class CalibrationWarning(UserWarning):
    """There is too little calibration text, or too much alike, for what is asked of it.

    Chapter: none (a warning; quantization/gptq shows what it warns of)
    """
