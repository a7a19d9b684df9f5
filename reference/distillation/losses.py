"""What the student is trained to match."""

from torch import Tensor
from torch.nn import functional


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Cross-entropy of the teacher's softened distribution with the student's, less its own entropy.

    :math:`T^2\,\mathrm{KL}(\mathrm{softmax}(t/T)\,\|\,\mathrm{softmax}(s/T))`, averaged over
    positions. The factor :math:`T^2` keeps the size of the gradient as the temperature changes.

    Args:
        student, teacher: logits ``[..., vocabulary]``.
        temperature: :math:`T > 0`; larger values let the small probabilities count.

    Returns:
        A scalar in nats, zero exactly where the two distributions agree.

    Raises:
        ValueError: ``temperature`` is not positive, or shapes differ.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.

    Chapter: overview
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if student.shape != teacher.shape:
        raise ValueError(f"student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must agree")
    vocabulary = student.shape[-1]
    ours = (student.float() / temperature).log_softmax(-1).reshape(-1, vocabulary)
    theirs = (teacher.float() / temperature).log_softmax(-1).reshape(-1, vocabulary)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
