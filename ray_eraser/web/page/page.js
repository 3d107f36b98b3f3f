"use strict";

const REFRESH_MS = 2000;
const LISTED = 50;

let key = null; // in this variable and nowhere else
let timer = null;
let followed = null; // the erasure that was asked for last
let submission = null; // {body, idempotencyKey}: sent again after a failure, it is the same request

const at = (id) => document.getElementById(id);

function element(name, text, classes = "") {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

// ---- asking ---------------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, error) {
    super(error);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${key}` } });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const body = await answer.json().catch(() => ({ error: `The server answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Refused(answer.status, body.error);
  return body;
}

let saidBy = null; // what was being done; a refresh that works takes back only what a refresh has said

function say(problem, by = "form") {
  saidBy = by;
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

// ---- words ----------------------------------------------------------------------------------------------------------------

const moment = (seconds) => (seconds == null ? "" : new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }));

function lasting(seconds) {
  const size = Math.abs(seconds);
  if (size < 1) return `${size.toFixed(2)} s`;
  if (size < 120) return `${size.toFixed(size < 10 ? 1 : 0)} s`;
  if (size < 7200) return `${Math.round(size / 60)} min`;
  return size < 172800 ? `${Math.round(size / 3600)} h` : `${Math.round(size / 86400)} d`;
}

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function state(name) {
  return element("span", name.replace("_", " "), `state ${name}`);
}

// ---- showing --------------------------------------------------------------------------------------------------------------

function fill(table, rows) {
  at(table).tBodies[0].replaceChildren(
    ...rows.map((cells) => {
      const row = element("tr");
      for (const cell of cells) {
        const td = element("td");
        td.append(cell instanceof Node ? cell : document.createTextNode(cell));
        row.append(td);
      }
      return row;
    }),
  );
  at(table).hidden = rows.length === 0;
}

function list(dl, entries) {
  at(dl).replaceChildren(...entries.flatMap(([name, value]) => {
    const dd = element("dd");
    dd.append(value instanceof Node ? value : document.createTextNode(value));
    return [element("dt", name), dd];
  }));
}

function lookUpButton(id) {
  const button = element("button", "receipt", "quiet");
  button.type = "button";
  button.addEventListener("click", () => {
    at("erasure-id").value = id;
    at("salt").value = "";
    at("receipt-form").requestSubmit();
    at("receipt-form").scrollIntoView({ behavior: "smooth", block: "center" });
  });
  return button;
}

function show(status, pending, finished) {
  const { requests, now } = status;
  at("deployment").textContent = status.deployment;
  at("pending-count").textContent = requests.received + requests.excised + requests.routed;
  at("finished-count").textContent = requests.erased;
  at("overdue").textContent = status.overdue;
  at("overdue-figure").classList.toggle("alarm", status.overdue > 0);
  at("set-aside").textContent = requests.set_aside;
  at("aside-figure").classList.toggle("alarm", requests.set_aside > 0);
  at("generation").textContent = status.generation;
  at("serving").textContent = `${status.shards.filter((shard) => !shard.excised).length} of ${status.shards.length}`;

  const due = status.due_at == null ? "" : status.due_at <= now ? ", due now" : `, next run in ${lasting(status.due_at - now)}`;
  at("plan").textContent = `plan ${status.plan}${due}`;
  fill("pending", pending.map((row) => {
    const left = row.deadline_at - now;
    const deadline = element("span", left < 0 ? `overdue by ${lasting(left)}` : `in ${lasting(left)}`, left < 0 ? "late" : "");
    deadline.title = moment(row.deadline_at);
    return [element("code", row.id), row.kind, state(row.state), moment(row.received_at), row.excised_at == null ? "not yet" : `after ${lasting(row.excised_at - row.received_at)}`, deadline];
  }));
  const reasons = Object.entries(status.set_aside).map(([id, reason]) => `${id} was set aside: ${reason}`);
  const none = pending.length === 0 ? ["None."] : [];
  const more = pending.length === LISTED ? [`The ${LISTED} oldest are shown.`] : [];
  at("pending-note").textContent = [...none, ...more, ...reasons].join(" ");
  fill("finished", finished.map((row) => [
    element("code", row.id), row.kind, moment(row.received_at), moment(row.finished_at), lasting(row.finished_at - row.received_at), String(row.generation), lookUpButton(row.id),
  ]));
  at("finished-note").textContent = finished.length === 0 ? "None yet." : finished.length === LISTED ? `The ${LISTED} newest are shown.` : "";

  const { stage, done, total } = status.progress;
  list("facts", [
    ["Guarantee", status.guarantee],
    ["Chosen from the log", status.chosen.join(", ") || "nothing"],
    ["Partition", `${status.partition}, ${status.shards.length} shards`],
    ["Data", `${status.n_interactions} interactions of ${status.n_users} users with ${status.n_items} items`],
    ["Doing", stage === "idle" ? "nothing, waits for requests" : `${stage} ${done} of ${total}`],
    ["Oldest pending", status.oldest_pending_seconds ? lasting(status.oldest_pending_seconds) : "none"],
    ["Next run", status.due_at == null ? "nothing waits" : `${moment(status.due_at)}, takes about ${lasting(status.predicted_seconds)}`],
    ...(status.last_error ? [["Last failure", element("span", status.last_error, "late")]] : []),
  ]);
  const largest = Math.max(1, ...status.shards.map((shard) => shard.interactions));
  at("shards").replaceChildren(...status.shards.map((shard) => {
    const row = element("li", undefined, shard.excised ? "excised" : "");
    const bar = element("span", undefined, "bar");
    const part = element("i");
    part.style.width = `${100 * shard.interactions / largest}%`;
    bar.append(part);
    row.append(element("span", shard.shard), bar, element("span", shard.excised ? "left out" : shard.interactions));
    return row;
  }));
}

