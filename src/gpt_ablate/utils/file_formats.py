"""What a file is, told by its first bytes."""

from __future__ import annotations

import re

_BEGINNINGS = (
    (rb"\x93NUMPY", "a NumPy array (.npy; numpy.load(OLD).astype('<u2').tofile(NEW) writes its tokens alone)"),
    (
        rb"\x88\xd8\x34\x01",
        "a token file of llm.c, whose header is no tokens (tail -c +1025 OLD > NEW leaves it out)",
    ),
    (
        rb"\xa1\xd9\x34\x01",
        "a token file of llm.c for Llama 3, whose header is no tokens and whose vocabulary is another",
    ),
    (rb"\x1f\x8b\x08[\0-\x1f]", "a gzip file (gunzip unpacks it)"),
    (rb"BZh[1-9]1AY&SY", "a bzip2 file (bunzip2 unpacks it)"),
    (rb"\xfd7zXZ\0", "an xz file (unxz unpacks it)"),
    (rb"\x28\xb5\x2f\xfd", "a zstd file (unzstd unpacks it)"),
    (rb"PK\x03\x04", "a zip archive, as .npz, .docx and PyTorch's files are"),
    (rb"PAR1\x15", "a Parquet file"),
    (rb"ARROW1\0\0", "an Arrow file"),
    (rb"%PDF-", "a PDF file"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "text in UTF-32 (iconv -f UTF-32 -t UTF-8 OLD > NEW converts it)"),
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16 (iconv -f UTF-16 -t UTF-8 OLD > NEW converts it)"),
)


def format_of(start: bytes) -> str | None:
    """What a file that begins with these bytes is, with what to do about it; None where they tell nothing.

    Each beginning is one that neither text in UTF-8 nor tokens of GPT-2 have, or have with a chance below 1e-6.
    """
    return next((what for pattern, what in _BEGINNINGS if re.match(pattern, start)), None)
