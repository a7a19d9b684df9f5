# On Colab, install the package behind this book. Elsewhere it is
# installed already.
import subprocess
import sys

try:
    import google.colab  # noqa: F401
except ImportError:
    pass
else:
    package = (
        "model-compression-reference[serving] @ git+"
        "https://github.com/OWNER/REPOSITORY"
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", package],
        check=True,
    )

try:
    from myst_nb import glue
except ImportError:  # outside the book a glued number is only shown

    def glue(name, value, display=True):
        print(f"{name} = {value}")
