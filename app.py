"""SFT Playground: builds the page and serves it. All else is in sft/."""

from sft import ui

demo = ui.build()

if __name__ == "__main__":
    demo.launch(prevent_thread_lock=True, **ui.launch_options())
    ui.READINESS.begin()  # after the page is served, which needs no model
    demo.block_thread()
