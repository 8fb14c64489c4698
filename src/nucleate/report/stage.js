// The stage: points of three dimensions on a plain canvas. Up to MANY each is a round sprite, the far ones first; beyond,
// discs are written straight into the pixels with the nearest kept. Both need no graphics card.

const MANY = 2500;
const DEPTHS = 12; // steps of size and haze from far to near
const MIDDLE = 2048; // of the whole numbers that coordinates are kept as
const [DOT, WEDGE] = [0, 1]; // an ordinary instance, a hard example

class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.sprites = new Map();
    this.blend = null;
  }

  // Another layer, view or run: points that are the same glide to their new places.
  async show(scene, view, layer, count, glide) {
    const { layers, rows } = scene.views[view];
    const name = (this.wanted = layers[layer]);
    const moments = scene.moments.length;
    const read = await readNumbers(name, moments);
    if (this.wanted !== name) return; // somebody was quicker
    if (this.name === name) return void (this.scene = scene); // shown already
    const same = this.scene === scene && this.numbers && glide;
    this.blend = same ? { from: this.places.slice(), began: performance.now() } : null;
    const numbers = rows ? spread(read, 3 * moments, rows, count) : read;
    Object.assign(this, { scene, name, numbers, count, fill: filling(read, moments) });
    if (!same) {
      this.places = new Float32Array(3 * this.count);
      this.flat = new Float32Array(3 * this.count); // x and y on the canvas, nearness in [0, 1]
      this.order = new Uint32Array(this.count);
    }
  }

  // Where the points are at a time between two moments, nearly all within -1 and 1. True while they still glide.
  move(time) {
    const [below, part] = [Math.floor(time), time - Math.floor(time)];
    const here = 3 * this.count * below;
    const next = part ? here + 3 * this.count : here;
    const { count, numbers, places } = this;
    let ease = 1;
    if (this.blend) {
      const t = Math.min(1, (performance.now() - this.blend.began) / 400);
      ease = t * t * (3 - 2 * t);
      if (t === 1) this.blend = null;
    }
    for (let axis = 0; axis < 3; axis++) {
      for (let k = 0; k < count; k++) {
        const a = numbers[here + axis * count + k];
        const at = (a + (numbers[next + axis * count + k] - a) * part - MIDDLE) / this.fill;
        places[axis * count + k] = ease < 1 ? this.blend.from[axis * count + k] * (1 - ease) + at * ease : at;
      }
    }
    return this.blend !== null;
  }

  // look: {yaw, pitch, zoom}; looks: Uint8 per point into `colours`, 255 hidden; shapes: Uint8 per point.
  paint(look, looks, shapes, colours, ink) {
    this.fit();
    const { canvas, pen, count } = this;
    this.project(look);
    if (count <= MANY) {
      pen.fillStyle = ink.ground;
      pen.fillRect(0, 0, canvas.width, canvas.height);
      this.floor(look, ink);
      this.sort();
      for (const k of this.order) {
        if (looks[k] === 255) continue;
        const depth = Math.min(DEPTHS - 1, Math.floor(this.flat[3 * k + 2] * DEPTHS));
        const sprite = this.sprite(colours[looks[k]], shapes[k], depth, ink);
        pen.drawImage(sprite, this.flat[3 * k] - sprite.width / 2, this.flat[3 * k + 1] - sprite.height / 2);
      }
    } else {
      this.pixels(looks, shapes, colours, ink);
      this.floor(look, ink);
    }
  }

  fit() {
    const scale = Math.min(2, devicePixelRatio || 1);
    const { clientWidth, clientHeight } = this.canvas;
    this.scale = scale;
    if (this.canvas.width !== Math.round(clientWidth * scale) || this.canvas.height !== Math.round(clientHeight * scale)) {
      this.canvas.width = Math.round(clientWidth * scale);
      this.canvas.height = Math.round(clientHeight * scale);
      this.sprites.clear();
    }
  }

  project(look) {
    const { flat, places, count } = this;
    const turn = this.camera(look);
    for (let k = 0; k < count; k++) turn(places[k], places[count + k], places[2 * count + k], flat, 3 * k);
  }

  // A point of the cube to the canvas: turned, tilted, a little smaller when far.
  camera({ yaw, pitch, zoom }) {
    const { width, height } = this.canvas;
    const [c, s, d, e] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const size = Math.min(width, height * 1.1) * 0.39 * zoom;
    return (x, y, z, out, at) => {
      const across = c * x + s * y;
      const inward = c * y - s * x;
      const near = -(d * inward + e * -z);
      const up = d * z + e * inward;
      const scale = (size * 4) / (4 - near);
      out[at] = width / 2 + across * scale;
      out[at + 1] = height * 0.43 - up * scale;
      out[at + 2] = Math.max(0, Math.min(1, near / 2.4 + 0.5));
    };
  }

  sort() {
    const { flat, order, count } = this;
    for (let k = 0; k < count; k++) order[k] = k;
    order.sort((a, b) => flat[3 * a + 2] - flat[3 * b + 2]);
  }

  radius(depth) {
    const size = this.count > MANY ? 1.5 : this.count > 800 ? 2.8 : 4;
    return this.scale * size * (0.75 + (0.65 * depth) / (DEPTHS - 1));
  }

  // The far ones fade into the ground.
  haze = (colour, depth, ink) => mixed(colour, ink.ground, 0.5 * (1 - depth / (DEPTHS - 1)) ** 1.5);

  sprite(colour, shape, depth, ink) {
    const key = `${colour}${shape}${depth}${ink.dark}`;
    if (!this.sprites.has(key)) {
      const radius = this.radius(depth) * (shape === WEDGE ? 1.45 : 1);
      const sprite = new OffscreenCanvas(Math.ceil(2 * radius + 4), Math.ceil(2 * radius + 4));
      const pen = sprite.getContext("2d");
      pen.translate(sprite.width / 2, sprite.height / 2);
      pen.fillStyle = this.haze(colour, depth, ink);
      pen.strokeStyle = shape === WEDGE ? ink.text : ink.ground;
      pen.lineWidth = 0.8 * this.scale;
      pen.beginPath();
      if (shape === WEDGE) for (const [x, y] of wedge(radius)) pen.lineTo(x, y);
      else pen.arc(0, 0, radius, 0, 7);
      pen.closePath();
      pen.fill();
      pen.stroke();
      this.sprites.set(key, sprite);
    }
    return this.sprites.get(key);
  }

  pixels(looks, shapes, colours, ink) {
    const { width, height } = this.canvas;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      this.image = new ImageData(width, height);
      this.words = new Uint32Array(this.image.data.buffer);
      this.nearest = new Float32Array(width * height);
    }
    const { words, nearest, flat, count } = this;
    const word = (colour) => channels(colour).reduce((all, one, k) => all | (one << (8 * k)), 0xff000000) >>> 0;
    words.fill(word(ink.ground));
    nearest.fill(-1);
    const palette = colours.map((colour) => Array.from({ length: DEPTHS }, (_, depth) => word(this.haze(colour, depth, ink))));
    const masks = [DOT, WEDGE].map((shape) => Array.from({ length: DEPTHS }, (_, depth) => mask(shape, this.radius(depth))));
    for (let k = 0; k < count; k++) {
      if (looks[k] === 255) continue;
      const near = flat[3 * k + 2];
      const depth = Math.min(DEPTHS - 1, Math.floor(near * DEPTHS));
      const [x, y, inside] = [Math.round(flat[3 * k]), Math.round(flat[3 * k + 1]), masks[shapes[k]][depth]];
      const colour = palette[looks[k]][depth];
      for (let m = 0; m < inside.length; m += 2) {
        const [px, py] = [x + inside[m], y + inside[m + 1]];
        if (px < 0 || py < 0 || px >= width || py >= height || nearest[py * width + px] >= near) continue;
        nearest[py * width + px] = near;
        words[py * width + px] = colour;
      }
    }
    this.pen.putImageData(this.image, 0, 0);
  }

  // A floor under the points, so that a turn is seen as one.
  floor(look, ink) {
    const { pen } = this;
    pen.strokeStyle = ink.line;
    pen.lineWidth = this.scale;
    pen.beginPath();
    for (const [x1, y1, x2, y2] of this.grid(look)) {
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
    }
    pen.stroke();
  }

  grid(look) {
    const turn = this.camera(look);
    const line = (...ends) => {
      const out = [];
      ends.forEach(([x, y], k) => turn(x, y, -0.9, out, 3 * k));
      return [out[0], out[1], out[3], out[4]];
    };
    return [-0.62, -0.31, 0, 0.31, 0.62].flatMap((at) => [line([at, -0.62], [at, 0.62]), line([-0.62, at], [0.62, at])]);
  }

  // The visible point under the pointer, at most `reach` CSS pixels away.
  under(x, y, looks, reach = 14) {
    let [found, best] = [null, (reach * this.scale) ** 2];
    for (let k = 0; k < this.count; k++) {
      if (looks[k] === 255) continue;
      const [across, down] = [this.flat[3 * k] - x * this.scale, this.flat[3 * k + 1] - y * this.scale];
      const distance = across * across + down * down - 9 * this.flat[3 * k + 2];
      if (distance < best) [found, best] = [k, distance];
    }
    return found;
  }

  // The `count` visible points nearest to one, in the three dimensions of the stage.
  nearestTo(k, looks, count) {
    const far = [];
    for (let n = 0; n < this.count; n++) {
      if (n === k || looks[n] === 255) continue;
      let distance = 0;
      for (let axis = 0; axis < 3; axis++) distance += (this.places[axis * this.count + n] - this.places[axis * this.count + k]) ** 2;
      far.push([distance, n]);
    }
    return far.sort((a, b) => a[0] - b[0]).slice(0, count).map(([, n]) => n);
  }

  // Lines to the neighbours, a ring around the pinned point, one around what the pointer is on.
  overlay(pinned, neighbours, hovered, ink) {
    const { pen, flat } = this;
    const at = (k) => [flat[3 * k], flat[3 * k + 1]];
    pen.lineWidth = 1.4 * this.scale;
    pen.strokeStyle = ink.mark;
    pen.beginPath();
    for (const k of neighbours) {
      pen.moveTo(...at(pinned));
      pen.lineTo(...at(k));
    }
    pen.stroke();
    for (const [k, colour] of [[pinned, ink.mark], [hovered, ink.text]]) {
      if (k === null || k === undefined) continue;
      pen.strokeStyle = colour;
      pen.lineWidth = 2 * this.scale;
      pen.beginPath();
      pen.arc(...at(k), 8.5 * this.scale, 0, 7);
      pen.stroke();
    }
  }

  // The same picture in lines and circles, with what it shows written below.
  svg(look, looks, shapes, colours, ink, legend, title) {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const columns = Math.max(1, Math.floor(width / 150));
    const rows = Math.ceil(legend.length / columns);
    const svg = picture(width, height + 34 + 18 * rows, title);
    for (const [x1, y1, x2, y2] of this.grid(look)) {
      const ends = { x1, y1, x2, y2 };
      for (const end in ends) ends[end] = (ends[end] / this.scale).toFixed(1);
      draw(svg, "line", { ...ends, stroke: ink.line });
    }
    this.sort();
    for (const k of this.order) {
      if (looks[k] === 255) continue;
      const depth = Math.min(DEPTHS - 1, Math.floor(this.flat[3 * k + 2] * DEPTHS));
      const [x, y, radius] = [this.flat[3 * k], this.flat[3 * k + 1], this.radius(depth)].map((one) => one / this.scale);
      const fill = this.haze(colours[looks[k]], depth, ink);
      if (shapes[k] === WEDGE) {
        const corners = wedge(radius * 1.45).map(([a, b]) => `${(x + a).toFixed(1)},${(y + b).toFixed(1)}`);
        draw(svg, "polygon", { points: corners.join(" "), fill, stroke: ink.text, "stroke-width": 0.8 });
      } else {
        draw(svg, "circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: radius.toFixed(1), fill, stroke: ink.ground, "stroke-width": 0.8 });
      }
    }
    draw(svg, "text", { x: 12, y: height + 16, fill: ink.text }, title);
    legend.forEach(({ name, colour }, n) => {
      const [x, y] = [12 + (n % columns) * 150, height + 36 + 18 * Math.floor(n / columns)];
      draw(svg, "circle", { cx: x + 4, cy: y - 4, r: 4.5, fill: colour });
      draw(svg, "text", { x: x + 14, y, fill: ink.quiet }, name.length > 18 ? `${name.slice(0, 17)}…` : name);
    });
    return svg;
  }
}

