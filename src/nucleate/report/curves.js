// The curves: scores by layer over epochs (or over layers, where there is one moment), controls in grey, a heat map of the
// same scores, and what is learnt meanwhile. Drawn as SVG from the rows that scenes.py packed.

const CONTROLS = {
  shuffled: "shuffled labels",
  regrouped: "regrouped distributions",
  surface_instruction: "surface of the instruction",
  surface_prompt: "surface of the prompt",
  answers: "right answers alone",
  untrained: "untrained network",
  neutral: "neutral instruction",
};
const WORDS = {
  f1: "F1, best cluster per class", f1_purity: "F1, purity", f1_matched: "F1, one cluster per class", f1_pairwise: "F1, pairs",
  f1_bcubed: "F1, B-cubed", ari: "ARI", ami: "AMI", ari_within_tasks: "ARI of distributions within tasks",
  knn_share: "same-task neighbours", knn_share_other_inputs: "same-task neighbours, other inputs",
  knn_share_other_distributions: "same-task neighbours, other distributions",
  knn_share_other_both: "same-task neighbours, other inputs and distributions", knn_accuracy: "accuracy by neighbours",
  knn_share_other_format: "same-task neighbours, other format", effective_rank: "effective rank", intrinsic_dimension: "intrinsic dimension",
  parent_cosine: "children along their parent's direction (0: at right angles)",
  planted_found: "labels changed on purpose that look mislabelled", linear_accuracy: "linear probe", variance_input: "variance by input", variance_task: "variance by task",
  variance_output: "variance by output", hard_separated: "hard examples parted", hard_share_origin: "hard: neighbours of the original's task",
  hard_share_own: "hard: neighbours of their own task", accuracy_restricted: "accuracy among the task's outputs",
  distribution_mapping: "distribution-mapping", tsne: "t-SNE", raw: "raw states", centred: "minus the input's mean",
  averaged: "averaged per instruction", subset: "training subset", 
  train: "training", all: "all prompts", input: "last input token", instruction_end: "end of the instruction",
  answer_start: "start of the answer", task_token: "task token",
};
const inWords = (name) => WORDS[name] ?? String(name ?? "–").replaceAll("_", " ");
// A long name without its middle: names of models and tasks often differ at their ends alone.
const short = (name, most) => (name.length <= most ? name : `${name.slice(0, Math.floor((most - 1) / 2))}…${name.slice(-Math.ceil((most - 1) / 2))}`);
const SWITCHES = ["measure", "labels", "space", "split", "arm", "read"];
const FIRST_OF_PROBES = { measure: ["knn_share_other_inputs", "knn_share", "f1"], split: ["test", "all"] }; // by which they are judged
const FIRST = { measure: ["knn_share", "f1"], labels: ["task"], space: ["raw"], split: ["validation", "test", "all", "subset"], read: ["input", "answer_start"] };

// The packed rows as objects: {measure, split, ..., layer (number, "low", "high" or null), points: [[epoch, value], ...]}.
function openBook({ key, words, epochs, curves }) {
  return curves.map((row) => {
    const curve = Object.fromEntries(key.map((name, k) => [name, words[row[k]]]));
    if (curve.layer !== null && !isNaN(curve.layer)) curve.layer = Number(curve.layer);
    curve.points = epochs[row[key.length]].map((epoch, k) => [epoch, row[key.length + 1][k] / 10_000]);
    return curve;
  });
}

const layered = (curve) => curve.control === "none" && typeof curve.layer === "number";

// What each switch can be turned to, given those before it; a choice that is not there falls to the first that is.
function choices(book, chosen, first) {
  const offered = {};
  let left = book.filter(layered);
  for (const name of SWITCHES) {
    const values = [...new Set(left.map((curve) => curve[name]))];
    if (!values.includes(chosen[name])) chosen[name] = first[name]?.find((value) => values.includes(value)) ?? values[0];
    offered[name] = values;
    left = left.filter((curve) => curve[name] === chosen[name]);
  }
  return offered;
}

function scores(book, chosen) {
  const same = (curve, names) => names.every((name) => curve[name] === chosen[name]);
  const found = book.filter((curve) => same(curve, ["measure", "split", "labels"]) && (curve.space === chosen.space || curve.space === null));
  const lines = found.filter((curve) => layered(curve) && same(curve, SWITCHES)).sort((a, b) => a.layer - b.layer);
  const beside = found.filter((curve) => curve.control !== "none" && (curve.arm === chosen.arm || curve.arm === null) && (curve.read === chosen.read || curve.read === null));
  const overEpochs = lines.some((curve) => curve.points.length > 1);
  return { overEpochs, lines, beside };
}

