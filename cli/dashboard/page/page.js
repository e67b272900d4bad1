// Asks for everything every two seconds and shows it. All text goes in as text: nothing here makes HTML of data.

const REFRESH = 2000;
const LINES = 500;
const $ = (id) => document.getElementById(id);

let paused = false;
let position = null;
let asking = 0;

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

const known = (value) => value !== null && value !== undefined;
const number = (value, digits = 1) => (known(value) ? value.toLocaleString("en", { maximumFractionDigits: digits }) : "–");
const milliseconds = (value) => {
  if (!known(value)) return "–";
  if (value >= 60000) return `${number(value / 60000)} min`;
  return value >= 1000 ? `${number(value / 1000, 2)} s` : `${number(value, value < 10 ? 1 : 0)} ms`;
};
const megabytes = (value) => (value ? `${number(value / 1e6, 0)} MB` : "–");
const count = (value) => (value >= 1e6 ? `${number(value / 1e6, 1)} M` : value >= 1e4 ? `${number(value / 1e3, 1)} k` : number(value, 0));
const clock = (text) => (text ? new Date(text).toLocaleTimeString("en-GB") : "");
const until = (text) => {
  const seconds = Math.round((new Date(text) - Date.now()) / 1000);
  const size = Math.abs(seconds);
  const span = size < 90 ? `${size} s` : size < 5400 ? `${Math.round(size / 60)} min` : `${number(size / 3600)} h`;
  return seconds < 0 ? `${span} overdue` : `in ${span}`;
};

const curve = (values) => {
  const NS = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("width", "90");
  svg.setAttribute("height", "20");
  svg.setAttribute("aria-hidden", "true");
  if (values && values.length > 1) {
    const most = Math.max(...values, 1);
    const points = values.map((value, index) => `${(90 - (values.length - 1 - index) * 1.5).toFixed(1)},${(18.5 - (value / most) * 17).toFixed(1)}`);
    const line = document.createElementNS(NS, "polyline");
    line.setAttribute("points", points.join(" "));
    svg.append(line);
  }
  return svg;
};

const pill = (state) => make("span", { class: `pill ${state}` }, state);
const cell = (text, css = "") => make("td", css ? { class: css } : {}, text);
const figure = (value, name, css = "") => make("div", { class: `figure ${css}` }, make("b", {}, value), make("span", {}, name));

// Replaces children, unless the keyboard is in them: what somebody works with must not vanish.
const fill = (target, children) => {
  if (!target.contains(document.activeElement) || target === document.activeElement) target.replaceChildren(...children);
};
const empty = (columns, text) => make("tr", {}, make("td", { colspan: String(columns), class: "empty" }, text));

const level = (service) => {
  if (!service.level) return make("td", {}, "–");
  const select = make("select", {
    "aria-label": `Log level of ${service.name}`,
    onchange: async (event) => {
      const body = JSON.stringify({ replica: service.name, level: event.target.value });
      const answer = await fetch("api/log-level", { method: "POST", body, headers: { "x-gaggle-dashboard": "1" } });
      if (!answer.ok) problems([await answer.text()]);
      event.target.blur();
    },
  });
  for (const name of ["debug", "info", "warning", "error"]) {
    const option = make("option", { value: name }, name);
    option.selected = name === service.level;
    select.append(option);
  }
  return make("td", {}, select);
};

