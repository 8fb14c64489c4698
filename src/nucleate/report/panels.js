// What stands beside the stage: curves, heat map, confusion, what is learnt meanwhile; and how each view is saved.

// --- curves ----------------------------------------------------------------------------------------------------------

async function turnPage() {
  const book = async (one) => (one?.curves ? openBook(await readJson(one.curves)) : []);
  const [own, second] = [scene(), other()];
  const read = [await book(own), own.confusion ? await readJson(own.confusion) : null, second === own ? [] : await book(second)];
  if (own !== scene() || second !== other()) return; // somebody was quicker
  [now.book, now.confused, now.other] = read;
  drawCurves();
}

function drawCurves() {
  const offered = choices(now.book, now.chosen, { ...FIRST, ...(scene().shown ? FIRST_OF_PROBES : {}) });
  for (const name of SWITCHES) fill(name, (offered[name] ?? []).map((value) => [value ?? "", inWords(value)]), now.chosen[name] ?? "");
  const some = now.book.some(layered);
  for (const id of ["switches", "chart-head", "chart", "heat-part"]) $(id).hidden = !some;
  if (some) drawScores();
  else [drawn.chart, drawn.heat] = [null, null];
  const parts = progress(now.book, theme().dark);
  $("progress-part").hidden = !parts.length;
  $("curves").hidden = !some && !parts.length;
  drawProgress(parts);
  drawConfusion();
}

// The matrix of the moment and the measured layer nearest to the stage's; a pair pressed stands alone on the stage.
function drawConfusion() {
  $("confusion-part").hidden = !now.confused;
  if (!now.confused) return;
  $("curves").hidden = false;
  const { tasks, count, at } = now.confused;
  const moment = scene().views ? Math.round(now.time) : 0;
  const layers = Object.keys(at).map((key) => key.split(" ").map(Number)).filter(([own]) => own === moment).map(([, layer]) => layer);
  const here = layersOf(scene())[now.layer] ?? layers.at(-1);
  const layer = layers.reduce((best, one) => (Math.abs(one - here) < Math.abs(best - here) ? one : best), layers[0]);
  $("confusion-title").textContent = `Whose neighbours: layer ${layer}${tasks.length < count ? `, the ${tasks.length} most confused of ${count} tasks` : ""}`;
  drawn.confusion = matrix({ width: chartWidth("confusion"), tasks, shares: at[`${moment} ${layer}`], label: `Shares of neighbours by task, layer ${layer}` });
  $("confusion").replaceChildren(drawn.confusion.svg);
  const pair = (event) => {
    const box = drawn.confusion.svg.getBoundingClientRect();
    return drawn.confusion.at(event.clientX - box.left, event.clientY - box.top);
  };
  drawn.confusion.svg.addEventListener("pointermove", (event) => {
    const found = pair(event);
    tip(event, found && ((box) => make(box, "p", `${number(found.share)} of the neighbours of “${found.task}” have “${found.other}”`)));
  });
  drawn.confusion.svg.addEventListener("pointerleave", (event) => tip(event, null));
  drawn.confusion.svg.addEventListener("click", (event) => {
    const found = pair(event);
    if (!found || !scene().views) return;
    now.colour = $("colour").value = "task";
    writeLegend();
    only(...[found.task, found.other].filter((name) => casts[0].place.has(name)));
  });
}

const chartWidth = (id) => Math.max(280, $(id).clientWidth || 460);

