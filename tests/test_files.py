"""A file that is replaced whole is whole for every reader, also where several threads replace it."""

import threading

from reference.files import atomic_write


def test_threads_that_write_the_same_file_do_not_mix(tmp_path):
    """They are one process: a temporary file named after that alone is shared by all."""
    target, size = tmp_path / "file", 200_000
    contents = [bytes([letter]) * size for letter in b"abc"]
    errors = []

    def write(content):
        try:
            for _ in range(60):
                atomic_write(target, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if target.exists():
            seen.add(target.read_bytes())
    for thread in threads:
        thread.join()
    assert errors == []
    assert seen <= set(contents)
    assert target.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
