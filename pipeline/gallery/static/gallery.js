// Search, filter, lightbox and keyboard navigation. The gallery works without it.
"use strict";

const SHOWN = 200;
let samples = null;

// Called by search.js, which is loaded on the first use of search or filter.
function featuremapsSamples(rows) {
  samples = rows;
  offer(rows.map((row) => row[1]));
  find();
}

// Fill the label filter, if the gallery has labels.
function offer(given) {
  const select = document.querySelector(".find select");
  const labels = [...new Set(given.filter(Boolean))];
  labels.sort(new Intl.Collator(undefined, { numeric: true }).compare);
  for (const label of select ? labels : []) {
    const option = document.createElement("option");
    option.textContent = option.value = label;
    select.append(option);
  }
}

function fits(form, id, label) {
  const text = form.elements.text.value.trim().toLowerCase();
  const wanted = form.elements.label ? form.elements.label.value : "";
  return (!text || id.toLowerCase().includes(text)) && (!wanted || label === wanted);
}

function load(form) {
  if (samples || form.dataset.loading) return;
  form.dataset.loading = "yes";
  const script = document.createElement("script");
  script.src = form.dataset.search;
  document.head.append(script);
}

function find() {
  const form = document.querySelector(".find");
  if (!samples) return load(form);
  const list = document.querySelector(".found");
  const searching = [...form.querySelectorAll("input, select")].some((field) => field.value.trim());
  list.hidden = !searching;
  for (const part of document.querySelectorAll("div.scroll, nav.paging")) part.hidden = searching;
  list.replaceChildren();
  form.querySelector("output").value = "";
  if (!searching) return;
  const found = samples.filter((row) => fits(form, row[0], row[1]));
  form.querySelector("output").value =
    `${found.length} of ${samples.length}` + (found.length > SHOWN ? `, the first ${SHOWN} shown` : "");
  for (const [id, its, page, skipped] of found.slice(0, SHOWN)) {
    const item = document.createElement("li"), link = document.createElement("a"), note = document.createElement("small");
    link.textContent = id;
    link.href = page;
    note.textContent = its + (skipped ? " (skipped)" : "");
    item.append(link, note);
    list.append(item);
  }
}

function lightbox(link) {
  const dialog = document.createElement("dialog"), frame = document.createElement("div");
  const image = document.createElement("img"), close = document.createElement("button");
  const all = [...document.querySelectorAll("a.zoom")];
  let at = all.indexOf(link);
  const show = () => { const small = all[at].querySelector("img"); image.src = small.src; image.alt = small.alt; };
  frame.className = "frame";
  close.textContent = "×";
  close.setAttribute("aria-label", "close");
  close.onclick = () => dialog.close();
  image.onclick = () => dialog.classList.toggle("full");
  dialog.onclose = () => { dialog.remove(); all[at].focus(); };
  dialog.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    at = (at + step + all.length) % all.length;
    show();
    event.preventDefault();
    event.stopPropagation();
  };
  frame.append(image);
  dialog.append(frame, close);
  document.body.append(dialog);
  show();
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest("a.zoom");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  lightbox(link);
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const rel = { ArrowRight: "next", ArrowLeft: "prev", n: "next", p: "prev" }[event.key];
  const link = rel && document.querySelector(`a[rel=${rel}]`);
  if (link && !document.querySelector("dialog[open]")) link.click();
  const field = document.querySelector(".find input");
  if (event.key === "/" && field) { field.focus(); event.preventDefault(); }
});

const form = document.querySelector(".find[data-search]");
if (form) {
  form.addEventListener("focusin", () => load(form));
  form.addEventListener("input", find);
  form.addEventListener("submit", (event) => event.preventDefault());
}

// A single-file gallery holds all samples: hide those that do not match.
const here = document.querySelector(".find[data-here]");
if (here) {
  const rows = [...document.querySelectorAll("tr[data-id]")];
  offer(rows.map((row) => row.dataset.label));
  here.addEventListener("submit", (event) => event.preventDefault());
  here.addEventListener("input", () => {
    let shown = 0;
    for (const row of rows) {
      const fitting = fits(here, row.dataset.id, row.dataset.label);
      shown += fitting;
      row.hidden = document.getElementById(row.dataset.section).hidden = !fitting;
    }
    here.querySelector("output").value = shown < rows.length ? `${shown} of ${rows.length}` : "";
  });
}

// Fade the right edge of wide content and make it scrollable by keyboard.
for (const part of document.querySelectorAll("div.scroll")) {
  const mark = () => {
    const wider = part.scrollWidth - part.clientWidth;
    part.classList.toggle("more", part.scrollLeft < wider - 1);
    if (wider > 1) part.tabIndex = 0;
  };
  part.addEventListener("scroll", mark, { passive: true });
  const watcher = new ResizeObserver(mark);
  for (const box of [part, ...part.children]) watcher.observe(box);
}

// Show the values of a heatmap cell above it.
for (const map of document.querySelectorAll("svg.heatmap")) {
  const output = document.querySelector(`output[data-pairs="${map.dataset.pairs}"]`);
  for (const kind of ["pointerover", "focusin"]) {
    map.addEventListener(kind, (event) => {
      const cell = event.target.closest("a");
      if (cell) output.value = cell.querySelector("title").textContent;
    });
  }
}
