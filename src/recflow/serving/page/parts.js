// Pieces of the page, made of DOM nodes only: what comes from the endpoint is text, never markup.

import { picture } from "./art.js";

export const $ = (id) => document.getElementById(id);

export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.filter(Boolean));
}

// Shops shout their titles; a page needn't. One letter stays one, so that marks stay where they are.
function quietly(title) {
  const letters = [...title];
  if (title !== title.toUpperCase()) return letters;
  return letters.map((letter, place) => (place && [...letter.toLowerCase()].length === 1 ? letter.toLowerCase() : letter));
}

export function nameOf({ title, item_id }) {
  return title ? quietly(title).join("") : item_id;
}

// What was found in a title: nodes, marked at [start, end) of its Unicode characters, as the endpoint counts them.
export function markedName({ title, item_id, highlights }) {
  if (!title) return [item_id];
  const letters = quietly(title);
  const nodes = [];
  let at = 0;
  for (const [start, end] of highlights ?? []) {
    nodes.push(letters.slice(at, start).join(""), make("mark", {}, letters.slice(start, end).join("")));
    at = end;
  }
  return [...nodes, letters.slice(at).join("")];
}

export function money(price, currency) {
  if (price === null || price === undefined) return "";
  if (!currency) return price.toFixed(2);
  return new Intl.NumberFormat("en-GB", { style: "currency", currency }).format(price);
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en-GB")} ${count === 1 ? one : many}`;
}

// Reasons quote titles, and words of them, as the catalogue has them.
export function said(text) {
  const quiet = (text || "").replace(/"[^"a-z]+"/g, (words) => words.toLowerCase());
  return quiet.replace(/\b[A-Z0-9][A-Z0-9 ,.'&/+-]*[A-Z][A-Z0-9 ,.'&/+-]*[A-Z0-9]\b/g, (words) =>
    words.includes(" ") ? words[0] + words.slice(1).toLowerCase() : words,
  );
}

// -- lists of products

export function card(item, { open, add }) {
  const title = make("button", { className: "card-title", type: "button", onclick: () => open(item) });
  const reason = make("p", { className: "reason" });
  const price = make("span", { className: "price" });
  const move = make("span", { className: "move" });
  const button = make("button", { className: "add", type: "button", onclick: () => add(item) }, "Add");
  const body = make("div", { className: "card-body" }, title, reason, make("div", { className: "card-foot" }, price, button));
  const element = make("li", { className: "card" }, picture(item.item_id, item.title), move, body);
  element.dataset.item = item.item_id;
  element.update = (next, change) => {
    item = next;
    title.replaceChildren(...markedName(item));
    reason.textContent = said(item.reason?.text);
    reason.dataset.kind = item.reason?.kind ?? "";
    price.textContent = money(item.price, item.currency);
    button.setAttribute("aria-label", `Add ${nameOf(item)} to cart`);
    fill(move, ...badge(change));
    element.classList.toggle("is-up", Boolean(change));
  };
  element.update(item, 0);
  return element;
}

function badge(change) {
  if (change === "new") return [make("span", { className: "tag" }, "New here")];
  if (change > 0) {
    const text = make("span", { className: "hidden" }, `moved up ${plural(change, "place")}`);
    return [make("span", { className: "tag" }, make("span", { ariaHidden: "true" }, `▲ ${change}`), text)];
  }
  return [];
}

// Ranks before -> of each item that is new or stands higher now: "new", or by how many places.
export function changesOf(ranks, items) {
  const changes = new Map();
  for (const item of items) {
    const before = ranks.get(item.item_id);
    if (before === undefined) changes.set(item.item_id, "new");
    else if (before > item.rank) changes.set(item.item_id, before - item.rank);
  }
  return changes;
}

export function sayChanges(because, changes) {
  const fresh = [...changes.values()].filter((change) => change === "new").length;
  const up = changes.size - fresh;
  const parts = [];
  if (up) parts.push(`${plural(up, "product")} moved up`);
  if (fresh) parts.push(`${plural(fresh, "is", "are")} new`);
  return `${because}: ${parts.join(", ") || "the list stays as it is"}.`;
}

// Nodes are kept by item, so that focus stays and what moves can be seen moving.
export function showCards(list, items, changes, handlers) {
  const before = new Map([...list.children].map((element) => [element.dataset.item, element]));
  const places = new Map([...before].map(([item, element]) => [item, element.getBoundingClientRect()]));
  const elements = items.map((item) => {
    const element = before.get(item.item_id) ?? card(item, handlers);
    element.update(item, changes.get(item.item_id) ?? 0);
    return element;
  });
  const focused = document.activeElement;
  list.replaceChildren(...elements);
  if (focused && list.contains(focused)) focused.focus({ preventScroll: true });
  if (!before.size || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const element of elements) {
    const from = places.get(element.dataset.item);
    const to = element.getBoundingClientRect();
    const start = from ? { transform: `translate(${from.x - to.x}px, ${from.y - to.y}px)` } : { opacity: 0 };
    element.animate([start, {}], { duration: 450, easing: "cubic-bezier(.2,.7,.2,1)" });
  }
}

export function line(item, { open, note, action }) {
  const title = make("button", { className: "line-title", type: "button", onclick: () => open(item) }, nameOf(item));
  const text = make("div", { className: "line-text" }, title, make("p", { className: "reason" }, note));
  return make("li", { className: "line" }, picture(item.item_id, item.title), text, action);
}

// -- figures

export function shares(title, rows) {
  if (!rows?.length) return null;
  const bars = rows.map(({ label, share, note }) => {
    const bar = make("span", { className: "bar" });
    bar.style.setProperty("--share", `${Math.round(100 * Math.min(1, Math.abs(share)))}%`);
    return make("li", {}, make("span", { className: "bar-label" }, label), bar, make("span", { className: "bar-note" }, note));
  });
  return make("div", { className: "shares" }, make("h3", {}, title), make("ul", {}, ...bars));
}