async function refresh() {
  clearTimeout(timer);
  const asked = key;
  try {
    const answers = await Promise.all([
      ask("status"), ask(`erasures?limit=${LISTED}`), ask(`erasures?finished=true&limit=${LISTED}`), followed ? ask(`erasures/${followed}`) : null,
    ]);
    if (key !== asked) return;
    const [status, pending, finished, mine] = answers;
    show(status, pending, finished);
    if (mine) at("accepted-state").replaceWith(Object.assign(state(mine.state), { id: "accepted-state" }));
    at("open").hidden = false;
    at("locked").hidden = true;
    if (saidBy === "refresh") say("");
  } catch (problem) {
    if (key !== asked) return;
    if (problem.status === 401) {
      lock();
      say("This key is not known here.", "refresh");
      return;
    }
    say(problem.message, "refresh");
  }
  timer = setTimeout(refresh, REFRESH_MS);
}

// ---- doing ----------------------------------------------------------------------------------------------------------------

function lock() {
  key = null;
  followed = null;
  clearTimeout(timer);
  for (const id of ["open", "accepted", "receipt"]) at(id).hidden = true;
  at("locked").hidden = false;
  at("key").hidden = at("key-label").hidden = false;
  at("key-button").textContent = "Use key";
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (key !== null) {
    lock();
    at("key").focus();
    return;
  }
  const given = at("key").value.trim();
  if (!given) return;
  key = given;
  at("key").value = "";
  at("key").hidden = at("key-label").hidden = true;
  at("key-button").textContent = "Forget key";
  refresh();
});

for (const radio of document.querySelectorAll("input[name=what]")) {
  radio.addEventListener("change", () => {
    at("one-id").hidden = radio.value === "pairs";
    at("many-ids").hidden = radio.value !== "pairs";
  });
}

function wanted() {
  const what = document.querySelector("input[name=what]:checked").value;
  if (what !== "pairs") {
    const id = at("raw-id").value.trim();
    if (!id) throw new Error("Give an id.");
    return { [`${what}_id`]: id };
  }
  const lines = at("raw-pairs").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const pairs = lines.map((line) => line.split(",").map((id) => id.trim()));
  if (!pairs.length || pairs.some((pair) => pair.length !== 2 || !pair.every(Boolean))) throw new Error("Give one 'user id,item id' a line.");
  return { pairs };
}

at("erase-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const body = JSON.stringify(wanted());
    if (submission === null || submission.body !== body) submission = { body, idempotencyKey: newId() };
    const headers = { "Content-Type": "application/json", "Idempotency-Key": submission.idempotencyKey };
    const accepted = await ask("erasures", { method: "POST", headers, body });
    submission = null;
    followed = accepted.id;
    at("accepted-id").textContent = accepted.id;
    at("accepted-salt").textContent = accepted.salt ?? "given out when it was asked first";
    at("accepted-state").replaceWith(Object.assign(state(accepted.state), { id: "accepted-state" }));
    at("accepted").hidden = false;
    at("raw-id").value = at("raw-pairs").value = "";
    at("erasure-id").value = accepted.id;
    at("salt").value = accepted.salt ?? "";
    say("");
    refresh();
  } catch (problem) {
    say(problem.message);
  } finally {
    button.disabled = false;
  }
});

at("receipt-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const id = at("erasure-id").value.trim();
  const link = at("receipt-file");
  link.hidden = true;
  try {
    const receipt = await ask(`erasures/${encodeURIComponent(id)}/receipt`);
    receipt.salt = at("salt").value.trim() || null;
    at("receipt-said").textContent = `About ${receipt.kind === "pairs" ? "interactions" : `one ${receipt.kind}`}: ${receipt.pairs_erased} interactions erased.`;
    list("receipt-fields", [
      ["Guarantee", receipt.guarantee],
      ["Received", moment(receipt.received_at)],
      ["Not served", `after ${lasting(receipt.excised_at - receipt.received_at)}`],
      ["Restored", `after ${lasting(receipt.restored_at - receipt.received_at)}`],
      ["Files deleted", `after ${lasting(receipt.purged_at - receipt.received_at)}, ${receipt.purged.length} files`],
      ["Shards", receipt.shards_touched.join(", ") || "none"],
      ["Generation", String(receipt.generation)],
      ["Number", String(receipt.number)],
      ["Commitment", element("code", receipt.commitment)],
      ["Digest", element("code", receipt.digest)],
      ["Signature", receipt.signature ? element("code", receipt.signature) : "not signed"],
    ]);
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob([JSON.stringify(receipt, null, 1) + "\n"], { type: "application/json" }));
    link.download = `receipt-${receipt.request_id}.json`;
    link.textContent = receipt.salt ? "Save receipt with salt" : "Save receipt without salt";
    link.hidden = false;
  } catch (problem) {
    at("receipt-said").textContent = problem.message;
    list("receipt-fields", []);
  }
  at("receipt").hidden = false;
});
