/* A conversation is saved by the browser itself: no file of it lies on the server. */
function saveAs(name, text) {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
/* Sends what is in the prompt where the page asks for it: it has turned to another model, or has not done so yet. */
const sends = {}; // by button, how often in vain and when next: one at a time, whoever asks for it
function askWhatIsThere(there, button = "#send") {
  const send = (sends[button] ??= { tries: 0, next: null });
  clearTimeout(send.next);
  send.tries = there ? send.tries + 1 : 0;
  if (there && send.tries < 200) send.next = setTimeout(() => document.querySelector(button).click(), 250);
}
/* To a screen reader all panes have one name. */
function nameThePanes(tries = 20) {
  const names = { "base-pane": "Base model", "tuned-pane": "Tuned model", "third-pane": "Beside them" };
  const logs = Object.keys(names).map((id) => document.querySelector(`#${id} [role=log]`));
  logs.forEach((log, at) => log?.setAttribute("aria-label", `${Object.values(names)[at]}, conversation`));
  if (!logs[0] && tries) setTimeout(() => nameThePanes(tries - 1), 250);
}
function focusOnPrompt() {
  setTimeout(() => document.querySelector("#prompt textarea")?.focus(), 250);
}
