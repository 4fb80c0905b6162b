// What each page shows. A view gets the rest of the address and the query; it returns elements.

import { ask } from "./api.js";
import { ago, between, check, facts, field, h, table } from "./dom.js";

const STANDINGS = ["has_it", "on_the_way", "failed", "waiting", "offline"];
const WORDS = { has_it: "has it", on_the_way: "on the way", failed: "failed", waiting: "waiting", offline: "offline" };
const PAGE = 100;
const LONGEST = 1000; // that the API tells at once
const EXAMINED_EVERY_MILLISECONDS = 1000;

const path = (name) => name.split("/").map(encodeURIComponent).join("/");
const deviceLink = (mac) => h("a", { class: "mac", href: `#/devices/${mac}` }, mac);
const fileLink = (name) => h("a", { href: `#/files/${path(name)}` }, name);
const standing = (one) => (one ? h("span", { class: one }, WORDS[one]) : "");
const online = (one) => (one === null ? "" : h("span", { class: one ? "yes" : "offline" }, one ? "online" : "offline"));

function adoption(one) {
  const bar = h("div", { class: "bar", role: "img", "aria-label": `${one.has_it} of ${one.should} have it` });
  for (const name of STANDINGS) {
    if (one[name]) bar.append(Object.assign(h("span", { class: name }), { style: `flex: ${one[name]}` }));
  }
  return one.should ? bar : "";
}

export async function uploads() {
  const { document } = await ask("uploads?limit=100");
  const rows = document.uploads.map((one) => [
    fileLink(one.filename),
    ago(one.rang_at),
    one.confirmed_at ? h("span", { class: "yes" }, one.confirmed_at === one.rang_at ? "yes" : between(one.rang_at, one.confirmed_at)) : h("span", { class: "waiting" }, "waiting"),
    between(one.rang_at, one.first_at),
    between(one.rang_at, one.last_at),
    String(one.has_it),
  ]);
  const columns = [["file", ""], ["announced", ""], ["confirmed", ""], ["first device", ""], ["last device", ""], ["have it", "number"]];
  return [h("h2", {}, "Uploads"), table(columns, rows, "Nothing was uploaded yet. Put a file in the bucket.")];
}

function searching(query, states) {
  const change = (event) => {
    const form = new FormData(event.currentTarget.form ?? event.currentTarget);
    const wanted = new URLSearchParams([...form].filter(([, value]) => value));
    location.replace(`${location.hash.split("?")[0]}?${wanted}`);
  };
  let timer;
  const later = (event) => {
    const { currentTarget } = event;
    clearTimeout(timer);
    timer = setTimeout(() => change({ currentTarget }), 250);
  };
  const option = (value, words) => h("option", { value, selected: query.get("state") === value }, words);
  const select = h("select", { name: "state", id: "state", onchange: change }, option("", "any"), STANDINGS.map((one) => option(one, WORDS[one])));
  return h(
    "form",
    { class: "row", role: "search", onsubmit: (event) => { event.preventDefault(); change(event); } },
    field("search", { type: "search", value: query.get("search") ?? "", oninput: later, autocomplete: "off" }, "Search"),
    states ? h("label", {}, "Standing", select) : null,
  );
}

let grown = { address: "", rows: PAGE };

// A table that grows by a page at a time, and is as long when it is shown again.
async function paged(what, name, query, columns, row, empty) {
  if (grown.address !== location.hash) grown = { address: location.hash, rows: PAGE };
  const asked = new URLSearchParams({ limit: Math.min(grown.rows, LONGEST), ...Object.fromEntries(query) });
  const { document } = await ask(`${what}?${asked}`);
  const shown = table(columns, document[name].map(row), empty);
  let next = document.next;
  if (next === null) return [shown];
  const more = h("button", { type: "button", onclick: async () => {
    asked.set("limit", PAGE);
    asked.set("after", next);
    const page = (await ask(`${what}?${asked}`)).document;
    grown.rows += PAGE;
    shown.tBodies[0].append(...table(columns, page[name].map(row), "").tBodies[0].rows);
    next = page.next;
    if (next === null) more.remove();
  } }, "Show more");
  return [shown, more];
}