const serviceRow = (service) => {
  const m = service.metrics;
  const pair = service.state === service.sidecar_state ? [pill(service.state)] : [pill(service.state), " ", pill(`${service.sidecar_state}`), " sidecar"];
  const restarts = service.restarts + service.sidecar_restarts;
  return make("tr", {},
    make("th", { scope: "row" }, make("button", { type: "button", class: "trace", title: "Show its log", onclick: () => openLog(service.name) }, service.name),
      make("span", { class: "port" }, service.address.split(":").pop())),
    make("td", {}, ...pair),
    make("td", {}, make("span", { class: "rate" }, number(m.calls_per_second)), curve(m.rates)),
    cell(milliseconds(m.p50_ms), "n"),
    cell(milliseconds(m.p99_ms), "n"),
    cell(number(m.faults_per_second, 2), m.faults_per_second > 0 ? "n hot" : "n"),
    cell(milliseconds(m.state_p99_ms), "n"),
    cell(number(m.outbox_pending, 0), m.outbox_pending > 100 ? "n hot" : "n"),
    cell(milliseconds(m.lag_p99_ms), "n"),
    cell(number(m.cpu, 2), "n"),
    cell(megabytes(service.memory_bytes + service.sidecar_memory_bytes), "n"),
    cell(number(restarts, 0), restarts ? "n hot" : "n"),
    level(service));
};

const plainRow = (one) => make("tr", {},
  make("th", { scope: "row" }, make("button", { type: "button", class: "trace", onclick: () => openLog(one.name) }, one.name), make("span", { class: "port" }, one.address.split(":").pop())),
  make("td", {}, pill(one.state)),
  ...Array.from({ length: 8 }, () => cell("", "n")),
  cell(megabytes(one.memory_bytes), "n"),
  cell(number(one.restarts, 0), one.restarts ? "n hot" : "n"),
  cell(""));

const eventRow = (event) => make("tr", { title: JSON.stringify(event.data) },
  make("td", {}, event.trace
    ? make("button", { type: "button", class: "trace", title: `Trace ${event.trace}: search the logs`, onclick: () => searchLog(event.trace) }, clock(event.time))
    : clock(event.time)),
  make("td", { class: "topic" }, event.type),
  cell(event.entity.length > 44 ? `${event.entity.slice(0, 44)}…` : event.entity),
  cell(event.user),
  cell(milliseconds(event.lag_ms), "n"));

const reminderRow = (one) => {
  const late = new Date(one.remind_at) < new Date();
  return make("tr", {}, cell(until(one.remind_at), late ? "hot" : ""), cell(one.title || one.task, "wide"), cell(one.user));
};

const card = (key, title, detail, text) => {
  const before = document.querySelector(`details[data-key="${CSS.escape(key)}"]`);
  if (before && before.dataset.text === text + detail) return before;
  const details = make("details", { "data-key": key }, make("summary", {}, make("b", {}, title), " ", make("span", { class: "quiet" }, detail)), make("pre", {}, text));
  details.dataset.text = text + detail;
  details.open = Boolean(before && before.open);
  return details;
};

const problems = (list) => {
  const target = $("problems");
  target.hidden = list.length === 0;
  target.replaceChildren(...list.map((text) => make("li", {}, text)));
};

const show = (state) => {
  const mark = $("state");
  mark.textContent = state.state;
  mark.className = `pill ${state.state}`;
  document.title = state.state === "ready" ? "Gaggle" : `Gaggle: ${state.state}`;
  problems(state.problems || []);
  if (!state.services) return;
  const suffix = state.app_id_suffix ? ` · suffix ${state.app_id_suffix}` : "";
  $("about").textContent = `${state.component_set} · ${state.broker}${suffix} · ${clock(state.at)}`;
  const t = state.totals;
  const tokens = (t.tokens.input || 0) + (t.tokens.output || 0);
  fill($("figures"), [
    figure(number(t.calls_per_second), "calls a second"),
    figure(milliseconds(t.p99_ms), "slowest p99", t.p99_ms > 1000 ? "attention" : ""),
    figure(number(t.faults_per_second, 2), "faults a second", t.faults_per_second > 0 ? "alarm" : ""),
    figure(number(t.events_per_second), "events a second"),
    figure(milliseconds(t.lag_p99_ms), "event lag, p99", t.lag_p99_ms > 30000 ? "attention" : ""),
    figure(number(t.outbox_pending, 0), "not yet published", t.outbox_pending > 100 ? "attention" : ""),
    figure(number(t.reminders_overdue, 0), "reminders overdue", t.reminders_overdue > 0 ? "alarm" : ""),
    figure(milliseconds(t.lateness_p99_ms), "reminders late, p99"),
    figure(count(tokens), t.cost ? `tokens, $${number(t.cost, 2)}` : "agents' tokens"),
    figure(megabytes(t.memory_bytes), "services' memory"),
  ]);
  fill($("service-rows"), [...state.services.map(serviceRow), ...state.infrastructure.map(plainRow)]);
  fill($("event-rows"), state.events.length ? state.events.map(eventRow) : [empty(5, "Nothing has happened yet.")]);
  fill($("reminder-rows"), state.reminders.length ? state.reminders.map(reminderRow) : [empty(3, "None.")]);
  fill($("component-list"), [
    ...state.components.map((one) => card(`component ${one.name}`, one.name, [one.type || one.kind, one.version, one.loaded.length ? `loaded by ${one.loaded.length}` : ""].filter(Boolean).join(" · "), one.yaml)),
    ...state.configurations.map((one) => card(`configuration ${one.service}`, one.service, "Configuration", one.yaml)),
  ]);
  const select = $("log-process");
  if (select.options.length !== state.logs.length) {
    const chosen = select.value || (state.logs.includes("conversation") ? "conversation" : state.logs[0]);
    select.replaceChildren(...state.logs.map((name) => make("option", { value: name }, name)));
    select.value = chosen;
  }
};

