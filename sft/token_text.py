"""What a token reads as, also where it is only a part of a character."""

_BROKEN = "\ufffd"  # what a decoder writes for bytes that make up no character


def token_text(tokenizer, token_id: int) -> str:
    """The text of one token by itself; a part of a character as its bytes."""
    text = tokenizer.decode([token_id])
    return byte_names(tokenizer.convert_ids_to_tokens(token_id)) if _BROKEN in text else text


def token_texts(tokenizer, token_ids: list[int]) -> list[str]:
    """The text that each token adds to those before it.

    A token that ends inside a character reads as its bytes, and the one that completes it as the character.
    """
    texts = []
    known, fresh = 0, 0  # the last whole piece begins and ends here: decoded beside it, a word keeps its space
    for end, token_id in enumerate(token_ids, 1):
        text = tokenizer.decode(token_ids[known:end])
        if text.endswith(_BROKEN):
            texts.append(byte_names(tokenizer.convert_ids_to_tokens(token_id)))
            continue
        texts.append(text.removeprefix(tokenizer.decode(token_ids[known:fresh])).lstrip(_BROKEN))
        known, fresh = fresh, end
    return texts


def byte_names(token: str) -> str:
    """A part of a character as its bytes, such as ⟨F0 9F⟩; tokenizers write bytes as letters, or as <0xF0>."""
    if token.startswith("<0x"):
        return f"⟨{token[3:-1]}⟩"
    return f"⟨{' '.join(f'{_LETTERS[letter]:02X}' for letter in token if letter in _LETTERS)}⟩"


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte: its own where it prints, else one from 256 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + at): byte for at, byte in enumerate(others)}


_LETTERS = _byte_letters()
