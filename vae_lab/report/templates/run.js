"use strict";
const json = (element) => JSON.parse(element.textContent);

for (const [id, [traces, layout]] of Object.entries(json(document.getElementById("charts")))) plot(id, traces, layout);
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.closest("figure").classList.toggle("full"));
  });
}
for (const walk of document.querySelectorAll(".walk input")) means(walk);
for (const root of document.querySelectorAll(".explorer")) explorer(root);

// Posterior means: the picture of the point under the pointer, the finger, or chosen by the slider below.
function means(walk) {
  const chart = document.getElementById(walk.dataset.plot), peek = chart.parentElement.querySelector(".peek");
  const it = json(document.getElementById(`${walk.dataset.plot}-pictures`));
  const scale = Math.max(1, Math.floor(96 / Math.max(it.width, it.height)));
  const [width, height] = [it.width * scale, it.height * scale];
  Object.assign(peek.style, {
    width: `${width}px`, height: `${height}px`, backgroundImage: `url(${it.sheet})`,
    backgroundSize: `${width * it.columns}px auto`,
  });
  function show(k, left, top) {
    Object.assign(peek.style, {
      left: `${Math.max(0, Math.min(left, chart.clientWidth - width))}px`,
      top: `${Math.max(0, Math.min(top, chart.clientHeight - height))}px`,
      backgroundPosition: `-${(k % it.columns) * width}px -${Math.floor(k / it.columns) * height}px`,
    });
    peek.hidden = false;
  }
  function follow(event) {
    const {customdata, bbox} = event.points[0];
    walk.value = customdata;
    show(customdata, bbox.x1 + 12, bbox.y1 + 12);
  }
  chart.on("plotly_hover", follow);
  chart.on("plotly_click", follow);
  chart.on("plotly_unhover", () => { peek.hidden = true; });
  walk.addEventListener("input", () => {  // the label marks the point; Plotly sends no event for it
    const k = Number(walk.value), curve = chart.data.findIndex((trace) => trace.customdata.includes(k));
    show(k, chart.clientWidth, 0);
    Plotly.Fx.hover(chart, [{curveNumber: curve, pointNumber: chart.data[curve].customdata.indexOf(k)}]);
  });
}

