// The server's page. Text from the server is only ever set as text, never as markup.

const POLL_MS = 2000;
const $ = (id) => document.getElementById(id);
let key = "";
let state = null;
let versionsSeen = new Map();

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

async function call(path, body) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "content-type": "application/json" } } : { headers };
  const answer = await fetch(path, { ...options, cache: "no-store" });
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error?.message ?? answer.statusText), { status: answer.status });
  return found;
}

// ---- what is shown ----

function show(next) {
  state = next;
  const { server, status } = next;
  $("model").textContent = `${server.model} · ${server.architecture} · ${server.dtype} on ${server.device}`;
  showStatus(status);
  showChoices();
  showAliases(next);
  showVersions(next.tasks);
  showMoves(next.moves);
  showEngine(server, status);
}

function showStatus({ store, refused }) {
  const element = $("status");
  let [kind, text] = ["good", `Following commit ${store.commit}`];
  if (store.problem) [kind, text] = ["warn", `Store unreachable for ${seconds(store.staleness_s)}: serving what was last known`];
  if (store.is_stale) kind = "bad";
  if (refused.length) [kind, text] = ["bad", `${text} · ${refused.length} refused`];
  element.className = `status ${kind}`;
  if (element.textContent !== text) element.textContent = text;
  element.title = store.problem ?? "";
}

function refOf(task, alias) {
  return alias === "production" ? task : `${task}@${alias}`;
}

function servedAliases() {
  return state.tasks.flatMap((task) => task.aliases.filter((each) => each.version).map((each) => ({ ...each, ref: refOf(task.name, each.alias) })));
}

function showChoices() {
  const served = servedAliases();
  const signature = JSON.stringify(served.map(({ ref, fields }) => [ref, fields]));
  if ($("choices").dataset.signature === signature) return;
  const checked = new Set([...document.querySelectorAll("#choices :checked")].map((box) => box.value));
  $("choices").dataset.signature = signature;
  $("choices").replaceChildren(
    ...(served.length ? [] : [make("p", { className: "quiet", textContent: "No alias is served yet." })]),
    ...served.map(({ ref }, at) =>
      make("label", { className: "choice" }, make("input", { type: "checkbox", name: "ref", value: ref, checked: checked.size ? checked.has(ref) : at === 0, onchange: showFields }), ref)),
  );
  showFields();
}

function chosen() {
  const refs = new Set([...document.querySelectorAll("#choices :checked")].map((box) => box.value));
  return servedAliases().filter(({ ref }) => refs.has(ref));
}

// One box serves every chosen task of a single field; tasks of several fields get a box per field name.
function showFields() {
  const tasks = chosen();
  const names = new Set(tasks.flatMap((task) => (task.fields.length === 1 ? ["text"] : task.fields)));
  const kept = new Map([...document.querySelectorAll("#fields textarea")].map((area) => [area.name, area.value]));
  $("fields").replaceChildren(
    ...[...names].map((name) =>
      make("div", { className: "field" }, make("label", { htmlFor: `field-${name}`, textContent: name }), make("textarea", { id: `field-${name}`, name, rows: 2, value: kept.get(name) ?? "" }))),
  );
  $("ask").disabled = tasks.length === 0;
}

function showAliases({ tasks, total_tasks: total }) {
  const next = new Map();
  const rows = tasks.flatMap((task) =>
    task.aliases.map((each, at) => {
      const name = `${task.name}@${each.alias}`;
      next.set(name, each.version);
      const has_moved = versionsSeen.has(name) && versionsSeen.get(name) !== each.version;
      return make(
        "tr",
        { className: has_moved ? "moved" : "" },
        make("td", { textContent: at === 0 ? task.name : "" }),
        make("td", { textContent: each.alias }),
        make("td", {}, each.version ? String(each.version) : "–", each.refused ? make("span", { className: "refused", textContent: `version ${each.refused.version} refused: ${each.refused.reason}` }) : null),
        make("td", { className: "mono", textContent: each.digest ? each.digest.slice(7, 19) : "", title: each.digest ?? "" }),
        make("td", { textContent: each.kind ?? "" }),
        make("td", {}, each.tier ? make("span", { className: `pill ${each.tier === "device" ? "good" : ""}`, textContent: each.tier }) : ""),
        make("td", { textContent: each.published ? `${when(each.published.at)} by ${each.published.actor}` : "" }),
      );
    }),
  );
  versionsSeen = next;
  $("aliases").replaceChildren(...rows);
  $("more").textContent = tasks.length < total ? `${tasks.length} of ${total} tasks shown; find the others by name.` : "";
}