// lines: {name, colour, points, bold, dash, tag (written at its end), note (told below)}; bands: {name, points: [[x, low, high]]}; levels: {name, value, dash}.
function chart({ width, height: plot, label, axis, lines, bands = [], levels = [], now, floor = 0, ceiling = 1 }) {
  const ink = theme();
  const notes = [...lines.filter((line) => line.note), ...bands, ...levels];
  const across = Math.max(1, Math.floor((width - 34) / 190));
  const room = { left: 34, right: 30, top: 8, bottom: 30 + 17 * Math.ceil(notes.length / across) };
  const height = plot + 17 * Math.ceil(notes.length / across);
  const svg = picture(width, height, label);
  const xs = lines.flatMap((line) => line.points.map(([x]) => x));
  const ys = [...lines.flatMap((line) => line.points.map(([, y]) => y)), ...levels.map((level) => level.value), ...bands.flatMap((band) => band.points.flatMap(([, a, b]) => [a, b]))];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [y0, y1] = [Math.min(floor, ...ys), Math.max(ceiling ?? -Infinity, ...ys)];
  const toX = (x) => room.left + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * (width - room.left - room.right);
  const toY = (y) => height - room.bottom - ((y - y0) / (y1 - y0 || 1)) * (height - room.top - room.bottom);
  const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");
  for (const y of ticks(y0, y1, height > 170 ? 5 : 3)) {
    draw(svg, "line", { x1: room.left, x2: width - room.right, y1: toY(y), y2: toY(y), stroke: ink.line });
    draw(svg, "text", { x: room.left - 6, y: toY(y) + 4, "text-anchor": "end", fill: ink.quiet, "font-size": 11 }, String(y));
  }
  for (const x of ticks(x0, x1, Math.max(2, width / 90)).filter(Number.isInteger)) {
    draw(svg, "text", { x: toX(x), y: height - room.bottom + 15, "text-anchor": "middle", fill: ink.quiet, "font-size": 11 }, String(x));
  }
  draw(svg, "text", { x: width - room.right, y: height - room.bottom + 28, "text-anchor": "end", fill: ink.quiet, "font-size": 11 }, axis);
  const grey = ink.dark ? "#8b929c" : "#8a8f98";
  const looks = { shuffled: { fill: grey, "fill-opacity": 0.35 }, regrouped: { fill: grey, "fill-opacity": 0.08, stroke: grey, "stroke-opacity": 0.7, "stroke-dasharray": "2 2" } };
  for (const band of bands) {
    const there = band.points.map(([x, low]) => [x, low]);
    const back = band.points.map(([x, , high]) => [x, high]).reverse();
    draw(svg, "path", { d: `${path(there)}${path(back).replace("M", "L")}Z`, ...looks[band.control] });
  }
  levels.forEach((level, n) => {
    draw(svg, "line", { x1: room.left, x2: width - room.right, y1: toY(level.value), y2: toY(level.value), stroke: grey, "stroke-width": 1.3, "stroke-dasharray": n % 2 ? "2 3" : "7 4" });
  });
  for (const line of [...lines].sort((a, b) => (a.bold ?? 0) - (b.bold ?? 0))) {
    const look = { d: path(line.points), fill: "none", stroke: line.colour, "stroke-width": line.bold ? 3 : 1.4, "stroke-linejoin": "round" };
    draw(svg, "path", { ...look, ...(line.dash ? { "stroke-dasharray": line.dash } : {}) });
    for (const [x, y] of line.points.length < 40 ? line.points : []) draw(svg, "circle", { cx: toX(x).toFixed(1), cy: toY(y).toFixed(1), r: line.bold ? 2.6 : 1.6, fill: line.colour });
  }
  endNames(svg, lines.filter((line) => line.tag), toY, width - room.right + 5, height - room.bottom);
  if (now !== undefined && now !== null) {
    draw(svg, "line", { class: "now", x1: toX(now), x2: toX(now), y1: room.top, y2: height - room.bottom, stroke: ink.mark, "stroke-width": 1.5 });
  }
  notes.forEach((note, n) => {
    const [x, y] = [room.left + (n % across) * 190, height - room.bottom + 44 + 17 * Math.floor(n / across)];
    if (note.colour) draw(svg, "line", { x1: x, x2: x + 16, y1: y - 4, y2: y - 4, stroke: note.colour, "stroke-width": note.bold ? 3 : 1.4, "stroke-dasharray": note.dash ?? "none" });
    else if (note.points) draw(svg, "rect", { x, y: y - 9, width: 16, height: 9, ...looks[note.control] });
    else draw(svg, "line", { x1: x, x2: x + 16, y1: y - 4, y2: y - 4, stroke: grey, "stroke-width": 1.3, "stroke-dasharray": levels.indexOf(note) % 2 ? "2 3" : "7 4" });
    draw(svg, "text", { x: x + 21, y, fill: ink.quiet, "font-size": 11 }, short(note.name, 27));
  });
  const near = (x, y) => {
    let [found, best] = [null, 400];
    for (const line of lines) for (const point of line.points) {
      const distance = (toX(point[0]) - x) ** 2 + (toY(point[1]) - y) ** 2;
      if (distance < best) [found, best] = [{ line, point, x: toX(point[0]), y: toY(point[1]) }, distance];
    }
    return found;
  };
  const span = width - room.left - room.right;
  return { svg, near, xAt: (x) => x0 + ((x - room.left) / span) * (x1 - x0), place: toX };
}

