"""The model's answers over time as a strip of frames below the curve; strip.js shows the one that the slider is at.

All frames are sent once, so that scrubbing asks the server for nothing and goes on working after the run.
"""

from sft.ui.paint import escape

TEXT_SHOWN = 1500  # characters of one text


def strip(run_name: str, samples: list[dict], last_step: int) -> str:
    """The strip of a run's sample events, oldest first; nothing where there are none."""
    samples = [sample for sample in samples if sample["replies"]]
    if not samples:
        return ""
    prompts = "".join(_prompt(at, samples) for at in range(min(len(sample["replies"]) for sample in samples)))
    last = len(samples) - 1
    return (
        f'<section class="strip" data-run="{escape(run_name)}" aria-label="The model’s answers while it learns">'
        f'<h3>Watch it learn <small data-said></small></h3><div class="scrub">'
        f'<button type="button" aria-label="Play all answers in turn">▶</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Answers at step" '
        f'data-steps="{" ".join(str(sample["step"]) for sample in samples)}" data-of="{max(last_step, 1)}"></div>'
        f"{prompts}</section>"
    )


def _prompt(at: int, samples: list[dict]) -> str:
    """One of the prompts: what was asked, the answers in one place one upon the other, and the wanted answer."""
    prompt = samples[-1]["replies"][at]
    replies = enumerate(sample["replies"][at] for sample in samples)
    answers = "".join(f'<div data-frame="{index}">{_answer(reply)}</div>' for index, reply in replies)
    wanted = prompt.get("wanted")
    beside = f"<div><h4>Wanted</h4>{_text(wanted)}</div>" if wanted else ""
    return (
        f'<article><p class="question"><b>Asked</b> {escape(_question(prompt["messages"]))}</p>'
        f'<div class="pair"><div class="frames">{answers}</div>{beside}</div></article>'
    )


def _answer(reply: dict) -> str:
    wanted, text = (reply.get("wanted") or "").strip(), reply["text"].strip()
    stopped = '<span class="good">■ stopped by itself</span>' if reply["stopped"] else _WENT_ON
    same = ' <span class="good">✓ as wanted</span>' if reply["stopped"] and wanted and text == wanted else ""
    return f"<h4>Answer {stopped}{same}</h4>{_text(reply['text'])}"


_WENT_ON = '<span class="bad">… went on, was cut</span>'


def _text(text: str) -> str:
    more = " …" if len(text) > TEXT_SHOWN else ""
    return f'<div class="said" tabindex="0">{escape(text[:TEXT_SHOWN]) or "∅"}{more}</div>'


def _question(messages: list[dict]) -> str:
    """What the prompt ends with; a system message, which all rows may share, is not what was asked."""
    asked = [message for message in messages if message.get("role") != "system"] or messages
    return str(asked[-1].get("content") or "")[:TEXT_SHOWN] if asked else ""
