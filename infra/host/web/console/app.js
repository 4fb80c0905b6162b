// Which page is shown, logging in and out, and that it is shown again when something has changed.

import { Refusal, ask, follow, token } from "./api.js";
import { field, h } from "./dom.js";
import * as views from "./views.js";

const GATHER_MILLISECONDS = 550; // the host limits how often a token may ask
const LIVE = { uploads: ["upload", "report"], files: ["upload", "report", "presence"], devices: ["upload", "report", "presence"] };
const FOCUSED = "a, button, input, select";
const STATES = {
  live: ["Live", false],
  away: ["The host does not answer. Trying again …", true],
  unauthorised: ["The token is not valid any more.", true],
  "no stream": ["", false],
};

const main = document.getElementById("main");
const line = document.getElementById("line");
const pages = document.getElementById("pages");
let following = null;
let shown = 0;
let shownPlace = "";
let timer = null;

function say([text, isTrouble]) {
  line.textContent = text;
  line.className = isTrouble ? "trouble" : "";
}

function address() {
  const [place, query] = location.hash.slice(2).split("?");
  const [name, ...rest] = place.split("/");
  return { name: name in views ? name : "uploads", rest: rest.map(decodeURIComponent).join("/"), query: new URLSearchParams(query) };
}

// What is shown will be new anyway, or is not shown any more.
function forget() {
  clearTimeout(timer);
  timer = null;
}

// Whether an element is what that of the page before was.
function isSame(one, before) {
  return ["tagName", "id", "href", "textContent"].every((name) => one[name] === before[name]);
}

async function show({ again = false } = {}) {
  forget();
  if (!token.get()) return login("");
  const number = ++shown;
  const { name, rest, query } = address();
  for (const link of pages.querySelectorAll("a")) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  let found;
  try {
    found = await views[name](rest, query);
  } catch (error) {
    if (number !== shown) return;
    if (error instanceof Refusal && error.status === 401) return login(following ? STATES.unauthorised[0] : "That token is not valid.");
    found = [h("h2", {}, "That did not work"), h("p", { class: "no" }, error.message)];
    if (again && !(error instanceof Refusal)) return; // the host is away: what is shown stays
  }
  if (number !== shown) return;
  const focused = document.activeElement;
  const place = `${name}/${rest}`;
  const stays = place === shownPlace && main.contains(focused);
  shownPlace = place;
  const cursor = focused.selectionStart;
  main.replaceChildren(...found);
  document.title = `${main.querySelector("h2")?.textContent ?? ""} · bucketbell`;
  const same = stays && [...main.querySelectorAll(FOCUSED)].find((one) => isSame(one, focused));
  if (same) {
    same.focus();
    if (same.type === "search") {
      same.value = focused.value; // more may have been typed meanwhile
      same.setSelectionRange(cursor, cursor);
    }
  }
  pages.hidden = false;
  begin();
}

function begin() {
  if (following) return;
  following = new AbortController();
  follow(changed, (state) => {
    say(STATES[state]);
    if (state === "unauthorised") login(STATES.unauthorised[0]);
  }, following.signal);
}

function changed(kinds) {
  const { name } = address();
  const wanted = kinds.has("begin_again") ? Object.keys(LIVE) : (LIVE[name] ?? []).filter((kind) => kinds.has(kind)).map(() => name);
  if (!wanted.includes(name) || timer) return;
  timer = setTimeout(() => show({ again: true }), GATHER_MILLISECONDS);
}

function leave() {
  forget();
  following?.abort();
  following = null;
  shown += 1;
  token.clear();
  pages.hidden = true;
}

function login(words) {
  leave();
  say(["", false]);
  const said = h("p", { class: "no", role: "alert" }, words);
  const form = h("form", { class: "sheet" },
    h("h2", {}, "Log in"),
    field("token", { type: "password", required: true, autocomplete: "current-password" }, "One of the host's ADMIN_TOKENS"),
    h("div", {}, h("button", { class: "main" }, "Log in")),
    said,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    token.set(form.elements.namedItem("token").value.trim());
    try {
      await ask("integrations/mqtt/status");
      await show();
    } catch (error) {
      token.clear();
      said.textContent = error.status === 401 ? "That token is not valid." : error.message;
    }
  });
  main.replaceChildren(form);
  document.getElementById("token").focus();
}

document.getElementById("leave").addEventListener("click", () => login(""));
window.addEventListener("hashchange", () => show());
show();
