"""What a notebook shows of a figure."""

import base64

import nbformat
from nbclient import NotebookClient

CELL = """
import matplotlib.pyplot as plt
from reference import figures
figures.use_style()
plt.plot([0, 1], [0, 1]);
"""


def test_a_figure_in_a_notebook_has_twice_the_pixels_of_its_width():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (shown,) = (o for o in notebook.cells[0].outputs if "image/png" in o.get("data", {}))
    pixels = int.from_bytes(base64.b64decode(shown.data["image/png"])[16:20], "big")
    assert pixels // 2 == shown.metadata["image/png"]["width"]
