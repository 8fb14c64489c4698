// The page: one state, what changes it, what is drawn from it. Everything moves through `now`.

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const now = {
  scene: 0, beside: null, view: 0, layer: 0, time: 0, shown: "", colour: "task", only: new Set(), query: "",
  pinned: null, hovered: null, playing: false, yaw: 0.6, pitch: 0.35, zoom: 1, chosen: {},
};
const STARTING = { yaw: now.yaw, pitch: now.pitch, zoom: now.zoom };
const COLOURS = ["task", "distribution", "mapping", "input", "right or wrong"];
const NEIGHBOURS = 8;

let scenes = [];
const stages = [new Stage($("canvas-0")), new Stage($("canvas-1"))];
const casts = [null, null]; // what each stage shows: its points, their looks, its legend
const drawn = {}; // the pictures beside the stage
let painting = 0;

async function open() {
  scenes = (await readJson("chunk-head")).scenes;
  await begin();
  document.documentElement.dataset.ready = "yes";
}

async function begin() {
  if (!scenes.some((scene) => scene.views || scene.curves)) return;
  $("show").hidden = false;
  $("theme").hidden = false;
  now.scene = Math.max(0, scenes.findIndex((scene) => scene.views));
  fill("scene", scenes.map((scene, k) => [k, scene.name]));
  if (scenes.every((one) => one.shown)) $("scene-label").firstChild.data = "Model ";
  fill("beside", [["", "nothing"], ...scenes.map((scene, k) => [k, scene.name]).filter(([k]) => scenes[k].views)]);
  listen();
  await enter();
}

const scene = () => scenes[now.scene];
const other = () => scenes[now.beside] ?? null; // the one beside it
const layersOf = (one) => one.views?.[Math.min(now.view, one.views.length - 1)].at ?? [];
const asNumber = (place, other) => Math.min(place, other - 1);

// A select's options; hidden where there is nothing to choose.
function fill(id, options, chosen) {
  const select = $(id);
  select.replaceChildren();
  for (const [value, words] of options) make(select, "option", words.length > 40 ? `${words.slice(0, 39)}…` : words, { value });
  if (chosen !== undefined) select.value = chosen;
  const label = $(`${id}-label`);
  if (label) label.hidden = options.length < 2;
}

// --- a scene ---------------------------------------------------------------------------------------------------------

async function enter() {
  const own = scene();
  const { views, moments } = own;
  $("stages").hidden = !views;
  $("show").classList.toggle("alone", !views);
  $("beside-label").hidden = scenes.filter((one) => one.views).length < 2 || !views;
  if (!views) [now.beside, $("beside").value] = [null, ""];
  if (views) {
    fill("view", views.map((view, k) => [k, view.name]), (now.view = asNumber(now.view, views.length)));
    const layers = layersOf(scene());
    if (!now.entered) {
      const told = layers.indexOf(own.opens); // the layer that a verdict names
      [now.entered, now.layer, now.time] = [true, told < 0 ? layers.length - 1 : told, moments.length - 1];
    }
    now.layer = asNumber(now.layer, layers.length);
    now.time = asNumber(now.time, moments.length);
    $("time").max = moments.length - 1;
    $("time-row").hidden = moments.length < 2;
    await seat(0, now.scene);
    if (own !== scene()) return; // somebody was quicker
    const splits = casts[0].splits;
    const first = scene().shown ?? ["validation", "test", "all", "subset"].find((one) => splits.includes(one)) ?? splits[0];
    if (now.shown !== "*" && !splits.includes(now.shown)) now.shown = splits.length > 1 ? first : (splits[0] ?? "*");
    fill("shown", [...splits.map((one) => [one, inWords(one)]), ...(splits.length > 1 ? [["*", "all of these"]] : [])], now.shown);
    fill("colour", COLOURS.filter((one) => casts[0].kinds[one]).map((one) => [one, one]), (now.colour = casts[0].kinds[now.colour] ? now.colour : "task"));
    await sit();
  }
  await turnPage();
}

