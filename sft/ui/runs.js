// The list of runs: tells the server which ones are ticked, and keeps the ticks when the list is painted anew.
window.sftRuns = (element, props, watch, tell) => {
  const root = element.firstElementChild;
  const boxes = () => [...root.querySelectorAll("input[type=checkbox]")];
  const show = () => {
    const before = new Map(boxes().map((box) => [box.value, box.checked]));
    const focused = root.contains(document.activeElement) ? document.activeElement.value : undefined;
    root.innerHTML = props.value;
    boxes().forEach((box) => {
      box.checked = before.get(box.value) ?? box.checked; // what the server said last may be older than a click
      if (box.value === focused) box.focus({ preventScroll: true });
    });
  };
  root.addEventListener("change", () => tell(boxes().filter((box) => box.checked).map((box) => box.value)));
  watch("value", show);
  show();
};
