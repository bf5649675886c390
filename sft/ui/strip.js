// Shows the frame of the strip that its slider is at, and marks its step in the curve above.
(() => {
  const place = (strip) => {
    const slider = strip.querySelector("input");
    const steps = slider.dataset.steps.split(" ");
    strip.querySelectorAll("[data-frame]").forEach((each) => each.classList.toggle("now", each.dataset.frame === slider.value));
    const said = `step ${steps[slider.value]}`;
    slider.setAttribute("aria-valuetext", said);
    strip.querySelector("[data-said]").textContent = `answers at ${said}`;
    const view = strip.closest("#run-view");
    view?.style.setProperty("--at", steps[slider.value] / slider.dataset.of);
  };
  // Puts new frames in place. The newest is shown, unless the person has moved the slider away from it.
  window.sftStrip = (element, html) => {
    const root = element.firstElementChild;
    const old = root.querySelector(".strip");
    const slider = old?.querySelector("input");
    const kept = slider && slider.value !== slider.max ? slider.dataset.steps.split(" ")[slider.value] : null;
    const had = slider && document.activeElement === slider;
    stop(root);
    root.innerHTML = html;
    const strip = root.querySelector(".strip");
    root.closest("#run-view")?.style.removeProperty("--at");
    if (!strip) return;
    const fresh = strip.querySelector("input");
    const at = fresh.dataset.steps.split(" ").indexOf(kept);
    if (old?.dataset.run === strip.dataset.run && at >= 0) fresh.value = at;
    place(strip);
    if (had) fresh.focus({ preventScroll: true });
  };
  let playing = null; // the timer of the strip that plays
  const stop = (root) => {
    clearInterval(playing);
    playing = null;
    const button = root.querySelector(".strip button");
    if (button) button.textContent = "▶";
  };
  const play = (button) => {
    const strip = button.closest(".strip");
    const slider = strip.querySelector("input");
    if (playing) return stop(strip.parentElement);
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "❚❚";
    place(strip);
    playing = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      place(strip);
      if (slider.value === slider.max) stop(strip.parentElement);
    }, 700);
  };
  document.addEventListener("input", (event) => {
    const strip = event.target.closest?.(".strip");
    if (!strip) return;
    stop(strip.parentElement);
    place(strip);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".strip button");
    if (button) play(button);
  });
})();
