// Reads the chunks that pack.py wrote: base64 of raw deflate, each in a block of the page that no browser runs.
"use strict";

async function inflated(name) {
  const raw = atob(document.getElementById(name).textContent);
  const bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const opened = new Map();

function once(name, read) {
  if (!opened.has(name)) opened.set(name, inflated(name).then(read));
  return opened.get(name);
}

const readText = (name) => once(name, (bytes) => new TextDecoder().decode(bytes));
const readJson = (name) => once(name, (bytes) => JSON.parse(new TextDecoder().decode(bytes)));

// Whole numbers, moment after moment: the sums of what pack.py took the differences of.
const readNumbers = (name, moments) =>
  once(name, (bytes) => {
    const count = bytes.length / 2;
    const numbers = new Int16Array(count);
    const each = count / moments;
    for (let k = 0; k < count; k++) {
      const folded = bytes[k] | (bytes[count + k] << 8);
      numbers[k] = (folded >>> 1) ^ -(folded & 1);
      if (k >= each) numbers[k] += numbers[k - each];
    }
    return numbers;
  });
