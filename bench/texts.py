"""The messages that every system keeps: the same ones, some 240 bytes each once stored."""

import random

TEXT_BYTES = 178
"""Of text in a message; with id, sequence, role and time it makes about 240 bytes of protobuf."""

_PROSE = (
    "a the of to and in that is for it on with as was at by this from be are or an have not which one all would will "
    "there can if more when who out so up about into only other new some could time these two may first then do any "
    "like my now over such our man me even most made after also did many off before must well back through years much "
    "where your way down should because long each just state those people how too little good world make very year "
    "still see own work men day get here old life both between being under three never know same last another while "
    "us off might great go come since against right came take used himself few house use place during high without"
)
_WORDS = _PROSE.split()


def texts(count: int) -> list[str]:
    """Give `count` texts of exactly TEXT_BYTES, always the same ones."""
    draw = random.Random(50)
    return [_text(draw) for _ in range(count)]


def _text(draw: random.Random) -> str:
    words: list[str] = []
    length = 0
    while length <= TEXT_BYTES:
        word = draw.choice(_WORDS)
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:TEXT_BYTES]


def role(index: int) -> str:
    """Give the role of the message at a position: people and assistants take turns."""
    return "assistant" if index % 2 else "user"
