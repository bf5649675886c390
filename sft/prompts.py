"""What a model is asked with: as much of a conversation as it can read, in its own template, in none or in a wrong one.

The lesson warns that a model answers well only in the template that it was tuned with; the other two show it.
"""

from bisect import bisect_left
from dataclasses import replace
from os.path import commonprefix

from sft.chat_format import ChatFormat, preset
from sft.errors import RunError
from sft.messages import Conversation

TEMPLATES = ("right", "none", "wrong")
MARKERS = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}  # of families that no template belongs to both of


def prompt_ids(chat_format: ChatFormat, messages: list[dict], template: str = "right") -> list[int]:
    """The token ids of a prompt. `template` is "right": the chat format's own; "none": the bare texts, one after the
    other, for the model to go on with, begun as its tokenizer begins every text; "wrong": the template of another
    family, tokenised as this model does.
    """
    if template == "none":
        return _begun(chat_format) + chat_format.tokenize("\n\n".join(message["content"] for message in messages))[0]
    if template == "wrong":
        chat_format = replace(chat_format, chat_template=preset(wrong_family(chat_format)))
    return chat_format.prompt_ids(messages)


def _begun(chat_format: ChatFormat) -> list[int]:
    """The beginning-of-text token, for a model that has never read a text without."""
    first = chat_format.tokenizer("")["input_ids"][:1]
    return first if first == [chat_format.tokenizer.bos_token_id] else []


def opening(chat_format: ChatFormat, asked: list[dict], tools: list[dict] | None = None) -> list[int]:
    """The token ids that the template itself puts between a prompt and the answer, whatever that is: an empty block of
    thoughts, say. A tuned model has learned to write them; a base model that has them in its prompt answers likewise,
    without thinking first."""
    prompt = chat_format.prompt_ids(asked, tools)
    answered = [
        chat_format.encode(Conversation([*asked, {"role": "assistant", "content": text}], tools)).input_ids
        for text in ("a", "b")
    ]
    shared = commonprefix(answered)  # noqa: RUF071 (it compares lists)
    return shared[len(prompt) :] if shared[: len(prompt)] == prompt else []


def wrong_family(chat_format: ChatFormat) -> str:
    """The preset that "wrong" means for a chat format: ChatML, or Llama 3's for one that is ChatML itself."""
    return next((name for name, marker in MARKERS.items() if marker not in chat_format.chat_template), "alpaca")


def fitting(
    chat_format: ChatFormat, messages: list[dict], room: int | None, template: str = "right"
) -> tuple[list[int], int]:
    """The token ids of as much of a conversation as fits into `room` tokens, and how many turns were left out.

    The oldest go first, whole: a question with its reply. A system message stays. Raises RunError where the last
    question alone is too long. Without `room` everything fits.
    """
    head = [message for message in messages[:1] if message["role"] == "system"]
    starts = [at for at, message in enumerate(messages) if message["role"] == "user"]

    def without(turns: int) -> list[int]:
        return prompt_ids(chat_format, [*head, *messages[starts[turns] :]] if turns else messages, template)

    whole = without(0)
    if room is None or len(whole) <= room:
        return whole, 0
    dropped = bisect_left(range(len(starts)), True, lo=1, key=lambda turns: len(without(turns)) <= room)
    if dropped >= len(starts):
        count = len(without(len(starts) - 1))
        raise RunError(
            f"The question and what is told before it have {count:,} tokens; beside the reply there is room for "
            f"{max(room, 0):,}.",
            "Shorten the question or the system message, or ask for fewer new tokens.",
        )
    return without(dropped), dropped
