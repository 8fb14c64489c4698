// Hands: pointing at an instance, pinning it, turning, keys; and the beginning of it all.

// --- one instance ----------------------------------------------------------------------------------------------------

const FIELDS = [["instruction", "instruction"], ["input", "input"], ["output", "expected"], ["given", "given"], ["task", "task"], ["distribution", "distribution"], ["mapping", "mapping"]];

function facts(parent, cast, k, longest) {
  const list = make(parent, "dl");
  for (const [field, words] of FIELDS) {
    const text = field === "given" ? cast.given(k, now.time) : cast.text(field, k);
    if (text === null || text === "") continue;
    make(list, "dt", words);
    const wrong = field === "given" && text !== cast.text("output", k);
    make(list, "dd", text.length > longest ? `${text.slice(0, longest)}…` : text, wrong ? { class: "wrong" } : {});
  }
}

function tell() {
  const box = $("pin");
  box.hidden = now.pinned === null;
  box.replaceChildren();
  if (now.pinned === null) return;
  const [cast, k] = [casts[0], now.pinned];
  const head = make(box, "div", undefined, { class: "head" });
  make(head, "h2", `Instance ${cast.points.instance[k]}${cast.shapes[k] === WEDGE ? ", a hard example" : ""}`);
  make(head, "button", "let go", { type: "button" }).addEventListener("click", () => pin(null));
  facts(box, cast, k, 600);
  stages[0].move(now.time);
  const near = stages[0].nearestTo(k, cast.looks, NEIGHBOURS);
  const same = near.filter((n) => cast.text("task", n) === cast.text("task", k)).length;
  make(box, "p", `${same} of its ${near.length} nearest points shown here have its task:`, { class: "quiet" });
  const list = make(box, "ol");
  for (const n of near) {
    const button = make(make(list, "li"), "button", undefined, { type: "button" });
    make(button, "b", cast.text("task", n) ?? "");
    make(button, "span", ` ${cast.text("instruction", n)?.slice(0, 80) ?? ""} ${cast.text("input", n)?.slice(0, 30) ?? ""}`);
    button.addEventListener("click", () => pin(n));
  }
}

function pin(k) {
  now.pinned = k;
  tell();
  repaint();
}

function point(stage, cast, event) {
  if (stage.scene !== cast?.one) return null; // not there yet
  const box = stage.canvas.getBoundingClientRect();
  return stage.under(event.clientX - box.left, event.clientY - box.top, cast.looks, event.pointerType === "touch" ? 24 : 14);
}

function tip(event, write) {
  const box = $("tip");
  box.hidden = !write;
  if (!write) return;
  box.replaceChildren();
  write(box);
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(6, Math.min(innerWidth - width - 6, event.clientX + 16))}px`;
  box.style.top = `${event.clientY + 18 + height > innerHeight ? Math.max(6, event.clientY - height - 14) : event.clientY + 18}px`;
}

// --- hands -----------------------------------------------------------------------------------------------------------

function listen() {
  const choose = (id, act) => $(id).addEventListener("change", (event) => act(event.target.value));
  choose("scene", (value) => { play(false); now.scene = Number(value); now.pinned = now.hovered = null; tell(); enter(); });
  choose("beside", async (value) => { now.beside = value === "" ? null : Number(value); await sit(); look(); turnPage(); });
  choose("view", async (value) => {
    const layer = layersOf(scene())[now.layer];
    now.view = Number(value);
    now.layer = layersOf(scene()).reduce((best, one, k, all) => (Math.abs(one - layer) < Math.abs(all[best] - layer) ? k : best), 0);
    await sit();
    look();
    drawCurves();
  });
  choose("shown", (value) => { now.shown = value; pin(null); writeLegend(); });
  choose("colour", (value) => { now.colour = value; now.only.clear(); writeLegend(); });
  for (const name of SWITCHES) choose(name, (value) => { now.chosen[name] = value === "" ? null : value; drawCurves(); });
  $("time").addEventListener("input", (event) => { play(false); now.time = Number(event.target.value); momentChanged(); });
  $("time").addEventListener("change", () => { now.time = Math.round(now.time); momentChanged(); });
  $("layer").addEventListener("input", (event) => setLayer(Number(event.target.value)));
  $("play").addEventListener("click", () => play(!now.playing));
  $("search").addEventListener("input", (event) => { now.query = event.target.value.trim().toLowerCase(); look(); });
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !now.found.matches.length) return;
    pin(now.found.matches[(now.found.matches.indexOf(now.pinned) + 1) % now.found.matches.length]);
  });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    $("theme").textContent = `Theme: ${next ?? "system"}`;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", () => { drawCurves(); repaint(); });
  document.addEventListener("keydown", keys);
  stages.forEach((stage, which) => turning(stage, which));
  offerSaving(VIEWS);
}

function redraw() {
  if (scene().views) writeLegend();
  drawCurves();
}

function keys(event) {
  if (event.key === "Escape") return pin(null);
  const field = event.target.closest?.("input, select, button, summary, a, [role=region]");
  if (field || event.ctrlKey || event.metaKey || event.altKey || !scene().views) return;
  const [side, up] = [{ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0, { ArrowUp: 1, ArrowDown: -1 }[event.key] ?? 0];
  const onStage = event.target.tagName === "CANVAS";
  if (event.shiftKey && side) { play(false); now.time = Math.max(0, Math.min(scene().moments.length - 1, Math.round(now.time) + side)); momentChanged(); }
  else if (event.shiftKey && up) setLayer(now.layer + up);
  else if (onStage && side) now.yaw += 0.12 * side;
  else if (onStage && up) now.pitch = Math.max(-1.5, Math.min(1.5, now.pitch + 0.12 * up));
  else if (event.key === "+" || event.key === "=") now.zoom = Math.min(8, now.zoom * 1.15);
  else if (event.key === "-") now.zoom = Math.max(0.4, now.zoom / 1.15);
  else if (event.key === "Home" && onStage) Object.assign(now, STARTING);
  else if (event.key === " " && onStage) play(!now.playing);
  else return;
  event.preventDefault();
  repaint();
}

function turning(stage, which) {
  const { canvas } = stage;
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, moved: 0 };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const [x, y] = [event.clientX - held.x, event.clientY - held.y];
      held = { x: event.clientX, y: event.clientY, moved: held.moved + Math.abs(x) + Math.abs(y) };
      now.yaw += x * 0.008;
      now.pitch = Math.max(-1.5, Math.min(1.5, now.pitch + y * 0.008));
      if (held.moved > 4) tip(event, null);
      repaint();
      return;
    }
    const k = point(stage, casts[which], event);
    if (which === 0 && now.hovered !== k) {
      now.hovered = k;
      repaint();
    }
    tip(event, k !== null && ((box) => facts(box, casts[which], k, 160)));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (held && held.moved <= 4 && which === 0) pin(point(stage, casts[0], event));
    held = null;
  });
  canvas.addEventListener("pointercancel", () => (held = null));
  canvas.addEventListener("pointerleave", (event) => {
    tip(event, null);
    now.hovered = null;
    repaint();
  });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls until the stage is taken in hand
    event.preventDefault();
    now.zoom = Math.max(0.4, Math.min(8, now.zoom * Math.exp(-event.deltaY * 0.0015)));
    repaint();
  }, { passive: false });
}

// The figures of the paper wait in their chunks until somebody opens them.
for (const part of document.querySelectorAll("details.figures")) {
  part.addEventListener("toggle", () => part.querySelectorAll("img:not([src])").forEach(async (image) => {
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(await readText(image.dataset.chunk));
  }));
}

open();