// The points of a scene, ready to be coloured.
async function seat(which, number) {
  const one = scenes[number];
  const points = await readJson(one.points);
  const answers = one.answers && (await readNumbers(one.answers.of, one.moments.length));
  const text = (column, k) => (points[column] ? points[column].texts[points[column].of[k]] : null);
  const kinds = Object.fromEntries(["task", "distribution", "mapping", "input"].filter((name) => points[name]).map((name) => [name, true]));
  if (answers && points.output) kinds["right or wrong"] = true;
  const count = points.instance.length;
  const shapes = new Uint8Array(count);
  for (const k of points.hard ?? []) shapes[k] = WEDGE;
  const hay = Array.from({ length: count }, (_, k) => ["instruction", "input", "output", "task", "distribution", "mapping"].map((name) => text(name, k) ?? "").join("\n").toLowerCase());
  const given = (k, time) => (answers ? one.answers.texts[answers[Math.round(time) * count + k]] : null);
  const absent = one.views.map(({ rows }) => rows && absentees(rows, count));
  if (number !== (which ? now.beside : now.scene)) return;
  casts[which] = { one, number, absent, points, text, given, kinds, count, shapes, hay, splits: points.split ? points.split.texts : [], looks: new Uint8Array(count) };
}

function absentees(rows, count) {
  const absent = new Uint8Array(count).fill(1);
  for (const row of rows) absent[row] = 0;
  return absent;
}

// Both stages take their places: the same layer and moment, or those nearest to them.
async function sit() {
  const glide = !still.matches;
  const own = scene();
  const layers = layersOf(own);
  now.layer = asNumber(now.layer, layers.length);
  $("layer").max = layers.length - 1;
  $("layer-row").hidden = layers.length < 2;
  await stages[0].show(own, now.view, now.layer, casts[0].count, glide);
  const second = other();
  $("canvas-1").parentElement.hidden = second === null;
  if (second) {
    if (casts[1]?.number !== now.beside) await seat(1, now.beside);
    if (second !== other()) return;
    const view = Math.min(now.view, second.views.length - 1);
    const part = layers.length > 1 ? now.layer / (layers.length - 1) : 1;
    await stages[1].show(second, view, Math.round(part * (layersOf(second).length - 1)), casts[1].count, glide);
  }
  if (own !== scene()) return;
  $("name-0").textContent = second ? scene().name : "";
  $("name-1").textContent = second?.name ?? "";
  $("layer-label").textContent = layerName(layers, now.layer);
  $("layer").value = now.layer;
  $("note").textContent = scene().views[now.view].words;
  if (casts[0].legendFor !== legendKey()) writeLegend();
  momentChanged();
}

const layerName = (layers, place) => `Layer ${layers[place]}${layers[place] === 0 ? " (embedding)" : place === layers.length - 1 ? " (last)" : ""}`;
const momentName = (one, time) => {
  const [from, to] = [one.moments[Math.floor(time)], one.moments[Math.ceil(time)]];
  return Math.round(from + (to - from) * (time % 1));
};

// Time of the second stage: the same epoch where it has one.
function timeOf(which) {
  if (which === 0) return now.time;
  const [own, other] = [scene().moments, casts[1].one.moments];
  const epoch = own[Math.floor(now.time)] + (own[Math.ceil(now.time)] - own[Math.floor(now.time)]) * (now.time % 1);
  const above = other.findIndex((one) => one >= epoch);
  if (above <= 0) return above === 0 || other.length === 1 ? 0 : other.length - 1;
  return above - 1 + (epoch - other[above - 1]) / (other[above] - other[above - 1]);
}

// --- legend and looks ------------------------------------------------------------------------------------------------

const legendKey = () => [now.scene, now.view, now.shown, now.colour, theme().dark].join();
const splitHere = (cast, k) => now.shown === "*" || !cast.points.split || cast.splits[cast.points.split.of[k]] === now.shown || !cast.splits.includes(now.shown);
const shownHere = (cast, k) => splitHere(cast, k) && !cast.absent[Math.min(now.view, cast.absent.length - 1)]?.[k];

