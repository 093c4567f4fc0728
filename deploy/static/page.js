// The operator's page. Everything that comes from the server is shown as text, never as markup.

const SHOWN = 40; // images in the list
const STRIP = 120; // scores in the strip
const SILENT_MS = 30000; // the server says something every 10 s
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const lines = new Map(); // name -> status
const state = { line: null, mode: "live", rows: [], rejects: [], selected: null, heat: false, follow: true, asked: 0 };
const thumbnails = new Map(); // line and id -> address of a small picture in memory

class Refused extends Error {}

function make(tag, text, cls) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

const number = (value) => (typeof value === "number" ? value.toPrecision(4) : "–");
const path = (line, rest) => `/lines/${encodeURIComponent(line)}/${rest}`;

// --- the server

let login = null;

function askToken(why) {
  login ??= new Promise((done, refuse) => {
    const dialog = $("login");
    $("not-taken").textContent = why;
    $("not-taken").hidden = !why;
    dialog.returnValue = "";
    dialog.onclose = () => {
      login = null;
      const given = $("token").value.trim();
      $("token").value = "";
      if (dialog.returnValue === "token" && given) {
        sessionStorage.setItem("everline-token", given);
        done();
      } else {
        refuse(new Refused(`this needs ${why ? "another" : "a"} token; nothing was changed.`));
      }
    };
    dialog.showModal();
  });
  return login;
}

async function ask(address, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("everline-token");
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(address, { ...options, headers });
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    if (response.status === 401) {
      await askToken(token ? "It does not know that token." : "");
    } else if (token && error?.code === "forbidden") {
      await askToken(`${error.message} Give another one.`);
    } else {
      throw new Refused(error?.message ?? `the server answered ${response.status}.`);
    }
  }
}

const get = async (address) => (await ask(address)).json();
const post = async (address, body) =>
  (await ask(address, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();

async function trying(work) {
  try {
    await work();
    say("");
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server does not answer; nothing was changed.");
  }
}

// --- events: fetched, since an EventSource cannot carry a token

function connected(yes, text) {
  $("connection").textContent = text;
  $("connection").classList.toggle("away", !yes);
  document.body.classList.toggle("away", !yes);
}

async function listen() {
  for (let pause = 1000; ; pause = Math.min(2 * pause, 15000)) {
    const stop = new AbortController();
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => stop.abort(), SILENT_MS);
    };
    try {
      alive();
      const response = await ask("/events", { signal: stop.signal });
      connected(true, "live");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      let fresh = true;
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        pause = 1000;
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) fresh = take(part, fresh);
      }
      connected(false, "connection lost, trying again ...");
    } catch (error) {
      connected(false, error instanceof Refused ? error.message : "the server is away, trying again ...");
    }
    clearTimeout(watchdog);
    await new Promise((done) => setTimeout(done, pause));
  }
}

function take(part, fresh) {
  const kind = /^event: (.*)$/m.exec(part)?.[1];
  const data = /^data: (.*)$/m.exec(part)?.[1];
  if (!kind || !data) return fresh;
  const content = JSON.parse(data);
  if (kind === "line") {
    const before = lines.get(content.line);
    lines.set(content.line, content);
    showLines();
    if (content.line === state.line) {
      showTrouble();
      if (fresh) load();
      else if (before?.version !== content.version || before?.serving_version !== content.serving_version) loadVersions();
      return false;
    }
  } else if (kind === "image") {
    if (content.verdict === "reject" && !content.label) {
      $("rejects").textContent = `Reject on line ${content.line}: ${content.id}, score ${number(content.score)}`;
    }
    if (content.line === state.line) merge(content);
  }
  return fresh;
}

// --- all lines

