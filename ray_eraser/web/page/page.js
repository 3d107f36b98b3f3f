import { drawRequests, drawShards } from "./pictures.js";

const REFRESH_MS = 2000;
const LISTED = 500; // erasures that the pictures know
const SHOWN = 10; // rows of a table, until all are asked for
const NAMED = 10; // pairs that the question names

let key = null; // kept in this variable only
let timer = null;
let followed = null; // the last erasure that was submitted
let submission = null; // {body, idempotencyKey}; sending it again after a failure repeats the same request
let lists = null; // {counts, pending, finished}; asked for again when the counts change
let shown = null; // the status on the screen
const unfolded = new Set(); // the tables that show all their rows

const at = (id) => document.getElementById(id);

function element(name, text, classes = "") {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

// ---- asking the server ------------------------------------------------------------------------------------------------------

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

let saidBy = null; // a refresh that works withdraws only what a refresh has said

function say(problem, by = "form") {
  saidBy = by;
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

// ---- words ------------------------------------------------------------------------------------------------------------------

const moment = (seconds) => (seconds == null ? "" : new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }));

function lasting(seconds) {
  const size = Math.abs(seconds);
  if (size < 1) return `${size.toFixed(2)} s`;
  if (size < 120) return `${size.toFixed(size < 10 ? 1 : 0)} s`;
  if (size < 7200) return `${Math.round(size / 60)} min`;
  return size < 172800 ? `${Math.round(size / 3600)} h` : `${Math.round(size / 86400)} d`;
}

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const STATES = { received: "received", excised: "out of service", routed: "training", erased: "erased", done: "done", set_aside: "set aside" };
const state = (name) => element("span", STATES[name] ?? name, `state ${name}`);

// ---- showing ----------------------------------------------------------------------------------------------------------------

/** Fills a table. An unchanged table stays as it is, so that a selection in it survives; a changed one keeps the focus. */
function fill(table, rows) {
  const names = [...at(table).tHead.rows[0].cells];
  const made = rows.map((cells) => {
    const row = element("tr");
    row.setAttribute("role", "row");
    cells.forEach((cell, column) => {
      const td = element("td", undefined, names[column].className);
      td.setAttribute("role", "cell");
      td.dataset.name = names[column].textContent;
      td.append(cell);
      row.append(td);
    });
    return row;
  });
  const body = at(table).tBodies[0];
  if (body.innerHTML !== made.map((row) => row.outerHTML).join("")) {
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    body.replaceChildren(...made);
    if (focused) body.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }
  at(table).hidden = rows.length === 0;
}

function list(dl, entries) {
  at(dl).replaceChildren(...entries.flatMap(([name, value]) => {
    const dd = element("dd");
    dd.append(value);
    return [element("dt", name), dd];
  }));
}

function button(text, id, label, act) {
  const made = element("button", text, "quiet");
  made.type = "button";
  made.dataset.id = id;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => act(id, made));
  return made;
}

function lookUp(id) {
  at("erasure-id").value = id;
  at("salt").value = "";
  at("receipt-form").requestSubmit();
  at("receipt-form").scrollIntoView({ behavior: "smooth", block: "center" });
}

function show(status) {
  shown = status;
  showFigures(status);
  showCost(status);
  showErasures(status);
  showPictures(status);
  showDeployment(status);
}

const waitingIn = (requests) => requests.received + requests.excised + requests.routed;

function showFigures({ deployment, requests, overdue, generation, shards }) {
  at("deployment").textContent = deployment;
  at("pending-count").textContent = waitingIn(requests);
  at("finished-count").textContent = requests.erased;
  at("overdue").textContent = overdue;
  at("overdue-figure").classList.toggle("alarm", overdue > 0);
  at("set-aside").textContent = requests.set_aside;
  at("aside-figure").classList.toggle("alarm", requests.set_aside > 0);
  at("generation").textContent = generation;
  at("serving").textContent = `${shards.filter((shard) => !shard.excised).length} of ${shards.length}`;
}

