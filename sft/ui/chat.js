/* A conversation is saved by the browser itself: no file of it lies on the server. */
function saveAs(name, text) {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
/* Clicks a moment later, and once, however often it is told so meanwhile: Gradio begins two events that come within some
   milliseconds side by side, whatever their trigger mode says, and the older may end last. */
const clicks = {};
function clickSoon(button, wait = 100) {
  clearTimeout(clicks[button]);
  clicks[button] = setTimeout(() => document.querySelector(button).click(), wait);
}
/* Sends what is in the prompt where the page asks for it: it has turned to another model, or has not done so yet. */
const inVain = {};
function askWhatIsThere(there, button = "#send") {
  inVain[button] = there ? (inVain[button] ?? 0) + 1 : 0;
  if (there && inVain[button] < 200) clickSoon(button, 250);
  else clearTimeout(clicks[button]);
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