function showLines() {
  const focused = document.activeElement?.dataset?.line;
  const cards = [...lines.values()].sort((a, b) => a.line.localeCompare(b.line)).map((one) => {
    const card = make("button");
    card.dataset.line = one.line;
    card.append(make("strong", one.line));
    const well = one.state === "running";
    card.append(make("span", `${one.state}${one.problem ? `: ${one.problem}` : ""}`, well ? "ok-text" : "bad-text"));
    const drifting = one.drift && one.drift.state !== "none";
    if (well) {
      const seen = one.inspected ?? 0;
      const share = seen ? `${((100 * one.rejected) / seen).toFixed(1)} %` : "–";
      card.append(make("span", `rejects ${share} of ${seen}`));
      card.append(make("span", watched(one.drift), drifting ? "bad-text" : ""));
      card.append(make("span", `${one.serving_version ? `version ${one.serving_version}` : "no version yet"}, ${one.method}`));
      if (one.advice) card.append(make("span", one.advice, "bad-text"));
      if (one.held) card.append(make("span", `held: ${one.held}`));
    }
    card.classList.toggle("bad", !well || Boolean(drifting));
    card.setAttribute("aria-current", String(one.line === state.line));
    card.onclick = () => {
      location.hash = encodeURIComponent(one.line);
    };
    const item = make("li");
    item.append(card);
    return item;
  });
  $("lines").replaceChildren(...cards);
  if (focused) document.querySelector(`[data-line="${CSS.escape(focused)}"]`)?.focus();
}

function watched(drift) {
  const since = typeof drift?.since === "number" ? ` since record ${drift.since}` : "";
  return { none: "no drift", drift: `drift${since}`, defects: `many rejects${since}` }[drift?.state] ?? "drift not watched";
}

function showTrouble() {
  const one = lines.get(state.line);
  const well = !one || one.state === "running";
  $("trouble").hidden = well;
  $("trouble").textContent = well ? "" : `This line is ${one.state}. ${one.problem ?? "What is shown may be old."}`;
}

// --- one line

function choose() {
  let name = "";
  try {
    name = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;
  }
  if (!name || name === state.line) return;
  Object.assign(state, { line: name, rows: [], rejects: [], selected: null, follow: true });
  for (const address of thumbnails.values()) address.then((url) => url && URL.revokeObjectURL(url));
  thumbnails.clear();
  $("line").hidden = false;
  $("line-title").textContent = `Line ${name}`;
  $("versions").replaceChildren();
  showLines();
  showTrouble();
  load();
}

function load() {
  const line = state.line;
  return trying(async () => {
    const [all, rejects] = await Promise.all([
      get(path(line, `images?limit=${STRIP}`)),
      get(path(line, "images?limit=500&verdict=reject")),
    ]);
    if (line !== state.line) return;
    state.rows = all.images;
    state.rejects = rejects.images;
    show();
    await loadVersions();
  });
}

function merge(row) {
  for (const list of row.verdict === "reject" ? [state.rows, state.rejects] : [state.rows]) {
    const at = list.findIndex((one) => one.record === row.record);
    if (at >= 0) list[at] = row;
    else list.unshift(row);
    list.sort((a, b) => b.record - a.record);
  }
  state.rows.length = Math.min(state.rows.length, STRIP);
  state.rejects.length = Math.min(state.rejects.length, 500);
  show();
}

const open = () => state.rejects.filter((row) => !row.label);
const listed = () => (state.mode === "live" ? state.rows.slice(0, SHOWN) : open());

function show() {
  const list = listed();
  const kept = list.find((row) => row.record === state.selected?.record);
  const next = kept && !(state.mode === "live" && state.follow) ? kept : list[0] ?? null;
  const waiting = open().length;
  $("waiting").textContent = `(${waiting})`;
  $("none").hidden = list.length > 0;
  $("none").textContent = state.mode === "live" ? "No images yet." : "Nothing waits to be looked at.";
  showList(list, next);
  showStrip();
  select(next, false);
}

function showList(list, chosen) {
  const focused = $("images").contains(document.activeElement);
  const old = new Map([...$("images").children].map((item) => [item.dataset.key, item]));
  const items = list.slice(0, 100).map((row) => {
    const key = JSON.stringify([state.line, row.record, row.label]);
    const item = old.get(key) ?? entry(row, key);
    const current = row.record === chosen?.record;
    item.firstChild.setAttribute("aria-current", String(current));
    item.firstChild.tabIndex = current ? 0 : -1;
    return item;
  });
  $("images").replaceChildren(...items);
  if (focused) $("images").querySelector('[aria-current="true"]')?.focus();
}

