// Interactive parts of the explorer: streamed nearest positions, the marker on a map, the dataset map.
// Pages show pictures, numbers and links without it.
"use strict";

const samplesText = (count) => `${count.toLocaleString("en")} sample${count === 1 ? "" : "s"}`;

for (const link of document.querySelectorAll("a.places")) {
  const { y, x, height, width } = link.dataset, image = link.querySelector("img");
  const marker = document.createElement("span");
  marker.className = "marker";
  const wide = image.width / width, tall = image.height / height;
  // The content security policy forbids inline styles in HTML.
  Object.assign(marker.style, {
    left: `${x * wide}px`, top: `${y * tall}px`, width: `${wide}px`, height: `${tall}px` });
  link.append(marker);
}

async function findNearest(box) {
  const list = box.querySelector("ol"), status = box.querySelector("[role=status]");
  const progress = box.querySelector("progress"), stop = new AbortController();
  box.querySelector("button").onclick = () => stop.abort();
  const show = (answer) => {
    if (answer.error) { status.textContent = answer.error; status.className = "fault"; return; }
    progress.max = answer.total;
    progress.value = answer.done;
    list.replaceChildren(...answer.found.map((place) => {
      const item = document.createElement("li"), link = document.createElement("a"), image = document.createElement("img");
      const query = `y=${place.y}&x=${place.x}`, layer = encodeURIComponent(box.dataset.layer);
      image.src = `${box.dataset.base}/draw/crop.png?sample=${encodeURIComponent(place.stem)}&layer=${layer}&${query}`;
      image.alt = place.id;
      image.loading = "lazy";
      link.href = `${box.dataset.base}/at/${encodeURIComponent(place.stem)}/${layer}?${query}`;
      link.append(image, `${place.cosine.toFixed(3)} ${place.id}`);
      item.append(link);
      return item;
    }));
    if (answer.done === answer.total) status.textContent = `${samplesText(answer.total)} searched`;
  };
  try {
    const answer = await fetch(box.dataset.from, { signal: stop.signal });
    if (!answer.ok) { show({ error: `the search failed (${answer.status})` }); return; }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", shown = 0, last = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) last = JSON.parse(line);
      // Update at intervals: the list changes while the search runs.
      if (last && (last.error || performance.now() - shown > 1500)) { show(last); shown = performance.now(); }
    }
    if (last) show(last);
  } catch (error) {
    status.textContent = error.name === "AbortError" ? "stopped" : "the server is not reachable";
  }
}
document.querySelectorAll(".nearest").forEach(findNearest);

const COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];

async function showDataset(box) {
  const canvas = box.querySelector("canvas"), status = box.querySelector("[role=status]"), pen = canvas.getContext("2d");
  const answer = await fetch(box.dataset.from);
  if (!answer.ok) { status.textContent = `loading the map failed (${answer.status})`; return; }
  const map = await answer.json(), count = map.x.length;
  const range = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const [x0, x1] = range(map.x), [y0, y1] = range(map.y);
  const thumbnails = new Map(), selected = new Set();
  let scale = 1, left = 0, top = 0, dragged = null;
  status.textContent = !count ? "no sample has finite values in this layer" : `${samplesText(count)} · ${map.explained.map((e) => `${Math.round(100 * e)} %`).join(" + ")} of the variance · fitted to ${map.fitted_to.toLocaleString("en")}`;
  const at = (i) => [
    ((map.x[i] - x0) / (x1 - x0 || 1) * (canvas.width - 80) + 40) * scale + left,
    ((y1 - map.y[i]) / (y1 - y0 || 1) * (canvas.height - 80) + 40) * scale + top];
  const color = (i) => map.label[i] < 0 ? "#3b528b" : COLORS[map.label[i] % COLORS.length];
  const draw = () => {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const seen = [];
    for (let i = 0; i < count; i++) {
      const [x, y] = at(i);
      if (x < -32 || y < -32 || x > canvas.width + 32 || y > canvas.height + 32) continue;
      seen.push(i);
      pen.fillStyle = color(i);
      const size = selected.has(i) ? 8 : count > 5000 ? 3 : 5;
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
    if (seen.length > 60) return;
    for (const i of seen) {
      let image = thumbnails.get(i);
      if (!image) {
        image = new Image();
        image.onload = draw;
        image.src = `${box.dataset.base}/draw/photo.png?sample=${encodeURIComponent(map.stem[i])}`;
        thumbnails.set(i, image);
      }
      if (!image.complete || !image.naturalWidth) continue;
      const [x, y] = at(i), side = 44;
      pen.fillStyle = selected.has(i) ? "#ff3c3c" : color(i);
      pen.fillRect(x - side / 2 - 2, y - side / 2 - 2, side + 4, side + 4);
      pen.drawImage(image, x - side / 2, y - side / 2, side, side);
    }
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const zoom = (factor, x, y) => {
    const next = Math.min(2000, Math.max(1, scale * factor));
    left = x - (x - left) * next / scale;
    top = y - (y - top) * next / scale;
    scale = next;
    draw();
  };
  const tell = () => {
    const part = box.querySelector("section"), rows = [...selected];
    part.hidden = !rows.length;
    part.querySelector("output").value = samplesText(rows.length);
    part.querySelector("textarea").value = `'render.samples=${JSON.stringify(rows.map((i) => map.id[i]))}'`;
  };
  canvas.onwheel = (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, ...place(event)); };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    dragged = { from: place(event), left, top, select: event.shiftKey, moved: false };
  };
  canvas.onpointermove = (event) => {
    if (!dragged) return;
    const [x, y] = place(event), [a, b] = dragged.from;
    dragged.moved ||= Math.abs(x - a) + Math.abs(y - b) > 4;
    if (!dragged.select) { left = dragged.left + x - a; top = dragged.top + y - b; }
    draw();
    if (dragged.select) { pen.strokeStyle = "#ff3c3c"; pen.strokeRect(a, b, x - a, y - b); }
  };
  canvas.onpointerup = (event) => {
    const { from: [a, b], select, moved } = dragged, [x, y] = place(event);
    dragged = null;
    if (select) {
      selected.clear();
      for (let i = 0; i < count; i++) {
        const [px, py] = at(i);
        if (px >= Math.min(a, x) && px <= Math.max(a, x) && py >= Math.min(b, y) && py <= Math.max(b, y)) selected.add(i);
      }
      tell();
    } else if (!moved) {
      let best = -1, nearest = 400;
      for (let i = 0; i < count; i++) {
        const [px, py] = at(i), far = (px - x) ** 2 + (py - y) ** 2;
        if (far < nearest) { nearest = far; best = i; }
      }
      if (best >= 0) location.href = `${box.dataset.base}/sample/${encodeURIComponent(map.stem[best])}`;
    }
    draw();
  };
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.25 : 0.8, canvas.width / 2, canvas.height / 2);
    else if (step) { left += step[0]; top += step[1]; draw(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  box.querySelector("button").onclick = () => {
    const text = box.querySelector("textarea");
    text.select();
    if (navigator.clipboard) navigator.clipboard.writeText(text.value);
  };
  map.labels.slice(0, 30).forEach((label, i) => {
    const entry = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = COLORS[i % COLORS.length];
    entry.append(dot, label);
    box.querySelector(".legend").append(entry);
  });
  canvas.dataset.points = count;
  draw();
}
document.querySelectorAll(".dataset").forEach(showDataset);
