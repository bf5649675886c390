"""Whose page it is. Locally there is one owner; on a Space each browser keeps an unguessable token.

Every handler comes here for its runs, so that a session of which nobody knows whose it is has none.
"""

import re
import secrets

from sft import models
from sft.errors import RunError, UserError
from sft.run import LOCAL_OWNER, Run
from sft.runs import find_run, list_runs, runs_dir

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


def first_owner() -> str:
    """The owner before the page has loaded: nobody on a Space, where a session may never load one."""
    return "" if models.on_a_space() else LOCAL_OWNER


def owner_of(stored) -> str:
    """The owner that a browser has stored, or a new one where that is no token of ours."""
    if not models.on_a_space():
        return LOCAL_OWNER
    owner = stored.get("owner") if isinstance(stored, dict) else None
    return owner if known(owner) else secrets.token_urlsafe(24)


def known(owner) -> bool:
    """Whether `owner` is somebody. On a Space 'local' is nobody: all strangers would share its runs."""
    if not isinstance(owner, str):
        return False
    return bool(_TOKEN.fullmatch(owner)) if models.on_a_space() else bool(owner)


def check_owner(owner) -> None:
    if not known(owner):
        raise UserError("This page has lost track of who you are.", "Reload the page, then try again.")


def runs_of(owner) -> list[Run]:
    """The owner's runs, newest first."""
    return list(list_runs(runs_dir(), owner)) if known(owner) else []


def run_of(owner, name) -> Run:
    """The owner's run of that name. Raises UserError where there is none."""
    check_owner(owner)
    if not isinstance(name, str) or not name:
        raise RunError("No run is chosen.", "Choose one from the list, or tune a model first.")
    return find_run(name, runs_dir(), owner)