function category(cast, k, time) {
  if (now.colour !== "right or wrong") return cast.points[now.colour] ? cast.text(now.colour, k) : "–";
  const given = cast.given(k, time);
  return given === null || given === "" ? "no answer" : given === cast.text("output", k) ? "right" : "wrong";
}

function writeLegend() {
  const cast = casts[0];
  const ink = theme();
  cast.legendFor = legendKey();
  const counts = new Map(now.colour === "right or wrong" ? [["right", 0], ["wrong", 0], ["no answer", 0]] : []);
  for (let k = 0; k < cast.count; k++) if (shownHere(cast, k)) counts.set(category(cast, k, now.time), (counts.get(category(cast, k, now.time)) ?? 0) + 1);
  if (counts.get("no answer") === 0) counts.delete("no answer");
  const fixed = { right: (ink.dark ? TEN_DARK : TEN)[0], wrong: (ink.dark ? TEN_DARK : TEN)[3], "no answer": ink.quiet };
  const names = [...counts.keys()].slice(0, 250);
  cast.legend = names.map((name, k) => ({ name, colour: now.colour === "right or wrong" ? fixed[name] : categoryColour(k, counts.size, ink.dark) }));
  cast.place = new Map(cast.legend.map(({ name }, k) => [name, k]));
  now.only = new Set([...now.only].filter((name) => cast.place.has(name)));
  const box = $("legend");
  box.replaceChildren();
  const all = make(box, "button", `all ${names.length}`, { type: "button", "aria-pressed": now.only.size === 0 });
  all.addEventListener("click", () => only());
  for (const { name, colour } of cast.legend) {
    const button = make(box, "button", undefined, { type: "button", "aria-pressed": now.only.has(name), title: name });
    make(button, "i").style.background = colour;
    make(button, "span", name || "(empty)");
    make(button, "small", counts.get(name));
    button.addEventListener("click", () => {
      if (!now.only.delete(name)) now.only.add(name);
      only(...now.only);
    });
  }
  if (cast.points.hard?.some((k) => shownHere(cast, k))) make(box, "p", "▲ hard example", { class: "quiet" });
  box.onscroll = () => box.classList.toggle("more", box.scrollTop + box.clientHeight < box.scrollHeight - 2);
  requestAnimationFrame(box.onscroll);
  look();
}