function entry(row, key) {
  const item = make("li");
  const button = make("button", undefined, row.verdict === "reject" ? "reject" : "");
  const picture = make("img");
  picture.alt = "";
  thumbnail(row.id).then((url) => {
    if (url) picture.src = url;
  });
  button.append(picture, make("span", `${row.verdict} ${number(row.score)}`, row.verdict === "reject" ? "bad-text" : ""));
  button.append(make("span", row.id));
  if (row.label) button.append(make("span", `said: ${row.label}`));
  button.onclick = () => {
    state.follow = state.mode === "live" && row.record === state.rows[0]?.record;
    select(row, true);
  };
  item.dataset.key = key;
  item.append(button);
  return item;
}

function thumbnail(id) {
  const key = JSON.stringify([state.line, id]);
  if (!thumbnails.has(key)) {
    thumbnails.set(key, picture(path(state.line, `image?side=160&id=${encodeURIComponent(id)}`)).catch(() => ""));
    if (thumbnails.size > 800) {
      const [oldest, address] = thumbnails.entries().next().value;
      thumbnails.delete(oldest);
      address.then((url) => url && URL.revokeObjectURL(url));
    }
  }
  return thumbnails.get(key);
}

const picture = async (address) => URL.createObjectURL(await (await ask(address)).blob());

function select(row, byHand) {
  const before = state.selected;
  state.selected = row;
  $("viewer").hidden = !row;
  if (!row) return;
  $("caption").textContent = row.id;
  const said = row.label ? `, said: ${row.label}${row.by ? ` by ${row.by}` : ""}` : "";
  const when = new Date(row.time_ns / 1e6).toLocaleString();
  $("facts").textContent =
    `${row.verdict}, score ${number(row.score)} (threshold ${number(row.threshold)}), version ${row.version ?? "–"}, ` +
    `record ${row.record}, ${when}${said}`;
  $("facts").className = row.verdict === "reject" ? "bad-text" : "";
  if (byHand) showList(listed(), row);
  if (before?.record !== row.record || byHand) showPicture();
}

async function showPicture() {
  const row = state.selected;
  const asked = ++state.asked;
  const what = state.heat ? "image/map?id=" : "image?side=1024&id=";
  try {
    const url = await picture(path(state.line, what + encodeURIComponent(row.id)));
    if (asked !== state.asked) {
      URL.revokeObjectURL(url);
      return;
    }
    if ($("picture").src) URL.revokeObjectURL($("picture").src);
    $("picture").src = url;
    $("picture").alt = `${state.heat ? "Heatmap over image" : "Image"} ${row.id}`;
    $("picture").dataset.shows = state.heat ? "map" : "image";
  } catch (error) {
    if (asked !== state.asked) return;
    $("picture").removeAttribute("src");
    $("picture").alt = error instanceof Refused ? error.message : "The picture cannot be had just now.";
  }
}

// --- the strip of scores

function shape(tag, attributes, cls) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.setAttribute("class", cls);
  return node;
}

function showStrip() {
  const rows = state.rows.filter((row) => typeof row.score === "number").reverse();
  const values = rows.flatMap((row) => (typeof row.threshold === "number" ? [row.score, row.threshold] : [row.score]));
  const low = Math.min(...values);
  const high = Math.max(...values);
  const x = (n) => 1000 * ((n + 0.5) / Math.max(rows.length, 30));
  const y = (value) => 130 - (120 * (value - low)) / (high - low || 1);
  const marks = [];
  rows.forEach((row, n) => {
    if (typeof row.threshold === "number") {
      const half = 500 / Math.max(rows.length, 30);
      const at = y(row.threshold);
      marks.push(shape("line", { x1: x(n) - half, x2: x(n) + half, y1: at, y2: at }, "threshold"));
    }
    const size = row.verdict === "reject" ? 9 : 5; // by shape too, not by colour alone
    const spot = { x: x(n) - size / 4, y: y(row.score) - size / 2, width: size / 2, height: size };
    marks.push(shape("rect", spot, row.verdict === "reject" ? "reject" : "pass"));
  });
  $("strip").replaceChildren(...marks);
  const rejects = rows.filter((row) => row.verdict === "reject").length;
  const last = rows.at(-1);
  $("strip").setAttribute(
    "aria-label",
    last
      ? `The last ${rows.length} scores, ${rejects} of them rejects; the last is ${number(last.score)}, threshold ${number(last.threshold)}.`
      : "No scores yet.",
  );
}

