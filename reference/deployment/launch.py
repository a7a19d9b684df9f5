"""Start ``transformers serve`` so that it ends with the process that started it, and optionally keeps weights packed.

python -m reference.deployment.launch [--packed] DIRECTORY [options of transformers serve]
"""

import os
import signal
import sys
import threading


def keep_packed() -> None:
    """Let the server of transformers load checkpoints with :func:`reference.checkpoint.load`.

    By itself it unpacks a compressed-tensors checkpoint at the first request and computes with float weights. Ours keeps
    the layers packed. This replaces a private method of transformers 5.23 for this process.

    Raises:
        RuntimeError: this transformers has no such method.

    Example:
        >>> from unittest import mock
        >>> from transformers.cli.serving.model_manager import ModelManager
        >>> with mock.patch.object(ModelManager, "_load_model"):  # which puts the method back afterwards
        ...     keep_packed()
        ...     ModelManager._load_model.__module__
        'reference.deployment.launch'

    Chapter: deployment/production
    """
    from transformers import PreTrainedModel
    from transformers.cli.serving.model_manager import ModelManager

    from reference import checkpoint

    if not hasattr(ModelManager, "_load_model"):
        raise RuntimeError("ModelManager of this transformers has no _load_model; keep_packed was written for 5.23")

    def load_model(self: ModelManager, name: str, *_: object, **__: object) -> PreTrainedModel:
        return checkpoint.load(name.partition("@")[0])

    setattr(ModelManager, "_load_model", load_model)  # noqa: B010 - an assignment that mypy refuses


def _end_with_parent() -> None:
    """Standard input is a pipe from the parent: it ends when the parent does, however that came about."""
    while os.read(0, 4096):  # the descriptor: a lock on sys.stdin would disturb the end of the interpreter
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _main(arguments: list[str]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "--packed" in arguments:
        arguments.remove("--packed")
        keep_packed()
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", *arguments]
    main()


if __name__ == "__main__":
    _main(sys.argv[1:])