function showCost(status) {
  const { shards, requests, now, progress } = status;
  const out = shards.filter((shard) => shard.excised).length;
  at("left-out").textContent = `${out} of ${shards.length} (${Math.round(100 * out / shards.length)} %)`;
  at("left-out-bar").firstChild.style.width = `${100 * out / shards.length}%`;
  const waiting = waitingIn(requests);
  at("waiting").textContent = waiting;
  at("oldest").textContent = waiting ? `the oldest for ${lasting(status.oldest_pending_seconds)}` : "";
  const runs = progress.stage !== "idle";
  const planned = status.due_at == null ? "none" : status.due_at <= now ? "due now" : `in ${lasting(status.due_at - now)}`;
  at("next-run").textContent = runs ? "running" : planned;
  at("predicted").textContent = waiting ? `takes about ${lasting(status.predicted_seconds)}` : "";
  at("run-now").disabled = waiting === 0;
  if (waiting === 0) at("run-said").textContent = "";
  fill("aside-rows", Object.entries(status.set_aside).map(([id, reason]) => [
    element("code", id), reason, button("Retry", id, `Retry request ${id}`, retry),
  ]));
  at("aside").hidden = requests.set_aside === 0;
}

/** The rows of a table that are on the screen; sets its button to show all of them, or a few again. */
function rowsOf(table, rows) {
  const all = unfolded.has(table), more = at(`${table}-more`);
  more.hidden = rows.length <= SHOWN;
  more.textContent = all ? `Show ${SHOWN}` : `Show all ${rows.length}`;
  more.setAttribute("aria-expanded", all);
  return all ? rows : rows.slice(0, SHOWN);
}

function showErasures({ now, plan }) {
  const { pending, finished } = lists;
  at("plan").textContent = `plan ${plan}`;
  fill("pending", rowsOf("pending", pending).map((row) => {
    const left = row.deadline_at - now;
    const deadline = element("span", left < 0 ? `overdue by ${lasting(left)}` : `in ${lasting(left)}`, left < 0 ? "late" : "");
    deadline.title = moment(row.deadline_at);
    const excised = row.excised_at == null ? "not yet" : `after ${lasting(row.excised_at - row.received_at)}`;
    return [element("code", row.id), row.kind, state(row.state), moment(row.received_at), excised, deadline];
  }));
  const note = (rows, none, order) => (rows.length === 0 ? none : rows.length === LISTED ? `The list ends with the ${LISTED} ${order}.` : "");
  at("pending-note").textContent = note(pending, "None.", "oldest");
  fill("finished", rowsOf("finished", finished).map((row) => [
    element("code", row.id), row.kind, moment(row.received_at), moment(row.finished_at), lasting(row.finished_at - row.received_at),
    String(row.generation), button("receipt", row.id, `Receipt of erasure ${row.id}`, lookUp),
  ]));
  at("finished-note").textContent = note(finished, "None yet.", "newest");
}

/** Distinct shards of the erasures of each generation, the oldest generation first. */
function shardsByGeneration(finished) {
  const generations = new Map();
  // A list that was cut may hold only a part of its oldest generation.
  const oldest = finished.length === LISTED ? finished.at(-1).generation : null;
  for (const row of finished.filter((each) => each.shards && each.generation !== oldest)) {
    generations.set(row.generation, new Set([...(generations.get(row.generation) ?? []), ...row.shards]));
  }
  return [...generations].sort(([a], [b]) => a - b).map(([generation, shards]) => [String(generation), shards.size]);
}

function showPictures({ now, shards }) {
  const { pending, finished } = lists;
  const rows = [...finished, ...pending];
  drawRequests(at("requests-picture"), rows, Math.ceil(now / 10) * 10);
  const cut = finished.length === LISTED || pending.length === LISTED ? ` The picture knows the newest ${LISTED} finished and the oldest ${LISTED} pending ones.` : "";
  at("requests-note").textContent = (rows.length ? "“Out of service”: no recommendation depends on the data. “Restored”: the new generation serves." : "None yet.") + cut;
  const out = shards.filter((shard) => shard.excised).length;
  drawShards(at("shards-picture"), [...shardsByGeneration(finished), ["now", out]], shards.length);
  at("shards-note").textContent = "How many shards stopped serving for the erasures of each generation, until it was published.";
}

