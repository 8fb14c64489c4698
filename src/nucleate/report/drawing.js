// Colours of both themes, and the few shapes that every picture is made of.

const theme = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen === "dark" || (!chosen && matchMedia("(prefers-color-scheme: dark)").matches)
    ? { dark: true, ground: "#14161a", text: "#e8eaed", quiet: "#a3a9b3", line: "#353a43", soft: "#1d2026", mark: "#ffb454" }
    : { dark: false, ground: "#ffffff", text: "#1b1d22", quiet: "#5b6069", line: "#d9dce1", soft: "#f4f5f7", mark: "#c4511f" };
};

// Okabe and Ito's colours and two more, moved apart until any two differ plainly (by 16 in CIE Lab) to everybody, with
// red- or green-blindness too; a test measures it.
const TEN = ["#278bde", "#e6a15a", "#29a36f", "#c35500", "#cc78a5", "#57b6ea", "#121300", "#beac05", "#76499e", "#6e5f62"];
const TEN_DARK = ["#2f9df6", "#e49c00", "#17b682", "#db5e15", "#db90b6", "#73c8f5", "#ffffff", "#f1dc3a", "#a378c3", "#7b8180"];

// Beyond ten: hues a golden angle apart at three lightnesses; the legend and the pointer tell the rest.
function categoryColour(place, count, dark) {
  if (count <= TEN.length) return (dark ? TEN_DARK : TEN)[place];
  const value = (dark ? [1, 0.78, 0.58] : [0.85, 0.62, 0.42])[place % 3];
  return hex(fromHsv((place * 0.381966) % 1, dark ? 0.65 : 0.8, value));
}

function fromHsv(hue, saturation, value) {
  return [5, 3, 1].map((shift) => {
    const k = (shift + hue * 6) % 6;
    return 255 * value * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1)));
  });
}

const PLASMA = ["#0d0887", "#41049d", "#6a00a8", "#8f0da4", "#b12a90", "#cc4778", "#e16462", "#f2844b", "#fca636", "#fcce25", "#f0f921"];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

// From orange (layer 0) to dark blue (the last); on a dark ground from purple to yellow. Ordered in lightness.
function layerColour(layer, top, dark) {
  const part = top ? layer / top : 1;
  return ramp(PLASMA, dark ? 0.35 + 0.6 * part : 0.8 * (1 - part));
}

function ramp(stops, part) {
  const at = Math.max(0, Math.min(1, part)) * (stops.length - 1);
  const below = Math.min(Math.floor(at), stops.length - 2);
  return mixed(stops[below], stops[below + 1], at - below);
}

const channels = (colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
const hex = (rgb) => "#" + rgb.map((one) => Math.round(one).toString(16).padStart(2, "0")).join("");

function mixed(colour, other, part) {
  const [a, b] = [channels(colour), channels(other)];
  return hex(a.map((one, k) => one + (b[k] - one) * part));
}

// An SVG element; what comes from a run is only ever its text.
function draw(parent, name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// An HTML element, likewise.
function make(parent, name, text, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// A picture that can be saved: its ground is painted, its fonts are named.
function picture(width, height, label) {
  const ink = theme();
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const attributes = { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": label, "font-family": "system-ui, DejaVu Sans, sans-serif", "font-size": 12 };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  draw(svg, "rect", { width, height, fill: ink.ground });
  return svg;
}

const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) < 1.995 ? 3 : 2));
