// Elements from values. Text is always text: nothing that a device or a store says becomes markup.

export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function table(columns, rows, empty) {
  if (!rows.length) return h("p", { class: "soft" }, empty);
  const head = columns.map(([name, kind]) => h("th", { class: kind, scope: "col" }, name));
  const line = (cells) =>
    h("tr", {}, cells.map((cell, at) => h("td", { class: columns[at][1], "data-name": columns[at][0] }, cell ?? "")));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map(line)));
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", {}, shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function field(name, properties, words) {
  return h("label", {}, words, h("input", { name, id: name, ...properties }));
}

export function check(name, checked, words) {
  return h("label", { class: "check" }, h("input", { type: "checkbox", name, id: name, checked }), words);
}

const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function ago(text) {
  if (!text) return "";
  const seconds = Math.max(0, (Date.now() - Date.parse(text)) / 1000);
  const [size, unit] = units.find(([size]) => seconds >= size) ?? [1, "s"];
  return h("time", { datetime: text, title: new Date(text).toLocaleString() }, `${Math.floor(seconds / size)} ${unit} ago`);
}

export function between(first, last) {
  if (!first || !last) return "";
  const milliseconds = Date.parse(last) - Date.parse(first);
  if (milliseconds < 1000) return `+${Math.max(0, milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  return seconds < 120 ? `+${seconds.toFixed(1)} s` : `+${Math.round(seconds / 60)} min`;
}
