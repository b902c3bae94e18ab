"use strict";
// Sortable tables and the latent explorer. Everything shown is made of text nodes: no text is ever read as markup.

function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => a.dataset.place - b.dataset.place);
  const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
  const key = (row) => row.cells[column].dataset.sort;
  const sign = direction === "descending" ? -1 : 1;
  if (direction !== "none") {
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last, either way
      return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true }));
    });
  }
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tBodies[0].rows].forEach((row, i) => { row.dataset.place = i; });
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", next);
    sortTable(table, column, next);
  }));
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

// .163, 31.8, 6.0e-5: three digits, no leading zero, as in the tables.
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e6 ? value.toExponential(1) : value.toPrecision(3);
  const plain = /e/.test(text) ? text.replace("e+", "e") : size >= 100 ? String(Math.round(value)) : text;
  return plain.replace(/^(-?)0\./, "$1.");
}

const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const share = (part, whole) => (whole > 0 ? `${number((100 * part) / whole)} %` : "–");

const KINDS = {
  "price": "largest price",
  "absorbed": "absorbed",
  "absorbing": "absorbing",
  "split": "split",
  "dead in encoder": "dead in the encoder",
  "dead in optimum": "dead in the optimum",
};
const WHY = {
  "missed": "Only the optimum fires",
  "false fire": "Only the encoder fires",
  "absorbed": "The class holds, the encoder's latent is silent and another fires",
  "amplitude": "Both fire, to different degrees",
  "agree": "Both agree",
};
// SAEs differ in their units: latents are compared by their share.
const relative = (latent) => (latent.sae.price > 0 ? latent.price / latent.sae.price : latent.price);
const ORDERS = {
  "price": ["price", (a, b) => relative(b) - relative(a)],
  "id": ["number", (a, b) => a.id - b.id],
  "missed": ["missed most often", (a, b) => b.fires[1] - b.fires[2] - (a.fires[1] - a.fires[2])],
  "false": ["false most often", (a, b) => b.fires[0] - b.fires[2] - (a.fires[0] - a.fires[2])],
};

