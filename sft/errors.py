"""The errors that are the user's to mend.

    UserError
    ├── MessagesError    a conversation breaks a rule
    ├── DataError        a file or data set cannot be used
    ├── TemplateError    a chat template does not render
    │   └── SandboxBusy  no process was free to render it
    ├── ConfigError      a setting is unknown or out of range
    ├── ModelError       a model cannot be had or is not safe to load
    └── RunError         a run does not exist, or is in no state for what was asked

They are caught in two places only, the command line and the page, and shown without a traceback.
Anything else that is raised is a defect of ours.
"""

import json


class UserError(Exception):
    """What was given and which rule it breaks (`message`), and what to change (`hint`)."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n→ {self.hint}" if self.hint else self.message


class MessagesError(UserError):
    pass


class DataError(UserError):
    pass


class TemplateError(UserError):
    """`reason` is what the template itself said, `line` that of its source, counted from 1, where it is known."""

    def __init__(self, message: str, hint: str = "", line: int | None = None, reason: str = ""):
        super().__init__(message, hint)
        self.line = line
        self.reason = reason or message


class SandboxBusy(TemplateError):
    """No process of the sandbox was free; trying again may help."""


class ConfigError(UserError):
    pass


class ModelError(UserError):
    pass


class RunError(UserError):
    pass


def listed(problems: list[str], limit: int = 5) -> str:
    """The first `limit` problems, one a line, and how many more there are."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return "\n".join(lines)


def quoted(text: str, length: int = 80) -> str:
    """The beginning of a text in one line, in quotation marks."""
    shown = json.dumps(text[:length], ensure_ascii=False)[1:-1]
    return f"“{shown}{'…' if len(text) > length else ''}”" if text else "nothing"