const wedge = (radius) => [90, 210, 330].map((angle) => [radius * Math.cos((angle * Math.PI) / 180), -radius * Math.sin((angle * Math.PI) / 180)]);

// The pixels of a shape around its middle: x, y, x, y, ...
function mask(shape, radius) {
  const inside = [];
  const reach = Math.ceil(radius * 1.6);
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const within = shape === DOT ? x * x + y * y <= radius * radius : y <= 0.75 * radius && Math.abs(x) <= (y + 1.5 * radius) * 0.6;
      if (within) inside.push(x, y);
    }
  }
  return inside;
}

// Numbers of some points, (line, point), as numbers of all; those that the view does not show lie in the middle, hidden.
function spread(numbers, lines, rows, count) {
  const all = new Int16Array(lines * count).fill(MIDDLE);
  for (let line = 0; line < lines; line++) rows.forEach((row, k) => (all[line * count + row] = numbers[line * rows.length + k]));
  return all;
}

// Half the width that holds nearly all points at any moment: a few that stray must not make all the others small.
function filling(numbers, moments) {
  const each = numbers.length / moments;
  const far = [];
  for (let moment = 0; moment < moments; moment += Math.max(1, Math.floor(moments / 8))) {
    for (let k = moment * each; k < (moment + 1) * each; k++) far.push(Math.abs(numbers[k] - MIDDLE));
  }
  far.sort((a, b) => a - b);
  return 1.15 * far[Math.floor(0.985 * (far.length - 1))] || 1;
}
