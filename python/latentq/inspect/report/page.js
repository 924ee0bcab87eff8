"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.querySelector(".theme");
  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  label();

  const dialog = document.querySelector("dialog");
  const view = dialog.querySelector(".view");
  const about = dialog.querySelector(".bar p");
  const samples = [...document.querySelectorAll(".zoom")];
  let current = 0;
  let zoom = 1;

  const scale = (value) => {
    zoom = Math.min(8, Math.max(0.25, value));
    view.style.setProperty("--zoom", zoom);
    view.classList.toggle("sharp", zoom > 1.5);
    dialog.querySelector("output").textContent = `${Math.round(zoom * 100)} %`;
  };
  const fitting = () => {
    const sides = [...view.querySelectorAll("img")].map((image) => image.naturalWidth || image.width || 256);
    const most = Math.max(256, ...sides);
    const across = innerWidth < 700 ? 1 : Math.min(3, sides.length);
    return Math.max(0.25, Math.min(3, (innerWidth - 32 - 16 * across) / across / most));
  };
  const show = (index) => {
    current = (index + samples.length) % samples.length;
    const forms = [...samples[current].querySelectorAll(".form")].map((form) => form.cloneNode(true));
    for (const form of forms) {
      const image = form.querySelector("img");
      image.removeAttribute("loading");
      form.style.setProperty("--side", `${image.getAttribute("width")}px`);
    }
    view.replaceChildren(...forms);
    about.textContent = samples[current].nextElementSibling.innerText.replace(/\s*\n\s*/g, " · ");
    scale(fitting());
    view.scrollTo(0, 0);
  };
  samples.forEach((sample, index) => sample.addEventListener("click", () => { dialog.showModal(); show(index); }));
  addEventListener("resize", () => { if (dialog.open) scale(fitting()); });
  const actions = {
    next: () => show(current + 1),
    previous: () => show(current - 1),
    in: () => scale(zoom * 1.5),
    out: () => scale(zoom / 1.5),
    fit: () => scale(fitting()),
    close: () => dialog.close(),
  };
  dialog.addEventListener("click", (event) => {
    const action = event.target.closest("button")?.dataset.action;
    if (action) actions[action]();
  });
  const keys = { ArrowRight: "next", ArrowLeft: "previous", "+": "in", "=": "in", "-": "out", 0: "fit" };
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    actions[keys[event.key]]();
  });
  dialog.addEventListener("close", () => samples[current].focus());
})();