function explorer(source) {
  const at = (id) => document.getElementById(id);
  const [list, pane, search] = [at("latents"), at("latent"), at("search")];
  const saes = JSON.parse(source.textContent);
  const latents = saes.flatMap((sae, s) => sae.latents.map((latent) => ({ ...latent, sae, s })));
  for (const latent of latents) {
    const texts = latent.examples.map((e) => e.tokens.map((t) => latent.sae.strings[t]).join(""));
    const kinds = latent.kinds.flatMap((kind) => [kind, KINDS[kind] || ""]);
    latent.text = [...texts, ...latent.notes, ...kinds].join("\n").toLowerCase();
    latent.top = Math.max(...latent.examples.flatMap((e) => e.fires.flatMap((f) => [Math.abs(f[1]), Math.abs(f[2])])), 0);
  }
  const state = { kind: "", shown: [], chosen: null };

  function matches(latent, query) {
    if (state.kind && !latent.kinds.includes(state.kind)) return false;
    if (at("sae").value !== "" && latent.s !== Number(at("sae").value)) return false;
    if (!query) return true;
    if (/^#?\d+$/.test(query) && String(latent.id).startsWith(query.replace("#", ""))) return true;
    return latent.text.includes(query);
  }

  const asked = () => search.value.trim().toLowerCase();

  function refresh() {
    const query = asked();
    state.shown = latents.filter((latent) => matches(latent, query)).sort(ORDERS[at("order").value][1]);
    // A latent that is named comes first.
    if (/^#?\d+$/.test(query)) {
      const named = (latent) => String(latent.id) === query.replace("#", "");
      state.shown = [...state.shown.filter(named), ...state.shown.filter((latent) => !named(latent))];
    }
    list.replaceChildren(...state.shown.map(item));
    at("count").textContent = `${state.shown.length} of ${latents.length} latents`;
    choose(state.shown.includes(state.chosen) && !query ? state.chosen : state.shown[0] || null);
  }

  function item(latent, i) {
    const cost = element("span", {}, share(latent.price, latent.sae.price));
    const line = element("div", { class: "line" }, element("b", {}, `latent ${latent.id}`), cost);
    const what = latent.kinds.map((kind) => KINDS[kind] || kind).join(", ");
    const where = saes.length > 1 ? `${latent.sae.checkpoint}: ` : "";
    const made = element("li", { role: "option", id: `latent-${i}`, "aria-selected": "false" }, line, element("small", {}, where + what));
    made.addEventListener("click", () => choose(latent));
    return made;
  }

  function choose(latent) {
    state.chosen = latent;
    const place = state.shown.indexOf(latent);
    [...list.children].forEach((child, i) => child.setAttribute("aria-selected", String(i === place)));
    if (latent === null) {
      list.removeAttribute("aria-activedescendant");
      pane.replaceChildren(element("p", { class: "quiet" }, "No latent matches."));
      return;
    }
    list.setAttribute("aria-activedescendant", `latent-${place}`);
    const [box, row] = [list, list.children[place]];
    if (row.offsetTop < box.scrollTop) box.scrollTop = row.offsetTop;
    const end = row.offsetTop + row.offsetHeight - box.clientHeight;
    if (end > box.scrollTop) box.scrollTop = end;
    pane.replaceChildren(...describe(latent));
    pane.scrollTop = 0;
  }

  function describe(latent) {
    const { sae, fires, parts } = latent;
    const fact = (name, text) => element("div", {}, element("dt", {}, name), element("dd", {}, text));
    const rate = (n) => `${grouped(n)} (${share(n, sae.n_tokens)})`;
    const facts = element("dl", { class: "facts" },
      fact("of the price", share(latent.price, sae.price)),
      fact("per token", number(latent.price)),
      fact("missed + false fires + amplitude", parts.map(number).join(" + ")),
      fact("encoder fires", rate(fires[0])), fact("optimum fires", rate(fires[1])), fact("both", rate(fires[2])));
    const kinds = latent.kinds.map((kind) => KINDS[kind] || kind).join(", ");
    const where = saes.length > 1 ? `${sae.checkpoint}, ` : "";
    const out = [element("h3", {}, `${where}latent ${latent.id}`), element("p", { class: "quiet" }, kinds), facts];
    out.push(...latent.notes.map((note) => element("p", { class: "note" }, note)));
    for (const why of Object.keys(WHY)) {
      const examples = latent.examples.filter((example) => example.why === why);
      if (examples.length) out.push(element("h4", {}, WHY[why]), ...examples.map((example) => sample(latent, example)));
    }
    return out;
  }

  function value(name, amount, top) {
    const bar = element("i", { class: name });
    bar.style.width = `${top > 0 ? (4.5 * Math.abs(amount)) / top : 0}rem`;
    return element("span", {}, bar, `${name} `, element("b", {}, number(amount)));
  }

  function sample(latent, example) {
    const fired = new Map(example.fires.map(([place, own, best]) => [place, [own, best]]));
    const [own, best] = fired.get(example.at) || [0, 0];
    const head = element("div", { class: "values" }, value("encoder", own, latent.top), value("optimum", best, latent.top));
    if (example.label) head.append(element("span", { class: "label" }, example.label));
    const query = asked();
    const context = element("p", { class: "context" });
    example.tokens.forEach((token, place) => {
      const text = latent.sae.strings[token];
      const made = element("span", { class: "token" }, ...pieces(text));
      const both = fired.get(place);
      if (place === example.at) made.classList.add("centre");
      if (query && text.toLowerCase().includes(query)) made.classList.add("hit");
      if (both) {
        const strength = (v) => (v === 0 ? 0 : 0.35 + (0.65 * Math.abs(v)) / latent.top);
        made.style.setProperty("--e", strength(both[0]));
        made.style.setProperty("--o", strength(both[1]));
        made.title = `encoder ${number(both[0])}, optimum ${number(both[1])}`;
      }
      context.append(made);
    });
    return element("div", { class: "sample" }, head, context);
  }

  // Line ends are shown as such, and not obeyed.
  function pieces(text) {
    return text.split(/(\r?\n|\t)/).filter((part) => part).map((part) =>
      /^[\r\n\t]/.test(part) ? element("span", { class: "space" }, part === "\t" ? "⇥" : "↵") : part);
  }

  function move(event) {
    const place = state.shown.indexOf(state.chosen);
    const last = state.shown.length - 1;
    const steps = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + 10, PageUp: place - 10 };
    if (event.currentTarget === list) Object.assign(steps, { Home: 0, End: last });
    if (event.key in steps && last >= 0) {
      choose(state.shown[Math.min(Math.max(steps[event.key], 0), last)]);
    } else if (event.key === "Enter" && last >= 0) {
      pane.focus();
    } else if (event.key === "Escape" && event.currentTarget === search && search.value) {
      search.value = "";
      refresh();
    } else {
      return;
    }
    event.preventDefault();
  }

  function kindChips() {
    const present = Object.keys(KINDS).filter((kind) => latents.some((latent) => latent.kinds.includes(kind)));
    const chip = (kind, text, n) => {
      const made = element("button", { type: "button", "aria-pressed": String(kind === ""), "data-kind": kind }, `${text} ${n}`);
      made.addEventListener("click", () => {
        state.kind = state.kind === kind ? "" : kind;
        for (const other of at("kinds").children) other.setAttribute("aria-pressed", String(other.dataset.kind === state.kind));
        refresh();
      });
      return made;
    };
    const count = (kind) => latents.filter((latent) => latent.kinds.includes(kind)).length;
    at("kinds").append(chip("", "all", latents.length), ...present.map((kind) => chip(kind, KINDS[kind], count(kind))));
  }

  function about(sae) {
    const held = sae.covered === null ? "" : `; those shown hold ${number(100 * sae.covered)} % of its price`;
    const dead = `never firing: encoder ${sae.dead.encoder}, optimum ${sae.dead.optimum}, both ${sae.dead.both}`;
    const read = `λ ${number(sae.lam)}, ${grouped(sae.n_tokens)} tokens of ${grouped(sae.n_documents)} documents`;
    return element("li", {}, `${sae.checkpoint}: ${read}; ${grouped(sae.n_latents)} latents, ${dead}${held}. Classes: ${sae.probes}.`);
  }

  function start() {
    at("sae").append(element("option", { value: "" }, "all"), ...saes.map((sae, s) => element("option", { value: s }, sae.checkpoint)));
    at("sae-label").hidden = saes.length < 2;
    at("order").append(...Object.entries(ORDERS).map(([name, [text]]) => element("option", { value: name }, text)));
    kindChips();
    at("explorer-about").append(...saes.map(about));
    search.addEventListener("input", refresh);
    search.addEventListener("keydown", move);
    list.addEventListener("keydown", move);
    at("sae").addEventListener("change", refresh);
    at("order").addEventListener("change", refresh);
    pane.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = state.shown[state.shown.indexOf(state.chosen) + step];
      if (step && next) choose(next);
      else if (event.key === "Escape") list.focus();
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, textarea, select");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      search.focus();
      search.select();
    });
    refresh();
  }

  start();
}

const explorerData = document.getElementById("explorer-data");
if (explorerData) explorer(explorerData);
