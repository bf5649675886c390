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
    const place =
      document.querySelector(`.text-view [data-f~="${button.dataset.toF}"]`) ??
      document.querySelector(`.text-view [data-m="${button.dataset.toM}"]`);
    if (!place) return;
    place.scrollIntoView({ block: "center", behavior: "smooth" });
    place.classList.add("flash");
    setTimeout(() => place.classList.remove("flash"), 2500);
    (place.closest("[tabindex]") ?? place).focus({ preventScroll: true });
  };
  document.addEventListener("mouseover", light);
  document.addEventListener("focusin", light);
  document.addEventListener("click", go);
})();
