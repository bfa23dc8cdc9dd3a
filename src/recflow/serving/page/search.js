// What was searched for: found, marked, counted by facet, narrowed, put in another order, page by page.

import * as api from "./api.js";
import { $, changesOf, fill, make, money, plural, said, sayChanges, shares, showCards } from "./parts.js";
import { suggestions } from "./suggest.js";

const SHOWN = 24; // products of a page
const SUGGESTED = 8;
const VALUES = 8; // of a facet, before "all"
const LONGEST = 80; // characters of a query in a heading
const LEAST = 0.005; // part of a score that is worth a word
const PARTS = {
  words: "Its words", meaning: "Its meaning", taste: "This customer's taste", popularity: "How often it is bought",
  freshness: "How new it is",
};
const NO_FILTERS = { categories: [], brands: [], price: null };

// Takes from the page: `shopper()`, `context()` for requests; `trying(work)`, `orNothing(promise)`; `answered(answer,
// milliseconds)`; `open(item, from)`, `add(item, shown)`; `report(items, shown)`; `turned()` when the view comes or goes.
export function searching(page) {
  const state = {
    query: null, // null: nobody searches
    sort: "relevance",
    filters: NO_FILTERS,
    items: [],
    seen: new Map(), // item_id -> {position, request_id} of where it was shown
    next: null, // token of the next page
    loads: 0,
    facets: null, // of the newest answer
    isAll: new Set(), // facets of which all values are shown
  };
  const isOn = () => state.query !== null;

  // -- asking

  const request = (more = {}) => ({
    ...page.shopper(), context: page.context(), query: state.query, k: SHOWN, sort: state.sort, filters: filters(),
    explain: true, ...more,
  });

  function filters() {
    const { categories, brands, price } = state.filters;
    return {
      ...(categories.length ? { categories } : {}), ...(brands.length ? { brands } : {}),
      ...(price ? { price_min: price[0], price_max: price[1] } : {}),
    };
  }

  async function load(because) {
    const load = ++state.loads;
    const before = because ? ranks() : null;
    const answer = await ask(load, {});
    if (load !== state.loads) return;
    state.items = answer?.items ?? [];
    state.seen.clear();
    showAnswer(answer, before, because);
    await reported(answer);
  }

  async function more() {
    const load = ++state.loads;
    const answer = await ask(load, { page: state.next });
    if (!answer || load !== state.loads) return;
    const first = answer.items[0];
    state.items = [...state.items, ...answer.items];
    state.next = answer.next_page;
    note(answer);
    showItems(answer, new Map());
    $("more").hidden = !state.next;
    if (first) [...$("found").children].find((card) => card.dataset.item === first.item_id)?.querySelector("button").focus();
    await reported(answer);
  }

  async function ask(load, more) {
    const started = performance.now();
    $("results").ariaBusy = "true";
    const answer = await page.trying(() => api.search(request(more)));
    if (load !== state.loads) return undefined; // a later one is on its way
    $("results").ariaBusy = "false";
    if (answer) page.answered(answer, performance.now() - started);
    return answer;
  }

  const reported = (answer) => (answer?.items.length ? page.report(answer.items, (item) => state.seen.get(item.item_id)) : null);
  const ranks = () => new Map(state.items.map((item) => [item.item_id, item.rank]));

  // -- showing

  function showAnswer(answer, before, because) {
    state.next = answer?.next_page ?? null;
    $("results-title").textContent = heading(answer);
    $("more").hidden = !state.next;
    $("found-none").hidden = state.items.length > 0;
    $("results-body").classList.toggle("is-failed", !answer);
    if (!answer) {
      $("results-note").textContent = "";
      for (const id of ["corrected", "relaxed", "facets", "found", "read-as-list"]) fill($(id));
      fill($("found-none"), make("p", {}, "The search can't be answered just now."), button("Try again", () => load()));
      $("read-as").hidden = true;
      return;
    }
    note(answer);
    showCorrection(answer);
    const relaxed = answer.relaxed.filter((sentence) => !answer.did_you_mean || !sentence.startsWith("read '"));
    fill($("relaxed"), ...relaxed.map((sentence) => make("li", {}, sayRelaxed(sentence))));
    state.facets = answer.facets;
    showFacets(state.facets);
    showReading(answer.explanation?.read_as ?? []);
    const changes = before ? changesOf(before, answer.items) : new Map();
    $("results-changes").textContent = before ? sayChanges(because, changes) : "";
    showItems(answer, changes);
    const clear = isNarrowed() ? button("Clear the filters", () => narrow(NO_FILTERS)) : null;
    fill($("found-none"), make("p", {}, answer.note || "Nothing was found."), clear);
  }

  function heading(answer) {
    const letters = [...state.query.trim()];
    const query = letters.length > LONGEST ? `${letters.slice(0, LONGEST).join("")}…` : letters.join("");
    if (!query) return state.filters.categories.join(", ") || "All products";
    return answer && !answer.total.count && state.items.length ? `Nothing found for “${query}”` : `Results for “${query}”`;
  }

  function note(answer) {
    const { count, is_exact: isExact } = answer.total;
    const found = `${isExact ? "" : "More than "}${plural(count, "product")}`;
    const isPersonal = state.items.some((item) => item.score_parts?.taste >= LEAST);
    const order = state.sort === "relevance" && isPersonal ? ", in the order that suits this customer" : "";
    $("results-note").textContent = count ? `${found}${order}.` : "";
  }

  function showCorrection(answer) {
    const meant = answer.did_you_mean;
    const again = meant && button(meant, () => search(meant), "as-text");
    fill($("corrected"), ...(meant ? ["Did you mean ", again, "? That is what is shown."] : []));
  }

  // The endpoint names what was translated in single words; a page speaks in sentences.
  const sayRelaxed = (text) => said(text.slice(0, 1).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : "."));

  function showItems(answer, changes) {
    for (const item of answer.items) state.seen.set(item.item_id, { position: item.rank, request_id: answer.request_id });
    page.remember(answer.items);
    const handlers = {
      open: (item) => page.open(item, { shown: state.seen.get(item.item_id), why: () => why(item) }),
      add: (item) => page.add(item, state.seen.get(item.item_id)),
    };
    showCards($("found"), state.items, changes, handlers);
  }

  function why(item) {
    const parts = Object.entries(item.score_parts ?? {}).filter(([, value]) => value >= LEAST);
    const most = Math.max(...parts.map(([, value]) => value), 0);
    const rows = parts.sort(([, one], [, other]) => other - one);
    return shares("What its score is made of", rows.map(([name, value]) => ({
      label: PARTS[name] ?? name, share: value / most, note: value.toFixed(2),
    })));
  }

  function showReading(terms) {
    $("read-as").hidden = !terms.length;
    fill($("read-as-list"), ...terms.map((words) => make("li", {}, words.map((each) => `“${each}”`).join(" or "))));
  }

  // -- facets

  const isNarrowed = () => state.filters.categories.length || state.filters.brands.length || state.filters.price;

  function narrow(filters) {
    state.filters = filters;
    return load();
  }

  function showFacets(facets) {
    const focused = document.activeElement?.dataset.facet;
    const clear = isNarrowed() ? button("Clear the filters", () => narrow(NO_FILTERS), "plain") : null;
    const { price } = state.filters;
    const prices = facets.prices.map(({ price_min: low, price_max: high, count }) => ({ value: `${low}–${high}`, range: [low, high], count }));
    const chosen = price ? `${price[0]}–${price[1]}` : null;
    if (price && !prices.some(({ value }) => value === chosen)) prices.unshift({ value: chosen, range: price, count: null });
    const currency = state.items.find((item) => item.currency)?.currency;
    const parts = [
      facet("Categories", named(facets.categories, state.filters.categories), byName("categories")),
      facet("Brands", named(facets.brands, state.filters.brands), byName("brands")),
      facet("Price", prices.map((row) => ({ ...row, isChosen: row.value === chosen, label: sayPrices(row.range, currency) })), ({ range, isChosen }) =>
        narrow({ ...state.filters, price: isChosen ? null : range }),
      ),
    ];
    fill($("facets"), clear, ...parts);
    $("filters").hidden = !$("facets").children.length;
    $("filters-count").textContent = isNarrowed() ? "in use" : "";
    if (focused) [...$("facets").querySelectorAll("button")].find((each) => each.dataset.facet === focused)?.focus();
  }

  // What is chosen stays to be given up again, though nothing may be left of it.
  function named(rows, chosen) {
    const gone = chosen.filter((value) => !rows.some((row) => row.value === value));
    return [...gone.map((value) => ({ value, count: 0 })), ...rows].map((row) => ({ ...row, label: row.value, isChosen: chosen.includes(row.value) }));
  }

  const byName = (name) => ({ value, isChosen }) => {
    const others = state.filters[name].filter((each) => each !== value);
    return narrow({ ...state.filters, [name]: isChosen ? others : [...others, value] });
  };

  const sayPrices = ([low, high], currency) => (low === high ? money(low, currency) : `${money(low, currency)} to ${money(high, currency)}`);

  function facet(title, rows, toggle) {
    if (rows.length < 2 && !rows.some((row) => row.isChosen)) return null;
    const shown = state.isAll.has(title) ? rows : rows.filter((row, place) => place < VALUES || row.isChosen);
    const buttons = shown.map((row) => {
      const count = make("span", { className: "facet-count" }, row.count === null ? "" : row.count.toLocaleString("en-GB"));
      const pressed = make("button", { className: "facet", type: "button", ariaPressed: String(row.isChosen) },
        make("span", { className: "facet-name" }, row.label), count);
      pressed.dataset.facet = `${title} ${row.value}`;
      pressed.addEventListener("click", () => toggle(row));
      return make("li", {}, pressed);
    });
    const all = rows.length > shown.length ? button(`All ${rows.length}`, () => showAll(title), "plain") : null;
    const list = make("ul", { ariaLabel: title }, ...buttons);
    return make("div", { className: "facet-part" }, make("h3", {}, title), list, all);
  }

  function showAll(title) {
    const place = $("facets").querySelectorAll(`ul[aria-label="${title}"] button`).length;
    state.isAll.add(title);
    showFacets(state.facets);
    $("facets").querySelectorAll(`ul[aria-label="${title}"] button`)[place]?.focus();
  }

  function button(text, onclick, className = "add") {
    return make("button", { className, type: "button", onclick }, text);
  }

  // -- coming and going

  // Starts another search; from the address too, which then stays as it is.
  async function search(query, { categories = [], isNew = true } = {}) {
    Object.assign(state, { query, sort: "relevance", filters: { ...NO_FILTERS, categories }, next: null });
    state.isAll.clear();
    $("query").value = query;
    $("sort").value = state.sort;
    $("results-changes").textContent = "";
    box.close();
    if (isNew) remember(query, categories);
    turn();
    await load();
    if (isNew && isOn()) {
      $("results-title").focus({ preventScroll: true });
      scrollTo({ top: 0 });
    }
  }

  function leave({ isNew = true } = {}) {
    state.loads += 1;
    Object.assign(state, { query: null, items: [], filters: NO_FILTERS });
    $("query").value = "";
    box.close();
    if (isNew) remember(null, []);
    turn();
  }

  function turn() {
    for (const id of ["home-part", "trending-part"]) $(id).hidden = isOn();
    $("results").hidden = !isOn();
    $("skip").textContent = isOn() ? "Skip to the results" : "Skip to the recommendations";
    $("skip").href = isOn() ? "#results-title" : "#home-title";
    page.turned(isOn());
  }

  function remember(query, categories) {
    const url = new URL(location.href);
    url.searchParams.delete("q");
    url.searchParams.delete("category");
    if (query !== null) url.searchParams.set("q", query);
    for (const category of categories) url.searchParams.append("category", category);
    if (url.href !== location.href) history.pushState(null, "", url);
  }

  function fromAddress() {
    const { searchParams } = new URL(location.href);
    const query = searchParams.get("q");
    return query === null ? null : { query: query.slice(0, $("query").maxLength), categories: searchParams.getAll("category").slice(0, 10) };
  }

  const box = suggestions({ box: $("query"), list: $("suggestions"), status: $("suggestions-note") }, {
    ask: async (prefix) => {
      const { user_id: user, session_id: session } = page.shopper();
      const asked = { ...(user ? { user_id: user } : {}), session_id: session, context: page.context(), prefix, k: SUGGESTED };
      return (await page.orNothing(api.suggest(asked)))?.suggestions;
    },
    choose: ({ text, kind, item_id: itemId }) => {
      if (kind === "product") page.open({ item_id: itemId, title: text, price: null }, {});
      else if (kind === "category") search("", { categories: [text] });
      else search(text);
    },
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("query").value.trim()) search($("query").value);
    else if (isOn()) leave();
  });
  $("sort").addEventListener("change", () => {
    state.sort = $("sort").value;
    load();
  });
  $("more").addEventListener("click", more);
  $("results-leave").addEventListener("click", () => {
    leave();
    $("home-title").focus();
  });
  addEventListener("popstate", () => {
    const asked = fromAddress();
    if (asked) search(asked.query, { categories: asked.categories, isNew: false });
    else if (isOn()) leave({ isNew: false });
  });
  const wide = matchMedia("(min-width: 62rem)"); // where the filters have a column of their own
  const unfold = () => {
    $("filters").open = wide.matches;
  };
  wide.addEventListener("change", unfold);
  unfold();

  // At the start: what the address asks for is searched by the first `again`.
  const asked = fromAddress();
  if (asked) {
    Object.assign(state, { query: asked.query, filters: { ...NO_FILTERS, categories: asked.categories } });
    $("query").value = asked.query;
    turn();
  }
  return { isOn, again: load, leave };
}