function showVersions(tasks) {
  const open = new Set([...document.querySelectorAll("#versions details[open]")].map((each) => each.dataset.task));
  $("versions").replaceChildren(
    ...tasks.map((task) => {
      const aliasesOf = (number) => task.aliases.filter((each) => each.version === number).map((each) => each.alias);
      const rows = task.versions.map((each) =>
        make(
          "tr",
          {},
          make("td", { textContent: String(each.number) }),
          make("td", { className: "mono", textContent: each.digest.slice(7, 19), title: each.digest }),
          make("td", {}, ...aliasesOf(each.number).map((alias) => make("span", { className: "pill good", textContent: alias }))),
          make("td", { textContent: each.is_expired ? "expired" : each.has_passed_gate ? "gate passed" : "" }),
          make("td", { textContent: `${when(each.at)} by ${each.actor}` }),
        ));
      const head = make("tr", {}, ...["Version", "Digest", "Aliases", "State", "Published"].map((text) => make("th", { scope: "col", textContent: text })));
      const details = make("details", { open: open.has(task.name) }, make("summary", { textContent: `${task.name} · ${task.version_count} version${task.version_count === 1 ? "" : "s"}` }), make("div", { className: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
      details.dataset.task = task.name;
      return details;
    }),
  );
}

function showMoves(moves) {
  $("moves").replaceChildren(
    ...(moves.length ? [] : [make("li", { className: "quiet", textContent: "No alias has moved yet." })]),
    ...moves.map((move) => {
      const text = `${move.task}@${move.alias}: ${move.before ?? "nothing"} → ${move.after ?? "deleted"}`;
      const by = `${move.actor}${move.reason ? ` · ${move.reason}` : ""}`;
      return make("li", {}, make("time", { className: "quiet", dateTime: move.at, textContent: when(move.at) }), make("span", {}, text, " ", make("span", { className: "quiet", textContent: by }), " ", move.forced ? make("span", { className: "pill warn", textContent: "forced" }) : null));
    }),
  );
}

function showEngine(server, status) {
  const facts = {
    "Waiting inputs": status.queued,
    "Answers being generated": status.running,
    "Prompts on the device": bytes(status.bank_bytes.device),
    "Prompts in host memory": bytes(status.bank_bytes.host),
    "Prompts on disk": bytes(status.bank_bytes.disk),
    "Store last seen": `${seconds(status.store.staleness_s)} ago`,
    "How prompts are used": server.decoding,
    "promptstore": server.version,
  };
  $("engine").replaceChildren(...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: String(value) }))));
}

// ---- asking ----

async function ask(event) {
  event.preventDefault();
  const values = new Map([...document.querySelectorAll("#fields textarea")].map((area) => [area.name, area.value]));
  const started = performance.now();
  $("ask").disabled = true;
  $("problem").textContent = "";
  const asked = chosen();
  const answers = await Promise.allSettled(asked.map((alias) => askOne(alias, values)));
  $("answers").replaceChildren(
    ...answers.map((answer, at) => (answer.status === "fulfilled" ? answer.value : failed(asked[at].ref, answer.reason))),
  );
  $("took").textContent = `${asked.length} answer${asked.length === 1 ? "" : "s"} in ${Math.round(performance.now() - started)} ms`;
  $("ask").disabled = false;
}

async function askOne({ ref, kind, fields }, values) {
  const input = Object.fromEntries(fields.map((name) => [name, values.get(fields.length === 1 ? "text" : name) ?? ""]));
  if (kind === "classification") {
    const { results: [found] } = await call("../v1/classify", { model: ref, input });
    const shares = Object.entries(found.probabilities).sort(([, a], [, b]) => b - a);
    const rows = shares.flatMap(([label, share]) => [
      make("span", { textContent: label }),
      make("progress", { max: 1, value: share, className: label === found.label ? "best" : "", "aria-label": label }),
      make("span", { className: "number", textContent: `${(100 * share).toFixed(1)} %` }),
    ]);
    const cut = found.is_truncated ? make("p", { className: "quiet", textContent: "The text was too long and lost its end." }) : null;
    return answer(ref, found, found.label, make("div", { className: "shares" }, ...rows), cut);
  }
  const found = await call("../v1/completions", { model: ref, input });
  return answer(ref, found.promptstore, found.choices[0].text || "(nothing)");
}

function answer(ref, version, said, ...more) {
  const title = make("h3", {}, ref, make("span", { className: "quiet", textContent: `version ${version.version}`, title: version.digest }));
  return make("article", { className: "answer" }, title, make("p", { className: "said", textContent: said }), ...more);
}

function failed(ref, error) {
  return make("article", { className: "answer" }, make("h3", {}, ref), make("p", { className: "problem", textContent: error.message }));
}

// ---- words and numbers ----

function when(instant) {
  return new Date(instant).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

function seconds(value) {
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.round(value / 60)} min`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${(value / 1024 ** at).toFixed(at ? 1 : 0)} ${units[at]}`;
}

// ---- the loop ----

async function refresh() {
  try {
    show(await call(`state?find=${encodeURIComponent($("find").value)}`));
    $("key-form").hidden = true;
  } catch (error) {
    const needs_key = error.status === 401 || error.status === 403;
    if (needs_key) {
      $("key-problem").textContent = key ? error.message : "";
      $("key-form").hidden = false;
    }
    $("status").className = "status bad";
    $("status").textContent = needs_key ? "A key is needed" : "The server does not answer";
  }
}

$("try-form").addEventListener("submit", ask);
$("find").addEventListener("input", refresh);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  refresh();
});
setInterval(() => document.hidden || refresh(), POLL_MS);
refresh();
