// Every view saves itself: the vector picture, the same as pixels, the numbers behind it.

function hand(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Cells that begin like a formula get an apostrophe, so that no spreadsheet runs what a prompt says.
function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

async function pixels(svg) {
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(svg));
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * svg.getAttribute("width");
  canvas.height = 2 * svg.getAttribute("height");
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// `views` gives, by the name in data-save, a function to {name, svg, rows}.
function offerSaving(views) {
  for (const bar of document.querySelectorAll("[data-save]")) {
    for (const kind of ["PNG", "SVG", "CSV"]) {
      make(bar, "button", kind, { type: "button", title: `Save as ${kind}` }).addEventListener("click", async () => {
        const { name, svg, rows } = views[bar.dataset.save]();
        if (kind === "CSV") hand(`${name}.csv`, new Blob([csv(rows)], { type: "text/csv" }));
        if (kind === "SVG") hand(`${name}.svg`, new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" }));
        if (kind === "PNG") hand(`${name}.png`, await pixels(svg));
      });
    }
  }
}
