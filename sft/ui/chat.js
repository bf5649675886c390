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
const clicks = {}; // those to come
function clickSoon(button, wait = 100) {
  neverMind(button);
  clicks[button] = setTimeout(() => {
    delete clicks[button];
    document.querySelector(button).click();
  }, wait);
}
function neverMind(button) {
  clearTimeout(clicks[button]);
  delete clicks[button];
}
/* What was sent before the page had turned to who is chosen is sent again, until it has. Should it never have begun to
   turn, it is told so once more. */
const refused = {}; // for each button: when it was refused last, and how often in a row
function sendSoon(button = "#send") {
  const [now, before] = [performance.now(), refused[button]];
  const inRow = before && now - before.at < 2000 ? before.inRow + 1 : 1;
  refused[button] = { at: now, inRow };
  if (inRow > 200) return;
  if (button === "#send") neverMind("#ask-along");
  if (inRow % 4 === 0) clickSoon("#turn");
  clickSoon(button, 250);
}
/* Where something is sent anyway, what goes along is asked before it. */
function sendAlong() {
  if (!("#send" in clicks)) clickSoon("#ask-along", 50);
}
function sendNoMore() {
  ["#send", "#ask-along"].forEach(neverMind);
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
