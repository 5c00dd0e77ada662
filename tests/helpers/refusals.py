"""What a refused request looks like."""


def refused(done, *words):
    """Exit code 2, short, no traceback, and every word said."""
    assert done.code == 2, (done.code, done.stderr)
    assert "Traceback" not in done.stderr
    errors = done.stderr[done.stderr.index("error:") :]
    assert len(errors.strip().splitlines()) <= 6, errors
    for word in words:
        assert word in errors, (word, errors)