function drawScores() {
  const { dark } = theme();
  const { overEpochs, lines, beside } = scores(now.book, now.chosen);
  const title = inWords(now.chosen.measure);
  $("curves-title").textContent = title[0].toUpperCase() + title.slice(1);
  const here = layersOf(scene())[now.layer];
  const top = Math.max(...lines.map((line) => line.layer));
  const spec = { width: chartWidth("chart"), height: 216, label: `${title}; ${lines.length} layers` };
  if (overEpochs) {
    spec.lines = lines.map((line) => ({ ...line, name: `layer ${line.layer}`, tag: `${line.layer}`, colour: layerColour(line.layer, top, dark), bold: line.layer === here }));
    const second = scores(now.other, now.chosen).lines.find((line) => line.layer === here);
    if (second) spec.lines.push({ ...second, name: `${scenes[now.beside].name}, layer ${here}`, colour: theme().text, dash: "6 4" });
    spec.bands = BANDED.flatMap((control) => {
      const [low, high] = ["low", "high"].map((edge) => beside.find((curve) => curve.control === control && curve.layer === edge));
      return low && high ? [{ control, name: CONTROLS[control], points: low.points.map(([x, y], k) => [x, y, high.points[k][1]]) }] : [];
    });
    spec.now = scene().views ? momentName(scene(), now.time) : null;
  } else {
    const along = (curves) => curves.map((curve) => [curve.layer, curve.points[0][1]]).sort((a, b) => a[0] - b[0]);
    spec.lines = [{ name: scene().name, colour: categoryColour(0, 2, dark), points: along(lines), bold: true, note: true }];
    const second = along(scores(now.other, now.chosen).lines);
    if (second.length) spec.lines.push({ name: scenes[now.beside].name, colour: categoryColour(3, 10, dark), points: second, bold: true, note: true });
    for (const [control, dash] of Object.entries({ shuffled: "1 3", regrouped: "3 3", untrained: "6 3", neutral: "9 3 2 3" })) {
      const points = along(beside.filter((curve) => curve.control === control && typeof curve.layer === "number"));
      if (points.length) spec.lines.push({ name: CONTROLS[control], colour: theme().quiet, points, dash, note: true });
    }
    spec.now = here;
  }
  const { unit } = scene();
  spec.axis = overEpochs ? unit : "layer";
  spec.levels = beside.filter((curve) => curve.control.startsWith("surface") || curve.control === "answers").map((curve) => ({ name: CONTROLS[curve.control], value: curve.points[0][1] }));
  drawn.chart = { ...chart(spec), spec, overEpochs };
  $("chart").replaceChildren(drawn.chart.svg);
  steer(drawn.chart);
  $("heat-part").hidden = !overEpochs;
  drawn.heat = null;
  if (!overEpochs) return;
  $("heat-title").textContent = `Layer by ${unit}`;
  drawn.heat = { ...heatMap({ width: spec.width, label: `${title}: layer by ${unit}`, lines, place: drawn.chart.place, unit }), lines };
  $("heat").replaceChildren(drawn.heat.svg);
  if (scene().views) markCell(drawn.heat.svg, drawn.heat.cells, momentName(scene(), now.time), here, drawn.heat.ink);
  const cellAt = (event) => {
    const box = drawn.heat.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return drawn.heat.cells.find((cell) => x >= cell.x0 && x < cell.x1 && y >= cell.y0 && y < cell.y1);
  };
  drawn.heat.svg.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    tip(event, cell && ((box) => make(box, "p", `layer ${cell.layer}, ${unit} ${cell.epoch}: ${number(cell.value)}`)));
  });
  drawn.heat.svg.addEventListener("pointerleave", (event) => tip(event, null));
  drawn.heat.svg.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) goTo(cell.epoch, cell.layer);
  });
}

const BANDED = ["shuffled", "regrouped"];

function drawProgress(parts) {
  const room = chartWidth("progress");
  const width = parts.length > 1 && room >= 392 ? (room - 12) / 2 : room; // two side by side where both can be read
  const marked = scene().views ? momentName(scene(), now.time) : null;
  $("progress").replaceChildren(); // its width was asked for before: an empty box may be narrower
  drawn.progress = parts.map((part) => {
    const figure = make($("progress"), "figure");
    figure.style.width = `${width}px`;
    make(figure, "figcaption", part.words);
    const one = chart({ width, height: 140, label: part.words, axis: scene().unit, now: marked, ...part });
    figure.append(one.svg);
    if (part.lines.length > 1) {
      const key = make(figure, "p", undefined, { class: "key" });
      for (const { name, colour } of part.lines) {
        make(make(key, "span", undefined), "i").style.background = colour;
        key.lastChild.append(name);
      }
    }
    const done = { ...one, ...part, overEpochs: true };
    steer(done);
    return done;
  });
}