// The name of a line stands where it ends; those that end together are moved apart, and where there is no room for all,
// the bold one and those that do not touch another are named.
function endNames(svg, lines, toY, x, bottom) {
  let ends = lines.map((line) => ({ line, y: toY(line.points.at(-1)[1]) })).sort((a, b) => a.y - b.y);
  if (11 * ends.length > bottom) {
    const named = [];
    for (const one of [...ends].sort((a, b) => (b.line.bold ?? 0) - (a.line.bold ?? 0))) if (named.every((other) => Math.abs(other.y - one.y) >= 11)) named.push(one);
    ends = named.sort((a, b) => a.y - b.y);
  }
  for (let k = 1; k < ends.length; k++) ends[k].y = Math.max(ends[k].y, ends[k - 1].y + 11);
  for (let k = ends.length - 1, most = bottom; k >= 0; k--, most -= 11) ends[k].y = Math.min(ends[k].y, most);
  for (const { line, y } of ends) draw(svg, "text", { x, y: y + 4, fill: line.colour, "font-size": 11, "font-weight": line.bold ? 700 : 400 }, line.tag);
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, k) => Number(((first + k) * step).toPrecision(6)));
}

// Layers upwards, epochs to the right on the scale of the chart above it; a cell reaches half-way to its neighbours.
function heatMap({ width, label, lines, place, unit }) {
  const ink = theme();
  const [left, right, below] = [34, 30, 34];
  const row = Math.max(5, Math.min(17, 190 / lines.length));
  const height = row * lines.length + below + 4;
  const svg = picture(width, height, label);
  const values = lines.flatMap((line) => line.points.map(([, y]) => y));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const cells = [];
  lines.forEach((line, n) => {
    const y = 2 + row * (lines.length - 1 - n);
    line.points.forEach(([x, value], k) => {
      const half = (other) => (other ? (place(other[0]) + place(x)) / 2 : Math.max(left, Math.min(width - right, place(x))));
      const [x0, x1] = [half(line.points[k - 1]), half(line.points[k + 1])];
      const colour = ramp(VIRIDIS, (value - low) / (high - low || 1));
      draw(svg, "rect", { x: x0.toFixed(2), y, width: Math.max(0.5, x1 - x0 + 0.3).toFixed(2), height: row, fill: colour, "shape-rendering": "crispEdges" });
      cells.push({ layer: line.layer, epoch: x, value, x0, x1, y0: y, y1: y + row });
    });
    if (row > 9 || n % 5 === 0) draw(svg, "text", { x: left - 6, y: y + row / 2 + 4, "text-anchor": "end", fill: ink.quiet, "font-size": 11 }, line.layer);
  });
  const bar = { x: left, y: row * lines.length + 14, width: width < 400 ? 70 : 120 };
  for (let k = 0; k < 24; k++) draw(svg, "rect", { x: bar.x + (k * bar.width) / 24, y: bar.y, width: bar.width / 24 + 0.4, height: 8, fill: ramp(VIRIDIS, k / 23), "shape-rendering": "crispEdges" });
  draw(svg, "text", { x: bar.x + bar.width + 8, y: bar.y + 8, fill: ink.quiet, "font-size": 11 }, `${number(low)} to ${number(high)}`);
  draw(svg, "text", { x: width - right, y: bar.y + 8, "text-anchor": "end", fill: ink.quiet, "font-size": 11 }, `layer × ${unit}`);
  return { svg, cells, ink };
}

