"""What a chat template does with each kind of message, found by asking it. Needs no tokenizer and no model."""

from dataclasses import dataclass

from sft.errors import TemplateError
from sft.layout import first_difference, generation_prompt, lay_out, render_text
from sft.origins import trace

_CALL = {"type": "function", "id": "call00001", "function": {"name": "weigh_parcel", "arguments": {"box": 7}}}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weigh_parcel",
            "description": "Weighs a parcel.",
            "parameters": {"type": "object", "properties": {"box": {"type": "integer"}}, "required": ["box"]},
        },
    }
]


def _say(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


_SYSTEM = _say("system", "Be brief.")
_ASKS = _say("user", "How heavy is it?")
_ANSWERS = _say("assistant", "Two kilos.")
_ASKS_AGAIN = _say("user", "And the other one?")
_CALLS = _say("assistant", "", tool_calls=[_CALL])
_RESULT = _say("tool", "2.0 kg", name="weigh_parcel", tool_call_id="call00001")
_THINKS = _say("assistant", "Two kilos.", reasoning_content="The scale said 2.0.")


@dataclass(frozen=True)
class Ability:
    """One row of the role matrix. `verdict` is 'yes', 'in part', 'no' (the words are left out) or 'refused'."""

    name: str
    verdict: str
    about: str


@dataclass(frozen=True)
class Traits:
    """What holds for a template whatever the conversation is.

    `generation_prompt` is None where it cannot be told, and "" where the template adds none. `injected` is what it
    says of itself before a first user message; `replaceable` whether a system message takes its place.
    """

    abilities: list[Ability]
    generation_prompt: str | None
    injected: str
    replaceable: bool

    def ability(self, name: str) -> Ability:
        return next(item for item in self.abilities if item.name == name)


def traits(template: str, variables: dict) -> Traits:
    """Asks the template about everything. What it raises is part of the answer."""
    ask = _Asker(template, variables)
    injected = _injected(ask)
    return Traits(
        abilities=[
            _system(ask),
            ask.about("several turns", [_ASKS, _ANSWERS, _ASKS_AGAIN, _ANSWERS]),
            ask.about("assistant first", [_ANSWERS, _ASKS_AGAIN]),
            ask.about("same role twice", [_ASKS, _ASKS_AGAIN]),
            _tools(ask),
            _calls(ask),
            _results(ask),
            _thinking(ask),
        ],
        generation_prompt=generation_prompt(template, variables),
        injected=injected,
        replaceable=bool(injected) and _replaceable(ask, injected),
    )


@dataclass(frozen=True)
class _Asker:
    template: str
    variables: dict

    def text(self, messages: list[dict], tools=None) -> str | None:
        """The rendered text, or None where the template raises."""
        try:
            return render_text(self.template, self.variables, messages, tools)
        except TemplateError:
            return None

    def about(self, name: str, messages: list[dict], watched: list[int] | None = None) -> Ability:
        """Whether the words of the `watched` messages (of all) reach the text."""
        try:
            found = trace(self.template, self.variables, messages)
        except TemplateError as error:
            return Ability(name, "refused", error.reason)
        watched = range(len(messages)) if watched is None else watched
        placed = {span.message for span in found.spans}
        changed = {each.message for each in found.dropped if each.text.strip()}
        if placed.issuperset(watched) and changed.isdisjoint(watched):
            return Ability(name, "yes", "")
        return Ability(name, "no" if placed.isdisjoint(watched) else "in part", "left out or rewritten")


def _system(ask: _Asker) -> Ability:
    seen = ask.about("system message", [_SYSTEM, _ASKS, _ANSWERS], watched=[0])
    if seen.verdict == "yes":
        alone, both = ask.text([_ASKS]), ask.text([_SYSTEM, _ASKS])
        header = alone.partition(_ASKS["content"])[0] if alone else None
        if header and both and both.partition(_SYSTEM["content"])[0] == header:
            return Ability(seen.name, "yes", "joined to the first user message")
    return seen


def _tools(ask: _Asker) -> Ability:
    without, given = ask.text([_ASKS]), ask.text([_ASKS], _TOOLS)
    if given is None:
        return Ability("tool descriptions", "refused", "")
    return Ability("tool descriptions", "no" if given == without else "yes", "")


def _calls(ask: _Asker) -> Ability:
    """Arguments come as an object or as JSON text, and some templates take only the one or the other."""
    seen = []
    for arguments, about in (({"box": 7}, ""), ('{"box": 7}', "arguments have to be JSON text, not an object")):
        call = {**_CALL, "function": {**_CALL["function"], "arguments": arguments}}
        try:
            found = trace(ask.template, ask.variables, [_ASKS, {**_CALLS, "tool_calls": [call]}], _TOOLS)
        except TemplateError as error:
            seen.append(Ability("tool calls", "refused", error.reason))
            continue
        return Ability("tool calls", *(("no", "left out") if found.dropped else ("yes", about)))
    return seen[0]


def _results(ask: _Asker) -> Ability:
    """Some templates take results without the calls that they answer."""
    called = ask.about("tool results", [_ASKS, _CALLS, _RESULT], watched=[2])
    if called.verdict != "refused":
        return called
    return ask.about("tool results", [_ASKS, _ANSWERS, _RESULT], watched=[2])


def _thinking(ask: _Asker) -> Ability:
    """Reasoning that stands apart from the answer, as `reasoning_content`: in the last answer, in earlier ones."""

    def kept(messages: list[dict]) -> bool:
        try:
            return not trace(ask.template, ask.variables, messages).dropped
        except TemplateError:
            return False

    if not kept([_ASKS, _THINKS]):
        return Ability("thinking", "no", "left out")
    if not kept([_ASKS, _THINKS, _ASKS_AGAIN, _ANSWERS]):
        return Ability("thinking", "in part", "kept in the last answer only")
    return Ability("thinking", "yes", "")


def _injected(ask: _Asker) -> str:
    """What the template says before a first user message, its header and the BOS token apart.

    The header is told by a later user message, which has it too.
    """
    first, later = ask.text([_ASKS]), ask.text([_ASKS, _ANSWERS, _ASKS_AGAIN])
    if first is None or later is None:
        return ""
    turns = lay_out(ask.template, ask.variables, [_ASKS, _ANSWERS, _ASKS_AGAIN]).assistant_spans
    opening, before = first.partition(_ASKS["content"])[0], later.partition(_ASKS_AGAIN["content"])[0]
    header = before[turns[-1][1] :] if turns else ""
    if not header or not opening.endswith(header):  # at most what both user messages have before them
        header = opening[len(opening) - first_difference(opening[::-1], before[::-1]) :]
    return _after_bos(ask, opening.removesuffix(header)).strip()


def _replaceable(ask: _Asker, injected: str) -> bool:
    """Whether a system message takes the place of what is injected: of most of it, for its header may stay."""
    own = ask.text([_SYSTEM, _ASKS])
    if own is None or injected in own:
        return False
    return first_difference(injected, _after_bos(ask, own).lstrip()) <= len(injected) / 2


def _after_bos(ask: _Asker, text: str) -> str:
    return text.removeprefix(ask.variables.get("bos_token") or "")