const logLine = (line) => {
  const { trace_id: trace, ...fields } = line.fields;
  const rest = Object.entries(fields).map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`).join(" ");
  return make("div", { class: line.level },
    line.time ? make("time", {}, `${line.time.slice(11, 23).replace("Z", "")} `) : null,
    make("b", {}, line.event), rest ? make("i", {}, ` ${rest}`) : null,
    trace ? " " : null,
    trace ? make("button", { type: "button", class: "trace", title: "Search for this trace", onclick: () => searchLog(trace) }, trace.slice(0, 8)) : null);
};

const refreshLog = async (fresh) => {
  const name = $("log-process").value;
  if (!name) return;
  if (fresh) position = null;
  const mine = ++asking;
  const query = new URLSearchParams({ process: name, level: $("log-least").value, text: $("log-text").value });
  if (position !== null) query.set("after", position);
  const answer = await fetch(`api/logs?${query}`);
  if (!answer.ok || mine !== asking) return;
  const body = await answer.json();
  const target = $("log-lines");
  if (position === null) target.replaceChildren();
  position = body.position;
  target.append(...body.lines.map(logLine));
  while (target.childElementCount > LINES) target.firstChild.remove();
  if ($("log-follow").checked) target.scrollTop = target.scrollHeight;
};

const openLog = (name) => {
  $("log-process").value = name;
  refreshLog(true);
  go("logs");
};
const searchLog = (text) => {
  $("log-text").value = text;
  refreshLog(true);
  go("logs");
};
const go = (id) => {
  $(id).scrollIntoView();
  $(`${id}-title`).focus({ preventScroll: true });
};

const refresh = async () => {
  if (paused || document.hidden) return;
  try {
    const answer = await fetch("api/state");
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    await refreshLog(false);
  } catch (error) {
    $("state").textContent = "no answer";
    $("state").className = "pill down";
    problems([`The dashboard does not answer: ${error.message}`]);
  }
};

const pause = () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Paused" : "Pause";
  if (!paused) refresh();
};

$("pause").addEventListener("click", pause);
$("log-form").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["log-process", "log-least", "log-text"]) $(id).addEventListener("input", () => refreshLog(true));
document.addEventListener("visibilitychange", refresh);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, summary, a")) return;
  const section = { 1: "services", 2: "events", 3: "reminders", 4: "components", 5: "logs" }[event.key];
  if (section) go(section);
  else if (event.key === "/") $("log-text").focus();
  else if (event.key === "p") pause();
  else return;
  event.preventDefault();
});

const loop = async () => {
  await refresh();
  setTimeout(loop, REFRESH);
};
loop();