function showDeployment(status) {
  const { stage, done, total } = status.progress;
  list("facts", [
    ["Guarantee", status.guarantee],
    ["Chosen from the log", status.chosen.join(", ") || "nothing"],
    ["Partition", `${status.partition}, ${status.shards.length} shards`],
    ["Data", `${status.n_interactions} interactions of ${status.n_users} users with ${status.n_items} items`],
    ["Work", stage === "idle" ? "none" : `${stage} ${done} of ${total}`],
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
    const [status, mine] = await Promise.all([ask("status"), followed ? ask(`erasures/${followed}`) : null]);
    const counts = JSON.stringify([status.requests, status.generation]);
    if (lists?.counts !== counts) {
      const [pending, finished] = await Promise.all([ask(`erasures?limit=${LISTED}`), ask(`erasures?finished=true&limit=${LISTED}`)]);
      if (key === asked) lists = { counts, pending, finished };
    }
    if (key !== asked) return;
    at("open").hidden = false;
    at("locked").hidden = true;
    show(status);
    if (mine) at("accepted-state").replaceWith(Object.assign(state(mine.state), { id: "accepted-state" }));
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

new ResizeObserver(() => {
  if (shown) showPictures(shown);
}).observe(at("requests-picture"));

for (const table of ["pending", "finished"]) {
  at(`${table}-more`).addEventListener("click", () => {
    if (!unfolded.delete(table)) unfolded.add(table);
    showErasures(shown);
  });
}

// ---- the key ----------------------------------------------------------------------------------------------------------------

function lock() {
  key = followed = lists = shown = null;
  clearTimeout(timer);
  at("confirm").close();
  for (const id of ["open", "accepted", "receipt", "key-state"]) at(id).hidden = true;
  for (const id of ["raw-id", "raw-pairs", "erasure-id", "salt"]) at(id).value = "";
  at("locked").hidden = false;
  at("deployment").textContent = "";
  at("key").focus();
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = at("key").value;
  at("key").value = "";
  const asked = key;
  at("key-button").disabled = true;
  try {
    const { role } = await ask("key");
    at("role").textContent = role;
    document.body.classList.toggle("reads", role !== "erase");
    at("key-state").hidden = false;
    say("");
    await refresh();
    if (key === asked && !at("open").hidden) at("open").focus();
  } catch (problem) {
    lock();
    say(problem.status === 401 ? "This key is not known here." : problem.message);
  } finally {
    at("key-button").disabled = false;
  }
});

at("forget-key").addEventListener("click", () => {
  lock();
  say("");
});

// ---- erasures ---------------------------------------------------------------------------------------------------------------

for (const radio of document.querySelectorAll("input[name=what]")) {
  radio.addEventListener("change", () => {
    at("one-id").hidden = radio.value === "pairs";
    at("many-ids").hidden = radio.value !== "pairs";
  });
}

/** The fields of a line of a CSV file (RFC 4180); null if its quotes do not match. No field loses its blanks. */
function fieldsOf(line) {
  const field = /(?:"((?:[^"]|"")*)"|([^",]*))(,|$)/y;
  const found = [];
  for (;;) {
    const match = field.exec(line);
    if (match === null) return null;
    found.push(match[1] === undefined ? match[2] : match[1].replaceAll('""', '"'));
    if (match[3] === "") return found;
  }
}

/** What the form asks to erase: the body of the request, the question, and lists of the ids in it. */
function wanted() {
  const what = document.querySelector("input[name=what]:checked").value;
  if (what !== "pairs") {
    const id = at("raw-id").value;
    if (id === "") throw new Error("Give an id.");
    return { body: { [`${what}_id`]: id }, question: `Erase this ${what}?`, subject: `all interactions of this ${what}`, ids: [[id]] };
  }
  const lines = at("raw-pairs").value.split("\n").filter((line) => line !== "");
  const pairs = lines.map(fieldsOf);
  const wrong = pairs.findIndex((pair) => pair?.length !== 2 || pair.includes(""));
  if (!pairs.length || wrong >= 0) throw new Error(`Line ${wrong + 1 || 1} is not 'user id,item id'. Quote an id with a comma or a quote as in a CSV file.`);
  const question = pairs.length === 1 ? "Erase this interaction?" : `Erase these ${pairs.length} interactions?`;
  return { body: { pairs }, question, subject: pairs.length === 1 ? "this interaction" : "these interactions", ids: pairs };
}