// The latent space: frames of a sheet, blended with weights between the nearest ones.
function explorer(root) {
  const it = json(root.querySelector("script")), sheets = [];
  const canvas = root.querySelector(".frame"), map = root.querySelector(".map");
  const originals = [...root.querySelectorAll(".original")];
  const axes = [...root.querySelectorAll(".sliders label")].map((label) => {
    const input = label.querySelector("input");
    return {
      input, name: label.querySelector("span").textContent, value: label.querySelector(".value"),
      low: Number(input.min), high: Number(input.max), starts: JSON.parse(input.dataset.values),
    };
  });
  let start = 0, moved = null;

  function sheet() {
    if (!sheets[start]) { sheets[start] = new Image(); sheets[start].src = it.sheets[start]; }
    return sheets[start];
  }
  function place(axis) {  // the frame below the value of an axis, and the share of the next one
    const at = (Number(axis.input.value) - axis.low) / (axis.high - axis.low) * (it.columns - 1);
    if (!it.blend) return [Math.round(at), 0];
    const below = Math.min(Math.floor(at), it.columns - 2);
    return [below, at - below];
  }
  function frames() {  // [index, weight] of those to blend
    if (it.kind === "sliders") {
      if (moved === null) return [[axes.length * it.columns, 1]];
      const [i, t] = place(axes[moved]), row = moved * it.columns;
      return t ? [[row + i, 1 - t], [row + i + 1, t]] : [[row + i, 1]];
    }
    return axes.reduce((found, axis, dim) => {
      const [i, t] = place(axis), stride = it.columns ** dim;
      return found.flatMap(([k, w]) => [[k + i * stride, w * (1 - t)], [k + (i + 1) * stride, w * t]]);
    }, [[0, 1]]).filter(([, w]) => w > 0);
  }
  function draw(target, image, blended) {  // drawn over each other, so that each has its weight in the end
    const pen = target.getContext("2d");
    let sum = 0;
    for (const [k, weight] of blended) {
      sum += weight;
      pen.globalAlpha = weight / sum;
      pen.drawImage(image, (k % it.columns) * it.width, Math.floor(k / it.columns) * it.height, it.width, it.height,
                    0, 0, it.width, it.height);
    }
    pen.globalAlpha = 1;
  }
  async function update() {
    for (const {input, value} of axes) value.textContent = Number(input.value).toFixed(2);
    const values = axes.map(({name, value}) => `${name}: ${value.textContent}`);
    canvas.setAttribute("aria-label", `The decoded picture; ${values.join(", ")}`);
    const image = sheet();
    await image.decode();
    if (image !== sheet()) return;  // another start was chosen meanwhile
    draw(canvas, image, frames());
    originals.forEach((target, k) => draw(target, image, [[axes.length * it.columns + 1 + k, 1]]));
    if (map) drawMap(image);
  }
  function drawMap(image) {
    const pen = map.getContext("2d"), [x, y] = axes, size = map.width;
    const across = (value) => (value - x.low) / (x.high - x.low) * size;
    const up = (value) => size - (value - y.low) / (y.high - y.low) * size;
    pen.clearRect(0, 0, size, size);
    pen.globalAlpha = 0.5;
    const step = Math.ceil((it.columns - 1) / 20), cell = size * step / (it.columns - 1);
    for (let j = 0; j < it.columns; j += step) for (let i = 0; i < it.columns; i += step) {  // each around its place
      pen.drawImage(image, i * it.width, j * it.height, it.width, it.height,
                    (i / step - 0.5) * cell, size - (j / step + 0.5) * cell, cell, cell);
    }
    pen.globalAlpha = 0.9;
    for (const [px, py, label] of it.points) {
      if (it.sheets.length > 1 && label !== start) continue;  // of the class shown
      pen.fillStyle = it.colours[label];
      pen.beginPath();
      pen.arc(across(px), up(py), size / 170, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
    for (const [style, width] of [["#fff", 9], ["#000", 5]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(across(Number(x.input.value)), up(Number(y.input.value)), 16, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
  function go(axis, value) { axis.input.value = Math.min(axis.high, Math.max(axis.low, value)); }

  function reset() {
    moved = null;
    for (const axis of axes) go(axis, axis.starts[start]);
  }
  axes.forEach((axis, k) => {
    axis.input.addEventListener("input", () => {
      if (it.kind === "sliders") axes.forEach((other, j) => { if (j !== k) go(other, other.starts[start]); });
      moved = k;
      update();
    });
    axis.input.addEventListener("keydown", (event) => arrow(event, [axis], {ArrowRight: 0, ArrowUp: 0, ArrowLeft: 0, ArrowDown: 0}));
  });
  function arrow(event, along, keys) {  // a hundredth of the range, with Shift a tenth
    if (!(event.key in keys)) return;
    event.preventDefault();
    const axis = along[keys[event.key]], sign = ["ArrowRight", "ArrowUp"].includes(event.key) ? 1 : -1;
    go(axis, Number(axis.input.value) + sign * (axis.high - axis.low) * (event.shiftKey ? 0.1 : 0.01));
    axis.input.dispatchEvent(new Event("input"));
  }
  if (map) {
    const follow = (event) => {
      const box = map.getBoundingClientRect(), [x, y] = axes;
      go(x, x.low + (event.clientX - box.left) / box.width * (x.high - x.low));
      go(y, y.high - (event.clientY - box.top) / box.height * (y.high - y.low));
      update();
    };
    map.addEventListener("pointermove", follow);
    map.addEventListener("pointerdown", follow);
    map.addEventListener("keydown", (event) => arrow(event, axes, {ArrowRight: 0, ArrowLeft: 0, ArrowUp: 1, ArrowDown: 1}));
  }
  for (const radio of root.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => {
      start = Number(radio.value);
      if (it.kind === "sliders") reset();
      update();
    });
  }
  reset();
  update();
}
