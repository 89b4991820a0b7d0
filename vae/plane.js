"use strict";
// A decoder in the page: it draws what it makes of a code that the reader moves. vae/plane.py says what `data` holds.
{
const SIDE = 28;  // pixels of a picture
const SIZE = 720;  // pixels of the plane, drawn smaller
const STEP = 1 / 50;  // of the reach, for an arrow key

const ACTIVATIONS = {
  relu: value => Math.max(value, 0),
  silu: value => value / (1 + Math.exp(-value)),
  identity: value => value,
};

const buffer = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
const floats = text => new Float32Array(buffer(text));
const written = value => value.toFixed(2).replace(/^-(?=0\.00$)/, "").replace("-", "−");

// Returns the function from a code to the means of the 784 pixels, in [0, 1].
function decoder(layers) {
  const parts = layers.map(({inputs, outputs, activation, levels, scales, biases}) => {
    const [rows, scale, bias, act] = [new Int8Array(buffer(levels)), floats(scales), floats(biases), ACTIVATIONS[activation]];
    return values => Float64Array.from({length: outputs}, (_, row) => {
      let sum = 0;
      for (let i = 0, at = row * inputs; i < inputs; i++) sum += rows[at + i] * values[i];
      return act(scale[row] * sum + bias[row]);
    });
  });
  return code => parts.reduce((values, part) => part(values), code).map(logit => 1 / (1 + Math.exp(-logit)));
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Black ink on white.
function drawPicture(canvas, pixels) {
  const image = new ImageData(SIDE, SIDE);
  pixels.forEach((ink, i) => image.data.set([255 * (1 - ink), 255 * (1 - ink), 255 * (1 - ink), 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Returns a picture of the test images' codes by class, and of the prior at 1, 2 and 3 deviations.
function drawnCodes({points, labels, colours, prior_mean, prior_std, reach}) {
  const canvas = element("canvas", {width: SIZE, height: SIZE}), draw = canvas.getContext("2d");
  const place = value => SIZE / 2 * (1 + (value - prior_mean) / reach);
  const codes = floats(points);
  draw.globalAlpha = 0.55;
  for (let i = 0; i < labels.length; i++) {
    draw.fillStyle = colours[labels[i]];
    draw.beginPath();
    draw.arc(place(codes[2 * i]), SIZE - place(codes[2 * i + 1]), 3.5, 0, 2 * Math.PI);
    draw.fill();
  }
  draw.globalAlpha = 1;
  draw.strokeStyle = draw.fillStyle = "#333";
  draw.font = "24px system-ui, sans-serif";
  draw.textAlign = "center";
  draw.setLineDash([8, 6]);
  for (const multiple of [1, 2, 3]) {
    const radius = SIZE / 2 * multiple * prior_std / reach;
    draw.beginPath();
    draw.arc(SIZE / 2, SIZE / 2, radius, 0, 2 * Math.PI);
    draw.stroke();
    draw.fillText(`${multiple}σ`, SIZE / 2, SIZE / 2 - radius + 26);
  }
  return canvas;
}

// Returns the plane that the reader drags a point over, and the function that shows the point where the code is.
function plane(data, code, moved) {
  const {prior_mean: centre, reach} = data;
  const canvas = element("canvas", {className: "codes", width: SIZE, height: SIZE, tabIndex: 0});
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Plane of the code. Drag the point, or move it with the arrow keys.");
  const background = drawnCodes(data);
  const told = element("div", {className: "told"});  // to a screen reader: the plane has no value of its own
  told.setAttribute("role", "status");
  const inside = value => Math.min(Math.max(value, centre - reach), centre + reach);
  const go = (first, second) => {
    code[0] = inside(first);
    code[1] = inside(second);
    moved();
    told.textContent = `${written(code[0])}, ${written(code[1])}`;
  };
  const follow = event => {
    const box = canvas.getBoundingClientRect();
    const along = (at, start, size) => centre + reach * (2 * (at - start) / size - 1);
    go(along(event.clientX, box.left, box.width), 2 * centre - along(event.clientY, box.top, box.height));
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    follow(event);
  });
  canvas.addEventListener("pointermove", event => {
    if (canvas.hasPointerCapture(event.pointerId)) follow(event);
  });
  canvas.addEventListener("keydown", event => {
    const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1]};
    if (!(event.key in ways) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const [right, up] = ways[event.key], step = STEP * reach * (event.shiftKey ? 5 : 1);
    go(code[0] + right * step, code[1] + up * step);
  });
  const show = () => {
    const draw = canvas.getContext("2d");
    const [x, y] = [code[0], code[1]].map(value => SIZE / 2 * (1 + (inside(value) - centre) / reach));
    draw.clearRect(0, 0, SIZE, SIZE);
    draw.drawImage(background, 0, 0);
    for (const [colour, width] of [["#fff", 10], ["#000", 4]]) {
      draw.strokeStyle = colour;
      draw.lineWidth = width;
      draw.beginPath();
      draw.arc(x, SIZE - y, 13, 0, 2 * Math.PI);
      draw.stroke();
    }
  };
  const classes = [...new Set(data.labels)].sort().map(digit => {
    const dot = element("i");
    dot.style.background = data.colours[digit];
    return element("li", {}, dot, digit);
  });
  const legend = element("ul", {className: "classes"}, ...classes);
  legend.setAttribute("aria-label", "Colours of the digits");
  return [element("div", {className: "whole"}, canvas, legend, told), show];
}

// Returns the slider of one dimension, and the function that shows the code's value on it.
function slider({index, kl}, {prior_mean: centre, reach}, code, moved) {
  const input = element("input", {type: "range", min: centre - reach, max: centre + reach, step: STEP * reach});
  const name = `dimension ${index + 1} (KL ${kl.toFixed(1)} nats)`, value = element("span", {className: "value"});
  input.setAttribute("aria-label", name);
  input.addEventListener("input", () => {
    code[index] = input.valueAsNumber;
    moved();
  });
  const show = () => {
    input.value = code[index];
    value.textContent = written(code[index]);
    input.setAttribute("aria-valuetext", value.textContent);
  };
  return [element("label", {}, name, value, input), show];
}

for (const place of document.querySelectorAll(".latent-plane")) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const decode = decoder(data.layers);
  const code = [...data.starts[0].code];
  const picture = element("canvas", {className: "decoded", width: SIDE, height: SIDE});
  picture.setAttribute("role", "img");
  const shows = [];
  const moved = () => {
    drawPicture(picture, decode(code));
    for (const show of shows) show();
    const where = data.dimensions.map(({index}) => `${index + 1}: ${written(code[index])}`).join(", ");
    picture.setAttribute("aria-label", `What the decoder makes of the code with dimension ${where}`);
  };
  const start = element("select", {}, ...data.starts.map(({label}, i) => element("option", {value: i}, `a ${label}`)));
  start.addEventListener("change", () => {
    code.splice(0, code.length, ...data.starts[start.value].code);
    moved();
  });
  const controls = element("div", {className: "controls"}, element("label", {}, "start from a test image of ", start));
  for (const dimension of data.dimensions) {
    const [made, show] = slider(dimension, data, code, moved);
    controls.append(made);
    shows.push(show);
  }
  const room = element("div", {className: "room"}, picture, controls);
  if (code.length === 2) {
    const [made, show] = plane(data, code, moved);
    room.prepend(made);
    room.classList.add("plane");
    shows.push(show);
  }
  const group = element("div", {}, room, element("p", {className: "caption"}, data.caption));
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", data.title);
  place.prepend(group);
  moved();
  const instead = place.querySelector("details");
  if (instead) instead.open = false;
}
}