// --- what an operator does

function label(word) {
  const row = state.selected;
  const line = state.line;
  if (!row) return;
  trying(async () => {
    const list = listed();
    const at = list.findIndex((one) => one.record === row.record);
    const by = $("by").value.trim();
    await post(path(line, "feedback"), { id: row.id, label: word, by });
    if (line !== state.line) return;
    if (state.mode === "quarantine" && state.selected?.record === row.record) select(list[at + 1] ?? list[at - 1] ?? null, false);
    merge({ ...row, label: word, by });
    if (state.selected) showPicture();
  });
}

function move(step) {
  const list = listed().slice(0, 100);
  const at = list.findIndex((row) => row.record === state.selected?.record);
  const row = list[Math.min(Math.max(at + step, 0), list.length - 1)];
  if (!row) return;
  state.follow = state.mode === "live" && row.record === list[0].record;
  select(row, true);
  $("images").querySelector('[aria-current="true"]')?.focus();
}

function heat() {
  state.heat = !state.heat;
  $("heat").setAttribute("aria-pressed", String(state.heat));
  if (state.selected) showPicture();
}

function turn(mode) {
  Object.assign(state, { mode, follow: mode === "live", selected: null });
  $("show-live").setAttribute("aria-pressed", String(mode === "live"));
  $("show-quarantine").setAttribute("aria-pressed", String(mode === "quarantine"));
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  if (document.querySelector("dialog[open]") || !state.line) return;
  const does = {
    ArrowRight: () => move(1), ArrowDown: () => move(1), ArrowLeft: () => move(-1), ArrowUp: () => move(-1),
    o: () => label("ok"), d: () => label("defect"), h: heat,
  }[event.key];
  if (!does || event.repeat && event.key.length === 1) return;
  if (event.key.startsWith("Arrow") && event.target !== document.body && !$("images").contains(event.target)) return;
  event.preventDefault();
  does();
});

// --- versions

async function loadVersions() {
  const line = state.line;
  try {
    const { versions } = await get(path(line, "versions"));
    if (line !== state.line) return;
    $("versions").replaceChildren(...versions.map((one) => versionRow(line, one)));
  } catch (error) {
    if (!(error instanceof Refused)) return;
    const cell = make("td", error.message);
    cell.colSpan = 5;
    const row = make("tr");
    row.append(cell);
    $("versions").replaceChildren(row);
  }
}

function versionRow(line, one) {
  const row = make("tr");
  const texts = [one.version, one.aliases.join(", "), one.images_learned ?? "–", number(one.threshold)];
  row.append(...texts.map((text) => make("td", text)));
  const cell = make("td");
  if (!one.aliases.includes("current")) {
    const button = make("button", "Make current");
    button.setAttribute("aria-label", `Make version ${one.version} current`);
    button.onclick = () => rollback(line, one.version);
    cell.append(button);
  }
  row.append(cell);
  return row;
}

function rollback(line, version) {
  $("question").textContent =
    `Make version ${version} of line ${line} current? It gives the verdicts at once. The line goes on learning, and its ` +
    "next version becomes current again.";
  $("confirm").showModal();
  $("no").onclick = () => $("confirm").close();
  $("yes").onclick = () => {
    $("confirm").close();
    trying(async () => {
      await post(path(line, "rollback"), { version });
      await loadVersions();
    });
  };
}

$("ok").onclick = () => label("ok");
$("defect").onclick = () => label("defect");
$("heat").onclick = heat;
$("show-live").onclick = () => turn("live");
$("show-quarantine").onclick = () => turn("quarantine");
$("by").value = sessionStorage.getItem("everline-by") ?? "";
$("by").onchange = () => sessionStorage.setItem("everline-by", $("by").value);
$("without").onclick = () => $("login").close();
window.addEventListener("hashchange", choose);
choose();
listen();