export async function files(rest, query) {
  if (rest) return file(rest, query);
  const columns = [["file", ""], ["modified", ""], ["adoption", ""], ["have it", "number"], ["should", "number"], ["failed", "number"]];
  const row = (one) => [
    fileLink(one.filename), ago(one.last_modified), adoption(one), one.should ? String(one.has_it) : "", one.should ? String(one.should) : "nobody",
    one.failed ? h("span", { class: "failed" }, String(one.failed)) : "",
  ];
  return [h("h2", {}, "Files"), searching(query, false), ...(await paged("files", "files", query, columns, row, "No file is called like that."))];
}

async function file(name, query) {
  const columns = [["device", ""], ["standing", ""], ["online", ""], ["state", ""], ["reason", ""], ["reported", ""]];
  const row = (one) => [
    deviceLink(one.mac), standing(one.standing), online(one.online),
    one.progress === null ? one.state ?? "" : h("progress", { max: 100, value: one.progress, "aria-label": `${one.state}, ${one.progress} %` }),
    one.reason, ago(one.at),
  ];
  const shown = await paged(`files/${path(name)}/devices`, "devices", query, columns, row, query.size ? "No device is like that." : "No device should have this file: each should have the newest of what it installed last.");
  return [h("h2", {}, name), searching(query, true), ...shown];
}

export async function devices(rest, query) {
  if (rest) return device(rest);
  const columns = [["device", ""], ["online", ""], ["standing", ""], ["file", ""], ["version", ""], ["reported", ""]];
  const row = (one) => [
    deviceLink(one.mac), online(one.online), standing(one.standing), one.target ? fileLink(one.target.filename) : "",
    one.version ?? "", ago(one.reported_at),
  ];
  return [h("h2", {}, "Devices"), searching(query, true), ...(await paged("devices", "devices", query, columns, row, "No device is known that is like that."))];
}

async function device(mac) {
  const { document: one } = await ask(`devices/${mac}`);
  const held = one.files.map((file) => [
    fileLink(file.filename), h("span", { class: file.state }, file.state), file.current ? "yes" : h("span", { class: "waiting" }, "older"), file.reason, ago(file.at),
  ]);
  const past = one.history.map((said) => [ago(said.at), said.filename, h("span", { class: said.state }, said.state), said.reason]);
  return [
    h("h2", { class: "mac" }, one.mac),
    facts([
      ["Should have", one.target && h("span", {}, fileLink(one.target.filename), ` (${one.target.rule})`)],
      ["Standing", standing(one.standing)],
      ["Online", online(one.online)],
      ["Version", one.version],
      ["Program", one.agent],
      ["Known by", one.source],
    ]),
    h("h3", {}, "What it holds"),
    table([["file", ""], ["state", ""], ["current", ""], ["reason", ""], ["when", ""]], held, "It has reported nothing."),
    h("h3", {}, "What it said"),
    table([["when", ""], ["file", ""], ["state", ""], ["reason", ""]], past, "It has reported nothing."),
  ];
}