// A chart answers the pointer: the nearest value, and a click that moves the stage there.
function steer(one) {
  const at = (event) => {
    const box = one.svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  one.svg.addEventListener("pointermove", (event) => {
    const near = one.near(...at(event));
    const words = one.overEpochs ? scene().unit : "layer";
    tip(event, near && ((box) => make(box, "p", `${near.line.name}, ${words} ${near.point[0]}: ${number(near.point[1])}`)));
  });
  one.svg.addEventListener("pointerleave", (event) => tip(event, null));
  one.svg.addEventListener("click", (event) => {
    const near = one.near(...at(event));
    const x = near ? near.point[0] : one.xAt(at(event)[0]);
    if (one.overEpochs) goTo(x, near?.line.layer);
    else goTo(null, Math.round(x));
  });
}

// --- saving ----------------------------------------------------------------------------------------------------------

const fileName = (what) => `${scene().name}-${what}`.replace(/[^\p{L}\p{N}.-]+/gu, "-").slice(0, 80);
const curveRows = (lines) => [["line", "x", "value"], ...lines.flatMap((line) => line.points.map(([x, y]) => [line.name, x, y]))];

const VIEWS = {
  stage: () => {
    const { one, points, looks, shapes, legend, text, given, count } = casts[0];
    const title = `${one.name}, ${$("said").textContent}`;
    stages[0].move(now.time);
    stages[0].project(now);
    const [x, y, z, half] = one.views[now.view].cubes[now.layer];
    const unit = (half * stages[0].fill) / (MIDDLE - 1);
    const rows = [["instance", "x", "y", "z", "split", "task", "distribution", "mapping", "instruction", "input", "expected", "given"]];
    for (let k = 0; k < count; k++) {
      if (looks[k] === 255) continue;
      const place = [x, y, z].map((middle, axis) => Number((middle + unit * stages[0].places[axis * count + k]).toPrecision(5)));
      rows.push([points.instance[k], ...place, ...["split", "task", "distribution", "mapping", "instruction", "input", "output"].map((name) => text(name, k)), given(k, now.time)]);
    }
    return { name: fileName(`stage-layer-${layersOf(one)[now.layer]}-${one.unit}-${momentName(one, now.time)}`), svg: stages[0].svg(now, looks, shapes, colours(theme()), theme(), legend, title), rows };
  },
  curves: () => {
    const { lines, bands = [], levels = [] } = drawn.chart.spec;
    const edges = bands.flatMap((band) => [1, 2].map((n) => ({ name: `${band.name}, ${n === 1 ? "lowest" : "highest"} layer`, points: band.points.map((one) => [one[0], one[n]]) })));
    const flat = levels.map((level) => ({ name: level.name, points: [[null, level.value]] }));
    return { name: fileName(now.chosen.measure), svg: drawn.chart.svg, rows: curveRows([...lines, ...edges, ...flat]) };
  },
  confusion: () => ({ name: fileName("confusion"), svg: drawn.confusion.svg, rows: drawn.confusion.rows }),
  heat: () => ({ name: fileName(`${now.chosen.measure}-layer-by-${scene().unit}`), svg: drawn.heat.svg, rows: [["layer", scene().unit, "value"], ...drawn.heat.cells.map(({ layer, epoch, value }) => [layer, epoch, value])] }),
  progress: () => ({ name: fileName("learning"), svg: joined(drawn.progress), rows: curveRows(drawn.progress.flatMap((one) => one.lines.map((line) => ({ ...line, name: `${one.words}: ${line.name}` })))) }),
};

// Several small charts as one picture, each under its title.
function joined(parts) {
  const width = parts.reduce((sum, one) => sum + Number(one.svg.getAttribute("width")), 0);
  const whole = picture(width, 200, parts.map((one) => one.words).join(", "));
  let left = 0;
  for (const { svg, words, lines } of parts) {
    const group = draw(whole, "g", { transform: `translate(${left} 24)` });
    draw(whole, "text", { x: left + 34, y: 17, fill: theme().text }, words);
    for (const child of svg.children) group.append(child.cloneNode(true));
    lines.forEach(({ name, colour }, k) => lines.length > 1 && draw(whole, "text", { x: left + 34 + 110 * (k % 3), y: 182 + 14 * Math.floor(k / 3), fill: colour, "font-size": 11 }, name));
    left += Number(svg.getAttribute("width"));
  }
  return whole;
}
