"""What happens to a model that is tuned with one chat format and chatted with another: the wrong template, foretold."""

from dataclasses import dataclass

from sft.chat_format import ChatFormat
from sft.errors import quoted
from sft.layout import first_difference


@dataclass(frozen=True)
class Mismatch:
    """`training` is what tuning sees, `prompt` what chat sends; they part at character `parts_at`, None if they agree.

    `writes` is the token that tuning teaches to end a turn with, that of an inner turn where the last one ends
    otherwise too; `awaits` are the stop tokens at which chat ends a reply, which `stops` if the one is among the other.
    Without a tokenizer, `stops` is None, for it cannot be told, and only the texts are compared.
    """

    training: str
    prompt: str
    parts_at: int | None
    writes: str | None
    awaits: list[str]
    stops: bool | None

    @property
    def harmless(self) -> bool:
        return self.parts_at is None and self.stops is not False

    def said(self) -> list[str]:
        """What will happen, in words."""
        asked = (
            "Chat asks just as tuning taught."
            if self.parts_at is None
            else f"Chat asks with {_from(self.prompt, self.parts_at)} where tuning taught "
            f"{_from(self.training, self.parts_at)}: the model is asked in a way that it never saw."
        )
        if self.stops is None:
            return [asked, "Whether the reply ends cannot be told without a tokenizer, whose tokens end it."]
        if self.stops:
            return [asked, f"The reply ends: the model writes {self.writes}, and chat stops there."]
        awaited = " or ".join(self.awaits) or "nothing that a turn ends in"
        learned = f"The model learned to end with {self.writes}" if self.writes else "The model learned no end"
        return [asked, f"The reply does not end: {learned[0].lower()}{learned[1:]}, and chat waits for {awaited}."]


def mismatch(tuned: ChatFormat, chatted: ChatFormat, messages: list[dict], tools: list[dict] | None = None) -> Mismatch:
    """Foretells it for one conversation that ends in a reply, or is given one. Raises TemplateError."""
    learned = tuned.render(messages, tools)
    asked = chatted.render(messages, tools).prompt
    training = learned.prompt.training if learned.prompt else learned.text
    prompt = asked.text if asked else ""
    parts_at = None if training.startswith(prompt) else first_difference(prompt, training)
    if tuned.tokenizer is None:
        return Mismatch(training, prompt, parts_at, None, [], None)
    named, ends, awaits = tuned.tokenizer.convert_ids_to_tokens, tuned.end_of_turn_ids[:1], chatted.stop_token_ids
    writes = named(ends[0]) if ends else None
    return Mismatch(training, prompt, parts_at, writes, named(awaits), bool(ends) and ends[0] in awaits)


def to_json(found: Mismatch) -> dict:
    """What `preview --chat-with --json` prints of it."""
    return {"fits": found.harmless, "said": found.said(), **vars(found)}


def _from(text: str, at: int) -> str:
    """The text from a character on, quoted; from the beginning of the marker that the character stands in."""
    opened = text.rfind("<", 0, at)
    inside = opened >= 0 and ">" not in text[opened:at]
    return quoted(text[opened if inside else at :])