function markCell(svg, cells, epoch, layer, ink) {
  svg.querySelector(".now")?.remove();
  const own = cells.filter((cell) => cell.layer === layer);
  const cell = own.reduce((best, one) => (best && Math.abs(best.epoch - epoch) <= Math.abs(one.epoch - epoch) ? best : one), null);
  if (!cell) return;
  const width = Math.max(4, cell.x1 - cell.x0);
  draw(svg, "rect", { class: "now", x: (cell.x0 + cell.x1 - width) / 2, y: cell.y0, width, height: cell.y1 - cell.y0, fill: "none", stroke: ink.dark ? "#ffffff" : "#000000", "stroke-width": 2 });
}

// What is learnt meanwhile: measures without layers, a line per arm or, where there is one arm, per split.
const SPLITS = ["validation", "subset", "test", "train", "all"];
const PROGRESS = ["accuracy", "loss", "task_id_accuracy", "pretraining_loss", "source_accuracy", "accuracy_drop"];

function progress(book, dark) {
  const whole = book.filter((curve) => curve.control === "none" && curve.layer === null && curve.points.length > 1);
  const everyone = [...new Set(whole.map((curve) => curve.arm))]; // an arm has one colour in all the charts
  return PROGRESS.flatMap((measure) => {
    let curves = whole.filter((curve) => curve.measure === measure);
    const arms = new Set(curves.map((curve) => curve.arm));
    if (arms.size > 1) {
      const split = ["validation", "test", "train"].find((one) => curves.some((curve) => curve.split === one));
      curves = curves.filter((curve) => curve.split === (split ?? curves[0].split));
    } else if (measure === "loss") curves = curves.filter((curve) => curve.split === "train");
    if (!curves.length) return [];
    const name = (curve) => (arms.size > 1 ? curve.arm : curve.split);
    curves.sort((a, b) => SPLITS.indexOf(a.split) - SPLITS.indexOf(b.split));
    const place = (curve, k) => (arms.size > 1 ? everyone.indexOf(curve.arm) : k);
    const lines = curves.map((curve, k) => ({ name: inWords(name(curve)), colour: categoryColour(place(curve, k), Math.max(10, everyone.length), dark), points: curve.points.filter(([x]) => x !== null) }));
    const words = measure === "loss" && curves[0].split === "train" ? "training loss" : arms.size > 1 && curves[0].split ? `${inWords(measure)}, ${inWords(curves[0].split)}` : inWords(measure);
    return [{ measure, words, lines, ceiling: measure.includes("loss") ? null : 1 }];
  });
}

// Tasks down, the tasks of their neighbours across; the darker (on a dark ground the lighter), the larger the share.
function matrix({ width, tasks, shares, label }) {
  const ink = theme();
  const count = tasks.length;
  const longest = Math.max(...tasks.map((task) => short(task, 22).length));
  const left = count > 45 ? 8 : Math.min(width / 2, 14 + 6.6 * longest);
  const cell = Math.min(24, (width - left - 4) / count);
  const svg = picture(width, Math.ceil(cell * count + 8), label);
  const deep = ink.dark ? "#8ab8f5" : "#17509e";
  const rows = [["task", "other", "share"]];
  tasks.forEach((task, a) => {
    const y = 4 + a * cell;
    if (left > 8 && cell > 8) draw(svg, "text", { x: left - 5, y: y + cell / 2 + 4, "text-anchor": "end", fill: ink.quiet, "font-size": Math.min(11, cell) }, short(task, 22));
    tasks.forEach((other, b) => {
      const share = shares[a * count + b] / 1000;
      rows.push([task, other, share]);
      const fill = mixed(ink.soft, a === b ? ink.quiet : deep, Math.min(1, share ** 0.6));
      draw(svg, "rect", { x: (left + b * cell).toFixed(1), y: y.toFixed(1), width: Math.max(1, cell - 1).toFixed(1), height: Math.max(1, cell - 1).toFixed(1), fill });
    });
  });
  const at = (x, y) => {
    const [a, b] = [Math.floor((y - 4) / cell), Math.floor((x - left) / cell)];
    return a >= 0 && b >= 0 && a < count && b < count ? { task: tasks[a], other: tasks[b], share: shares[a * count + b] / 1000 } : null;
  };
  return { svg, at, rows };
}