export async function broker() {
  const { document: config, etag } = await ask("integrations/mqtt/config");
  const { document: status } = await ask("integrations/mqtt/status");
  const said = h("p", { role: "status", id: "said" });
  const form = h("form", { class: "sheet", onsubmit: (event) => event.preventDefault() },
    field("broker_host", { value: config.broker_host ?? "", required: true, autocomplete: "off" }, "Broker"),
    field("broker_port", { type: "number", min: 1, max: 65535, value: config.broker_port ?? 1883, required: true }, "Port"),
    check("use_tls", config.use_tls, "TLS"),
    field("username", { value: config.username ?? "", autocomplete: "off" }, "User name"),
    field("password", { type: "password", autocomplete: "new-password", placeholder: config.has_password ? "as stored" : "none" }, "Password"),
    field("topic_prefix", { value: config.topic_prefix, required: true }, "Prefix of cameras' topics"),
    field("qos", { type: "number", min: 0, max: 2, value: config.qos, required: true }, "QoS"),
    check("enabled", config.enabled, "Publish"),
    check("discovery_enabled", config.discovery_enabled, "Tell Home Assistant of cameras"),
    field("discovery_prefix", { value: config.discovery_prefix, required: true }, "Home Assistant's prefix"),
    check("retain_messages", config.retain_messages, "Retain cameras' events"),
  );
  const wanted = () => {
    const at = (name) => form.elements.namedItem(name);
    const body = {};
    for (const name of ["broker_host", "topic_prefix", "discovery_prefix"]) body[name] = at(name).value;
    for (const name of ["broker_port", "qos"]) body[name] = Number(at(name).value);
    for (const name of ["use_tls", "enabled", "discovery_enabled", "retain_messages"]) body[name] = at(name).checked;
    body.username = at("username").value || null;
    if (at("password").value) body.password = at("password").value;
    return body;
  };
  const show = (text, good) => { said.className = good ? "yes" : "no"; said.textContent = text; };
  const attempt = (work) => async () => {
    if (!form.reportValidity()) return;
    show("…", true);
    try {
      await work();
    } catch (error) {
      show(error.errors?.map((one) => `${one.field} ${one.problem}: ${one.expected}`).join("; ") || error.message, false);
    }
  };
  const test = attempt(async () => {
    const { document: found } = await ask("integrations/mqtt/test", { method: "POST", body: wanted() });
    show(`${found.detail} (${Math.round(found.duration_seconds * 1000)} ms)`, found.ok);
  });
  let version = etag;
  const store = attempt(async () => {
    version = (await ask("integrations/mqtt/config", { method: "PUT", body: wanted(), ifMatch: version })).etag;
    show("Stored. The host connects with these settings.", true);
  });
  form.append(h("div", {}, h("button", { type: "button", onclick: test }, "Test"), " ", h("button", { type: "button", class: "main", onclick: store }, "Store")), said);
  const topics = status.topics.map((one) => [one.topic, h("span", { class: one.accepted ? "yes" : "no" }, one.accepted ? "accepted" : one.reason), ago(one.at)]);
  return [
    h("h2", {}, "Broker"),
    facts([
      ["Connected", status.connected === null ? "" : h("span", { class: status.connected ? "yes" : "no" }, status.connected ? "yes" : "no")],
      ["Broker", status.broker],
      ["Last trouble", status.last_error && h("span", {}, status.last_error.reason, " ", ago(status.last_error.at))],
      ["Published", String(status.messages_published ?? "")],
      ["Settings from", config.source],
    ]),
    h("h3", {}, "What the broker last said of each topic"),
    table([["topic", ""], ["answer", ""], ["when", ""]], topics, "Nothing was published yet."),
    h("h3", {}, "Settings"),
    form,
  ];
}

export async function doctor() {
  const said = h("p", { role: "status", id: "said" });
  const place = h("div");
  const words = { ok: ["yes", "well"], wrong: ["no", "wrong"], "not checked": ["soft", "not checked"] };
  const row = (one) => [
    h("span", { class: words[one.health][0] }, words[one.health][1]), one.name,
    h("span", {}, one.detail, one.milliseconds === null ? "" : ` (${one.milliseconds} ms)`, one.remedy ? h("p", { class: "no" }, one.remedy) : ""),
  ];
  const columns = [["found", "word"], ["what", "word"], ["detail", "text"]];
  let timer;
  const show = (found) => {
    const of = (health) => found.checks.filter((one) => one.health === health);
    const unknown = of("not checked").length;
    said.className = found.trouble || found.ok === false ? "no" : "";
    if (found.running) said.textContent = "Looking at everything: half a minute at most …";
    else if (found.trouble) said.textContent = found.trouble;
    else if (found.ok === null) said.textContent = "Nobody has asked since the host was started.";
    else if (found.ok) said.textContent = unknown ? `Nothing is wrong; ${unknown} could not be checked.` : "Nothing is wrong.";
    else said.textContent = `First mend: ${found.first}. Then look again.`;
    const rows = [...of("wrong"), ...of("not checked"), ...of("ok")].map(row);
    place.replaceChildren(...(rows.length ? [h("p", { class: "soft" }, "Found ", ago(found.ended_at)), table(columns, rows, "")] : []));
    clearTimeout(timer);
    if (found.running) timer = setTimeout(() => place.isConnected && look(), EXAMINED_EVERY_MILLISECONDS);
  };
  const look = async (how) => {
    try {
      show((await ask("doctor", how)).document);
    } catch (error) {
      said.className = "no";
      said.textContent = error.message;
    }
  };
  show((await ask("doctor")).document);
  return [
    h("h2", {}, "Doctor"),
    h("p", { class: "soft" }, "What the command bucketbell doctor finds: what is wrong first, then what could not be checked, then what is well."),
    h("button", { type: "button", class: "main", onclick: () => look({ method: "POST" }) }, "Look at everything"), said, place,
  ];
}
