"""The ids of images: which image an id names, where senders use one again."""

import hashlib
import zlib
from collections.abc import Callable, Mapping

MAX_ID = 256  # characters, also of who gave a word
UNKNOWN = "unknown:"  # before the id of an image whose sender is not known
COMPARED = 16  # of the images that one id was used for: the first, and so many of the newest


def foreign(id: str) -> str:
    """Returns the id of an image whose sender is not known."""
    return UNKNOWN + _cut(id, MAX_ID - len(UNKNOWN))


def numbered(id: str, number: int) -> str:
    """Returns the id of the image that came as the `number`th with an id: `part-7`, `part-7#2`, `part-7#3`."""
    end = f"#{number}" if number > 1 else ""
    return _cut(id, MAX_ID - len(end)) + end


def which(
    id: str, image: bytes, known: Mapping[str, int], checksum: Callable[[int], int | None]
) -> tuple[str, int | None]:
    """Returns the id of an image that came with `id`, and its record where the log has the same bytes under that id.

    Other bytes are another image, with an id of its own: a counter has started again, or two cameras use the same ids.
    known: id -> record. checksum: CRC-32 of a record's image, also where its bytes were dropped.
    """
    if id not in known:
        return id, None
    last, far = 1, 2
    while numbered(id, far) in known:
        last, far = far, 2 * far
    while far - last > 1:
        middle = (last + far) // 2
        last, far = (middle, far) if numbered(id, middle) in known else (last, middle)
    crc = zlib.crc32(image)
    for number in [1, *range(last, max(1, last - COMPARED), -1)]:
        name = numbered(id, number)
        if checksum(known[name]) == crc:
            return name, known[name]
    while (name := numbered(id, last + 1)) in known:
        last += 1
    return name, None


def _cut(id: str, most: int) -> str:
    """An id of at most so many characters; of one that is longer, its end is replaced by its checksum."""
    return id if len(id) <= most else f"{id[: most - 17]}:{hashlib.sha256(id.encode()).hexdigest()[:16]}"
