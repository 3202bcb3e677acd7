"""Fingerprints of models, as results carry them: which kind they are, and what to say of two."""

# Written before every fingerprint that is made now; those of earlier versions are bare digits.
KIND = "v2:"


def why_another(*marks: object) -> str:
    """One more sentence for a refusal of these fingerprints; empty where they are of one kind.

    None stands for no fingerprint.

    Examples
    --------
    >>> why_another("v2:0f", "v2:0e", None)
    ''
    >>> why_another("v2:0f", "0f")[:70]
    ' They were made by different versions, in different ways, and cannot b'
    """
    kinds = {_kind(mark) for mark in marks if mark is not None}
    if len(kinds) < 2:
        return ""
    return (
        " They were made by different versions, in different ways, and cannot be compared: make "
        "the older one again, or `del` its attrs['model_fingerprint'] if you know that it fits."
    )


def _kind(mark: object) -> str:
    start, found, _ = str(mark).partition(":")
    return start if found else ""
