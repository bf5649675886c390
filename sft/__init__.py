"""SFT Playground: see what a chat model reads, tune it, and compare it with what it was."""

import os
import warnings

# Before torch is loaded. By default its threads spin while they wait for each other; on two cores that they share
# with a page, a browser or a second process, this made replies three to five times slower. Sleeping threads cost
# about a tenth of the speed on cores that nobody else wants.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# TRL and PEFT still use an older name inside transformers; nobody who reads our output can do anything about it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
