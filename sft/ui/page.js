// Lights what belongs to one message in every view, and goes to the place of a finding.
(() => {
  const light = (event) => {
    const from = event.target.closest?.("[data-m], .turn");
    document.querySelectorAll(".lit").forEach((each) => each.classList.remove("lit"));
    if (!from) return;
    const message = from.dataset.m ?? [...from.classList].find((name) => /^m-\d+$/.test(name))?.slice(2);
    if (message === undefined) return;
    document.querySelectorAll(`.views [data-m="${message}"], .turn.m-${message}`).forEach((each) => each.classList.add("lit"));
  };
  const go = (event) => {
    const button = event.target.closest?.("button[data-to-f]");
    if (!button) return;
    // A row of a data set has findings and a text of its own. A place beyond what is painted is at the end.
    const page = button.closest(".row-view") ?? document.querySelector("#views");
    const place =
      page.querySelector(`.text-view [data-f~="${button.dataset.toF}"]`) ??
      page.querySelector(`.text-view [data-m="${button.dataset.toM}"]`) ??
      page.querySelector(".text-view > :last-child");
    if (!place) return;
    place.scrollIntoView({ block: "center", behavior: "smooth" });
    place.classList.add("flash");
    setTimeout(() => place.classList.remove("flash"), 2500);
    (place.closest("[tabindex]") ?? place).focus({ preventScroll: true });
  };
  // Puts HTML into an element at once. (Gradio would compare it with what is there, node by node.)
  window.sftShow = (element, html) => {
    const scrolled = [...element.querySelectorAll(".scroll")].map((each) => each.scrollTop);
    element.firstElementChild.innerHTML = html;
    element.querySelectorAll(".scroll").forEach((each, index) => (each.scrollTop = scrolled[index] ?? 0));
    light({ target: document.activeElement });
  };
  document.addEventListener("mouseover", light);
  document.addEventListener("focusin", light);
  document.addEventListener("click", go);
})();