at("erase-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    const asked = wanted();
    const kind = at("erase-form").elements.what.value;
    at("confirm-title").textContent = asked.question;
    const lines = asked.ids.slice(0, NAMED).map((ids) => {
      const line = element("li");
      const names = ids.length === 2 ? ["user", "item"] : [kind];
      ids.forEach((id, k) => line.append(k ? ", " : "", `${names[k]} `, element("code", id)));
      return line;
    });
    if (asked.ids.length > NAMED) lines.push(element("li", `and ${asked.ids.length - NAMED} more`));
    at("confirm-what").replaceChildren(...lines);
    at("confirm-blanks").hidden = !asked.ids.flat().some((id) => /^\s|\s$/.test(id));
    at("confirm-end").textContent = `The deployment forgets ${asked.subject}. This cannot be undone.`;
    submission = submission?.body === JSON.stringify(asked.body) ? submission : { body: JSON.stringify(asked.body), idempotencyKey: newId() };
    say("");
    at("confirm").showModal();
  } catch (problem) {
    say(problem.message);
  }
});

at("confirm-no").addEventListener("click", () => at("confirm").close());

at("confirm-yes").addEventListener("click", async () => {
  at("confirm").close();
  const asking = at("erase-form").querySelector("button");
  asking.disabled = true;
  try {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": submission.idempotencyKey };
    const accepted = await ask("erasures", { method: "POST", headers, body: submission.body });
    submission = null;
    followed = accepted.id;
    at("accepted-id").textContent = accepted.id;
    at("accepted-salt").textContent = accepted.salt ?? "given with the first answer";
    at("accepted-state").replaceWith(Object.assign(state(accepted.state), { id: "accepted-state" }));
    const absent = accepted.pairs_absent ?? 0;
    at("accepted-absent").textContent = absent ? `${absent} of the interactions ${absent === 1 ? "was" : "were"} not here.` : "";
    at("accepted").hidden = false;
    at("raw-id").value = at("raw-pairs").value = "";
    at("erasure-id").value = accepted.id;
    at("salt").value = accepted.salt ?? "";
    say("");
    refresh();
  } catch (problem) {
    say(problem.message);
  } finally {
    asking.disabled = false;
  }
});

at("run-now").addEventListener("click", async () => {
  try {
    const { waiting } = await ask("run", { method: "POST" });
    at("run-said").textContent = `Started for ${waiting} request${waiting === 1 ? "" : "s"}.`;
    refresh();
  } catch (problem) {
    say(problem.message);
  }
});

async function retry(id, pressed) {
  pressed.disabled = true;
  try {
    await ask(`erasures/${encodeURIComponent(id)}/retry`, { method: "POST" });
    refresh();
  } catch (problem) {
    say(problem.message);
    pressed.disabled = false;
  }
}

// ---- receipts ---------------------------------------------------------------------------------------------------------------

at("receipt-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const id = at("erasure-id").value;
  const link = at("receipt-file");
  link.hidden = true;
  try {
    const receipt = await ask(`erasures/${encodeURIComponent(id)}/receipt`);
    receipt.salt = at("salt").value || null;
    at("receipt-said").textContent = `About ${receipt.kind === "pairs" ? "interactions" : `one ${receipt.kind}`}: ${receipt.pairs_erased} interactions erased.`;
    list("receipt-fields", [
      ["Guarantee", receipt.guarantee],
      ["Received", moment(receipt.received_at)],
      ["Out of service", `after ${lasting(receipt.excised_at - receipt.received_at)}`],
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
