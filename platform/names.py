"""File names with accents: one letter may be one character or two (Unicode's forms NFC and NFD), and both look alike.

Linux and Windows keep the form they are given; macOS and some file servers turn names into NFD. So a name in a table
may differ from that of the file it means, and so may the names of an image and its mask.
"""

import unicodedata
from pathlib import Path


def nfc(name: str) -> str:
    """Return the one form by which names are compared and ordered."""
    return unicodedata.normalize("NFC", name)


def on_disk(path: Path) -> Path:
    """Return the path with its names in the form that they have on the disk; as it is where nothing there fits."""
    if path.exists() or path.parent == path:
        return path
    parent = on_disk(path.parent)
    try:
        return next((found for found in sorted(parent.iterdir()) if nfc(found.name) == nfc(path.name)), path)
    except OSError:
        return path
