"""Figures of the chapter ``advanced/distillation``."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def softened(curves: Mapping[str, Sequence[float]]) -> Axes:
    """Probabilities of one prediction in falling order, both axes logarithmic, a line a temperature.

    Args:
        curves: label → probabilities, largest first.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.4))
    for (label, values), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=False):
        axes.plot(range(1, len(values) + 1), values, style, linewidth=1.4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="rank of the token", ylabel="probability")
    axes.legend(fontsize=9.5)
    return axes


def teacher_and_student(
    teachers: Mapping[str, float], students: Mapping[str, Sequence[float]], untaught: float
) -> Axes:
    """Each student's bits per byte against its teacher's: a marker at the mean, a bar over the seeds.

    Args:
        teachers: label → bits per byte of the teacher.
        students: label → of its students, one a seed.
        untaught: of the student without a teacher, a dashed line.
    """
    _, axes = plt.subplots(figsize=(4.8, 3.6))
    for number, (label, x) in enumerate(teachers.items()):
        values = students[label]
        axes.plot([x], [sum(values) / len(values)], MARKERS[number], markersize=7, linestyle="none", label=label)
        axes.plot((x, x), (min(values), max(values)), color=f"C{number}", linewidth=1.8)
    axes.axhline(untaught, color="black", linestyle="--", linewidth=1, label="no teacher")
    axes.set(xlabel="teacher, bits per byte", ylabel="student, bits per byte")
    axes.legend(fontsize=9.5)
    return axes


def cascade_curve(
    single: Mapping[str, tuple[float, float]], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Axes:
    """Accuracy against mean cost: cascades as lines, single models as points, and the hull that a blind router reaches.

    Args:
        single: label → cost and accuracy in percent, cheapest first; the points lie on their upper hull.
        curves: label → costs and accuracies in percent.
    """
    _, axes = plt.subplots(figsize=(5.2, 3.8))
    for number, (label, (costs, values)) in enumerate(curves.items()):
        axes.plot(costs, values, marker=MARKERS[number], markersize=4, linewidth=1.2, label=label)
    axes.plot(
        [cost for cost, _ in single.values()], [value for _, value in single.values()], linestyle="--", marker="*",
        markersize=10, color="black", linewidth=1, label="router that does not look",
    )  # fmt: skip
    dearest = max(cost for cost, _ in single.values())
    for label, place in single.items():
        left = place[0] == dearest
        axes.annotate(
            label, place, textcoords="offset points", xytext=(0, -26) if left else (16, -8), zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            ha="right" if left else "left", fontsize=9.5,
        )  # fmt: skip
    axes.set(xlabel="mean cost of a row, the largest model's = 1", ylabel="right, %")
    axes.legend(fontsize=9.5, loc="lower right")
    return axes
