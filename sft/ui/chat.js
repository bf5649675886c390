/* A conversation is saved by the browser itself: no file of it lies on the server. */
function saveAs(name, text) {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
/* Send is passed over while a reply that was cancelled still ends; then the question waits in the prompt. */
function askWhatIsThere(there) {
  if (there) setTimeout(() => document.querySelector("#send").click(), 150);
}
