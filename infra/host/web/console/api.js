// The host's API: the token, which lives as long as the tab, questions, and the stream of changes.

const KEY = "bucketbell-token";

export class Refusal extends Error {
  constructor(status, document) {
    super(document?.detail ?? `HTTP ${status}`);
    this.status = status;
    this.errors = document?.errors ?? [];
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  return { Authorization: `Bearer ${token.get()}`, ...more };
}

export async function ask(path, { method = "GET", body, ifMatch } = {}) {
  const sent = { method, headers: headers(), cache: "no-store" };
  if (body !== undefined) {
    sent.headers["Content-Type"] = "application/json";
    sent.body = JSON.stringify(body);
  }
  if (ifMatch) sent.headers["If-Match"] = ifMatch;
  const answer = await fetch(`api/v1/${path}`, sent);
  const document = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(answer.status, document);
  return { document, etag: answer.headers.get("ETag") };
}

// Hears of changes until `signal` ends it. `tell` gets their kinds, `state` whether the host answers.
export async function follow(tell, state, signal) {
  let last = "";
  let pause = 500;
  while (!signal.aborted) {
    try {
      const answer = await fetch("api/v1/stream", { headers: headers({ "Last-Event-ID": last }), cache: "no-store", signal });
      if (answer.status === 401) return state("unauthorised");
      if (answer.status === 404) return state("no stream");
      if (!answer.ok) throw new Refusal(answer.status);
      const text = await answer.text();
      const changes = text.split("\n\n").filter((block) => block.startsWith("id: "));
      last = changes.at(-1)?.split("\n")[0].slice(4) ?? last;
      pause = 500;
      state("live");
      if (changes.length) tell(new Set(changes.map((block) => /^event: (.*)$/m.exec(block)[1])));
    } catch (error) {
      if (signal.aborted) return;
      state("away");
      await new Promise((done) => setTimeout(done, pause));
      pause = Math.min(pause * 2, 8000);
    }
  }
}