// Only these categories are on the stage; none: all.
function only(...names) {
  now.only = new Set(names);
  [...$("legend").querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-pressed", k ? now.only.has(casts[0].legend[k - 1].name) : !names.length));
  look();
}

// A place in the colours for each point: its category, pale where the search does not find it, 255 where it is hidden.
function look() {
  const found = { shown: 0, all: 0, matches: [] };
  for (const [which, cast] of casts.entries()) {
    if (!cast || (which && now.beside === null)) continue;
    const place = casts[0].place;
    const pale = casts[0].legend.length;
    for (let k = 0; k < cast.count; k++) {
      const name = category(cast, k, timeOf(which));
      const hidden = !shownHere(cast, k) || (now.only.size && !now.only.has(name));
      const match = !now.query || cast.hay[k].includes(now.query);
      cast.looks[k] = hidden ? 255 : match ? (place.get(name) ?? pale) : pale;
      if (which === 0) {
        found.all += shownHere(cast, k);
        found.shown += !hidden;
        if (!hidden && match) found.matches.push(k);
      }
    }
  }
  now.found = found;
  say();
  if (now.pinned !== null) tell();
  repaint();
}

function say() {
  const { moments } = scene();
  const layers = layersOf(scene());
  const { shown, all, matches } = now.found;
  const where = [moments.length > 1 ? `${scene().unit} ${momentName(scene(), now.time)}` : null, layers.length ? `layer ${layers[now.layer]}` : null];
  let text = `${where.filter(Boolean).join(", ")}: ${shown === all ? `${all} instances` : `${shown} of ${all} instances`}, ${casts[0].legend.length} colours`;
  if (now.query) text += `; ${matches.length} found`;
  $("said").textContent = text[0].toUpperCase() + text.slice(1) + ".";
  $("canvas-0").setAttribute("aria-label", `Hidden states in three dimensions. ${text}`);
  $("canvas-1").setAttribute("aria-label", `The same of ${casts[1]?.one.name}`);
}

// --- painting --------------------------------------------------------------------------------------------------------

function repaint() {
  if (!painting) painting = requestAnimationFrame(paint);
}

let before = 0;
function paint(at) {
  painting = 0;
  if (!scene().views || !casts[0]?.legend) return; // not there yet
  const passed = Math.max(0, Math.min(0.1, (at - before) / 1000)); // a frame may have begun before the press
  before = at;
  if (now.playing) advance(passed);
  const ink = theme();
  let gliding = false;
  for (const [which, stage] of stages.entries()) {
    const cast = casts[which];
    if (!cast || stage.scene !== cast.one || (which && now.beside === null)) continue;
    gliding = stage.move(timeOf(which)) || gliding;
    stage.paint(now, cast.looks, cast.shapes, colours(ink), ink);
    if (which === 0) {
      const near = now.pinned === null ? [] : stage.nearestTo(now.pinned, cast.looks, NEIGHBOURS);
      stage.overlay(now.pinned, near, now.hovered, ink);
    }
  }
  if (gliding || now.playing) repaint();
  if (!performance.getEntriesByName("first picture").length) performance.mark("first picture");
}

const colours = (ink) => [...casts[0].legend.map(({ colour }) => colour), ink.line];

// A run plays in about twelve seconds; meanwhile the stage turns a little, so that depth is seen.
function advance(seconds) {
  const last = scene().moments.length - 1;
  now.time = Math.min(last, now.time + seconds * Math.max(2.5, last / 12));
  if (!still.matches) now.yaw += 0.12 * seconds;
  if (now.time === last) play(false);
  momentChanged();
}

function play(going) {
  const last = scene().moments.length - 1;
  if (going && now.time >= last) now.time = 0;
  now.playing = going && last > 0;
  $("play").textContent = now.playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", now.playing ? "Pause" : "Play");
  if (now.playing) {
    before = performance.now();
    repaint();
  }
}

// A new time: labels and cursors follow at once; answers change at whole moments.
function momentChanged() {
  $("time").value = now.time;
  const epoch = momentName(scene(), now.time);
  const { unit, best } = scene();
  $("time-label").textContent = `${unit[0].toUpperCase() + unit.slice(1)} ${epoch}${epoch === best ? " (best)" : ""}`;
  $("time").setAttribute("aria-valuetext", `${unit} ${epoch}`);
  const whole = Math.round(now.time);
  if (now.whole !== whole && now.confused) drawConfusion();
  if (now.whole !== whole || now.colour === "right or wrong") {
    now.whole = whole;
    if (now.colour === "right or wrong" && casts[0].whole !== whole) {
      casts[0].whole = whole;
      writeLegend();
    } else say();
    if (now.pinned !== null) tell();
  }
  cursors(epoch);
  repaint();
}

function cursors(epoch) {
  for (const one of [drawn.chart, ...(drawn.progress ?? [])]) {
    const line = one?.svg.querySelector(".now");
    if (!line || !one.overEpochs) continue;
    line.setAttribute("x1", one.place(epoch));
    line.setAttribute("x2", one.place(epoch));
  }
  if (drawn.heat) markCell(drawn.heat.svg, drawn.heat.cells, epoch, layersOf(scene())[now.layer], drawn.heat.ink);
}

async function setLayer(place) {
  now.layer = Math.max(0, Math.min(layersOf(scene()).length - 1, place));
  await sit();
  say();
  drawCurves();
  if (now.pinned !== null) tell();
  repaint();
}

// The stage goes to an epoch and a layer that were pointed at in a curve or the heat map.
async function goTo(epoch, layer) {
  if (!scene().views) return;
  play(false);
  const { moments } = scene();
  if (epoch !== null) now.time = moments.reduce((best, one, k) => (Math.abs(one - epoch) < Math.abs(moments[best] - epoch) ? k : best), 0);
  const place = layersOf(scene()).indexOf(layer);
  if (place >= 0 && place !== now.layer) await setLayer(place);
  momentChanged();
}
