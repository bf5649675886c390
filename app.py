"""SFT Playground: builds the page and serves it. All else is in sft/."""

from sft import ui

demo = ui.build()

if __name__ == "__main__":
    demo.launch(**ui.launch_options())
