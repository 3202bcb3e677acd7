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


def why_rounded(made_in: object, is_in: object) -> str:
    """One more sentence where models in these dtypes have unlike fingerprints.

    None stands for a dtype that is not known.

    Examples
    --------
    >>> why_rounded("bfloat16", "float32")[:64]
    ' It was made in bfloat16, and the model is in float32: weights r'
    >>> why_rounded("float64", "float32"), why_rounded(None, "float16")
    ('', '')
    """
    if made_in is None or is_in is None or made_in == is_in:
        return ""
    if not {made_in, is_in} & {"bfloat16", "float16"}:
        return ""
    return (
        f" It was made in {made_in}, and the model is in {is_in}: weights rounded to 16 bits are "
        f"other weights. Load the model in {made_in} (`--dtype {made_in}`), or make it again in "
        f"{is_in}."
    )


def _kind(mark: object) -> str:
    start, found, _ = str(mark).partition(":")
    return start if found else ""
