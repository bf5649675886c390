"""SFT Playground: see what a chat model reads, tune it, and compare it with what it was."""
