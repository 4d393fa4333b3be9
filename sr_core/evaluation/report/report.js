"use strict";
// The viewer takes its images from the sheet of samples, so that each is embedded once;
// without scripts the sheet stays open and shows them all.
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const samples = [...document.querySelectorAll(".sample")];
  const find = (selector) => viewer.querySelector(selector);
  const frame = find(".frame");
  const range = find("input[type=range]");
  const images = { left: find(".under"), right: find(".over") };
  const tags = { left: find(".tag.left"), right: find(".tag.right") };
  const picks = find(".pick");
  let current = 0;

  const chosen = (side) => find(`input[name=${side}]:checked`);
  const label = (side) => chosen(side).parentElement.textContent.trim();

  function move() {
    frame.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${label("left")}, ${100 - range.value} % ${label("right")}`);
  }

  function show() {
    const sample = samples[current];
    for (const side of ["left", "right"]) {
      const source = sample.querySelector(`img[data-arm="${chosen(side).value}"]`);
      images[side].hidden = !source;
      if (source) {
        images[side].src = source.src;
        images[side].alt = source.alt;
      }
      const score = sample.querySelector(`tr[data-arm="${chosen(side).value}"] td`);
      tags[side].textContent = label(side) + (score ? ` · ${score.textContent}` : "");
    }
    find(".which").textContent = sample.dataset.title;
    find(".size").textContent = sample.dataset.side;
    const table = sample.querySelector("table").cloneNode(true);
    table.caption.className = "";
    table.caption.textContent = "PSNR of this sample";
    find(".psnr").replaceChildren(table);
    [...picks.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === current)));
    move();
  }

  samples.forEach((sample, i) => {
    const button = document.createElement("button");
    const thumbnail = new Image();
    thumbnail.src = (sample.querySelector('img[data-arm="sr"]') || sample.querySelector("img")).src;
    thumbnail.alt = `Sample ${i + 1}: ${sample.dataset.title}`;
    button.type = "button";
    button.title = sample.dataset.title;
    button.append(thumbnail);
    button.addEventListener("click", () => { current = i; show(); });
    picks.append(button);
  });
  picks.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    current = (current + step + samples.length) % samples.length;
    show();
    picks.children[current].focus();
  });
  find(".pixels input").addEventListener("change", (event) => frame.classList.toggle("raw", event.target.checked));
  range.addEventListener("input", move);
  viewer.addEventListener("change", (event) => { if (event.target.type === "radio") show(); });
  viewer.hidden = false;
  document.querySelector(".contact").open = false;
  show();
})();
