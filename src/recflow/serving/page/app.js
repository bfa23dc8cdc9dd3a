// The page: who shops, what is shown, what they do, and how that changes what is shown.

import * as api from "./api.js";
import { picture } from "./art.js";
import { $, changesOf, fill, line, make, money, nameOf, plural, said, sayChanges, shares, showCards } from "./parts.js";
import { searching } from "./search.js";

const SHOWN = 12; // products on the home list
// Customers of the Online Retail data; those that this shop doesn't know are left out.
const EXAMPLES = ["12748.0", "14911.0", "12471.0", "12682.0", "15855.0", "12347.0"];

const state = {
  customer: null, // user_id; null: a visitor
  session: newSession(),
  country: "", // "": the customer's own
  ranks: new Map(), // item_id -> rank in the home list
  contributions: new Map(), // item_id -> what its score is made of
  names: new Map(), // item_id -> title, of all that was seen
  cart: new Map(), // item_id -> {item, quantity, shown}: where it was put in from
  requestId: null, // of the home list
  asOf: 0, // the newest moment that the shop knows of, milliseconds since 1970
  version: null,
  loads: 0,
  opened: null, // {item, shown}
};

function newSession() {
  return `page-${crypto.randomUUID()}`;
}

const shopper = () => ({ ...(state.customer ? { user_id: state.customer } : {}), session_id: state.session });
const context = () => (state.country ? { country: state.country } : {});

// -- what can go wrong

async function trying(work) {
  try {
    const done = await work();
    $("trouble").hidden = true;
    return done;
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    $("key-form").hidden = error.status !== 401;
    $("trouble").hidden = false;
    $("trouble").textContent = error.retryAfter ? `${error.message} (again in ${error.retryAfter} s)` : error.message;
    if (error.retryAfter) setTimeout(loadAll, 1000 * error.retryAfter);
    return undefined;
  }
}

// What a shop can do without: a part that fails is empty, the rest goes on.
const orNothing = (promise) => promise.catch((error) => (error instanceof api.ApiError ? null : Promise.reject(error)));

// -- the home list

async function loadHome(because) {
  const load = ++state.loads;
  const started = performance.now();
  const answer = await trying(() =>
    api.recommend({
      ...shopper(), k: SHOWN, placement: "home", context: context(), diversity: Number($("diversity").value), explain: true,
    }),
  );
  if (!answer || load !== state.loads) return; // a later answer is on its way
  showFacts(answer, performance.now() - started);
  remember(answer.items);
  const changes = because ? changesOf(state.ranks, answer.items) : new Map();
  state.ranks = new Map(answer.items.map((item) => [item.item_id, item.rank]));
  state.requestId = answer.request_id;
  const parts = answer.explanation?.contributions ?? [];
  state.contributions = new Map(answer.items.map((item, place) => [item.item_id, parts[place] ?? []]));
  $("home-note").textContent = noteOf(answer);
  $("changes").textContent = because ? sayChanges(because, changes) : "";
  showCards($("home"), answer.items, changes, {
    open: (item) => openProduct(item, { shown: shownAtHome(item), why: () => contributionsOf(item) }),
    add: (item) => addToCart(item, shownAtHome(item)),
  });
  showRules(answer.explanation?.rules ?? []);
  await report(answer.items, shownAtHome);
}

const shownAtHome = ({ item_id: id }) => (state.ranks.has(id) ? { position: state.ranks.get(id), request_id: state.requestId } : {});

const report = (items, shown) => orNothing(api.sendEvents(items.map((item) => eventOf("impression", item, shown(item)))));

function noteOf({ fallback }) {
  const who = state.customer ? `Customer ${state.customer}` : "A new visitor";
  const why = { popularity: "what is popular", session_only: "from this visit alone", tables: "what is bought together" };
  return fallback ? `${who}: ${why[fallback.kind] ?? fallback.kind}.` : `${who}: from everything they bought and looked at.`;
}

function showRules(rules) {
  $("home-rules").hidden = !rules.length;
  fill($("home-rules-list"), ...rules.map(({ did, item_ids }) => {
    const names = item_ids.map((id) => nameOf({ item_id: id, title: state.names.get(id) }));
    return make("li", {}, `${did} ${names.join(", ")}`);
  }));
}

function showFacts(answer, milliseconds) {
  state.version = answer.model_version;
  state.asOf = Date.parse(answer.as_of);
  $("fact-version").textContent = answer.model_version;
  $("fact-request").textContent = answer.request_id.slice(0, 12);
  $("fact-request").title = answer.request_id;
  $("fact-fallback").textContent = answer.fallback ? `${answer.fallback.kind}: ${answer.fallback.why}` : "none";
  $("fact-time").textContent = `${milliseconds.toFixed(0)} ms`;
}

function remember(items) {
  for (const { item_id, title } of items) if (title) state.names.set(item_id, title);
}

// -- beside it

async function loadTrending() {
  const answer = await orNothing(api.trending({ k: 10, context: context() }));
  $("trending-note").textContent = state.country ? `In ${state.country}, against the weeks before.` : "Against the weeks before.";
  showRail($("trending"), answer, "trending");
}

function showRail(list, answer, name) {
  const items = answer?.items ?? [];
  remember(items);
  const handlers = { open: (item) => openProduct(item), add: (item) => addToCart(item) };
  if (items.length) showCards(list, items, new Map(), handlers);
  else fill(list, make("li", { className: "note" }, answer ? "Nothing to show." : `No answer for ${name}.`));
}

async function loadProfile() {
  if (!state.customer) {
    fill($("profile"), make("p", { className: "note" }, "Nothing yet: a new visitor. Look at a product and see what changes."));
    return;
  }
  const customer = state.customer;
  const known = await orNothing(api.profile(customer));
  if (customer !== state.customer) return;
  if (!known) {
    fill($("profile"), make("p", { className: "note" }, "The profile can't be shown just now."));
    return;
  }
  remember([...(known.recent_events ?? []), ...(known.top_items ?? [])]);
  const level = (value) => ({ "1 of 5": "cheapest fifth", "5 of 5": "dearest fifth" })[value] ?? value;
  const rows = (values, name = (value) => value) =>
    (values ?? []).slice(0, 4).map(({ value, share }) => ({ label: name(value), share, note: `${Math.round(100 * share)} %` }));
  fill(
    $("profile"),
    make("p", { className: "segment" }, make("strong", {}, known.segment), known.country ? ` · ${known.country}` : ""),
    make("p", { className: "note" }, known.segment_why),
    shares("Top categories", rows(known.top_categories)),
    shares("Brands", rows(known.brands)),
    shares("Price level", rows(known.price_levels, level)),
    recentEvents(known.recent_events ?? []),
  );
}

function recentEvents(events) {
  if (!events.length) return null;
  const verbs = { purchase: "bought", add_to_cart: "into the cart", click: "clicked", view: "looked at", return: "returned" };
  const rows = events.slice(0, 8).map((event) =>
    make("li", {}, make("span", { className: "verb" }, verbs[event.event_type] ?? event.event_type), ` ${nameOf(event)}`,
      make("time", { dateTime: event.event_timestamp }, day(event.event_timestamp))),
  );
  return make("div", { className: "recent" }, make("h3", {}, "Recent events"), make("ul", {}, ...rows));
}

function day(timestamp) {
  return new Date(timestamp).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
}

// -- events

// A shop whose data end years ago has that day: for it, a click by our clock would come after years of silence.
function moment() {
  const isLive = Date.now() - state.asOf < 86_400_000;
  return new Date(isLive ? Date.now() : state.asOf + 1000).toISOString();
}

function eventOf(type, item, more = {}) {
  return {
    event_id: crypto.randomUUID(), event_type: type, event_timestamp: moment(), item_id: item.item_id, ...shopper(), ...more,
    ...(state.country ? { country: state.country } : {}),
  };
}

// The next answer knows of it: the endpoint has the event on disk before it says so.
async function happened(because, events) {
  if (!(await trying(() => api.sendEvents(events)))) return;
  await Promise.all([search.isOn() ? null : loadHome(because), loadProfile()]);
}

// -- search

// What was found stays as it stands while the shopper looks at it; the home list is loaded when it is back.
const loadShown = (because) => (search.isOn() ? search.again(because) : loadHome(because));

const search = searching({
  shopper, context, trying, orNothing, remember, report,
  answered: showFacts, open: openProduct, add: addToCart,
  turned: (isSearching) => {
    if (!isSearching) loadHome();
  },
});

// -- one product

// shown: the place and the request that it was shown by; why: what its score there is made of.
async function openProduct(item, { shown = {}, why = () => null } = {}) {
  const opened = { item, shown };
  state.opened = opened;
  $("product-title").textContent = nameOf(item);
  $("product-price").textContent = money(item.price, item.currency);
  $("product-reason").textContent = said(item.reason?.text);
  $("product-facts").textContent = "";
  $("product-status").textContent = "";
  fill($("product-art"), picture(item.item_id, item.title));
  fill($("product-why"));
  fill($("similar"));
  fill($("bought"));
  if (!$("product").open) $("product").showModal();
  $("product").scrollTop = 0;
  $("product-title").focus();
  const clicked = happened(`After the click on ${nameOf(item)}`, [eventOf("click", item, shown)]);
  const [facts, alike, together] = await Promise.all([
    orNothing(api.item(item.item_id)),
    orNothing(api.similar({ item_id: item.item_id, k: 8, placement: "product", context: context() })),
    orNothing(api.alsoBought({ item_id: item.item_id, k: 8, placement: "product", context: context() })),
    Promise.resolve(why()).then((parts) => (state.opened === opened ? fill($("product-why"), parts) : null)),
    clicked,
  ]);
  if (state.opened !== opened) return;
  if (facts) showItemFacts(item, facts);
  showRail($("similar"), alike, "similar");
  showRail($("bought"), together, "also bought");
}

async function contributionsOf(item) {
  const parts = (state.contributions.get(item.item_id) ?? []).filter(({ weight }) => weight > 0).slice(0, 4);
  const unnamed = parts.map(({ item_id }) => item_id).filter((id) => id && !state.names.has(id));
  for (const facts of await Promise.all(unnamed.map((id) => orNothing(api.item(id))))) if (facts) remember([facts]);
  const most = Math.max(...parts.map(({ weight }) => weight), 0);
  const rows = parts.map(({ item_id, weight }) => ({
    label: item_id ? nameOf({ item_id, title: state.names.get(item_id) }) : "Not from their history",
    share: weight / most,
    note: weight.toPrecision(2),
  }));
  return shares("What its score is made of", rows);
}

function showItemFacts(item, facts) {
  if (item.price === null) Object.assign(item, { price: facts.price, currency: facts.currency }); // a suggestion has none
  $("product-price").textContent = money(item.price, item.currency);
  $("product-facts").textContent = factsOf(facts);
}

function factsOf(facts) {
  const parts = [facts.category, facts.brand, `Bought by ${plural(facts.customers, "customer")}`];
  if (facts.reorder_days) parts.push(`bought again after about ${plural(facts.reorder_days, "day")}`);
  return parts.filter(Boolean).join(" · ");
}

// -- the cart

async function addToCart(item, shown = {}) {
  const entry = state.cart.get(item.item_id) ?? { item, quantity: 0, shown };
  entry.quantity += 1;
  state.cart.set(item.item_id, entry);
  showCart();
  $("product-status").textContent = `${nameOf(item)}: ${entry.quantity} in your cart.`;
  const event = eventOf("add_to_cart", item, { quantity: 1, ...shown });
  await Promise.all([happened(`With ${nameOf(item)} in the cart`, [event]), loadBasket()]);
}

async function removeFromCart(item) {
  state.cart.delete(item.item_id);
  showCart();
  $("cart-title").focus();
  await loadBasket();
}

function showCart() {
  const entries = [...state.cart.values()];
  const count = entries.reduce((sum, { quantity }) => sum + quantity, 0);
  $("cart-count").textContent = count;
  $("to-cart").classList.toggle("is-filled", count > 0);
  $("cart-empty").hidden = count > 0;
  $("buy").hidden = count === 0;
  const total = entries.reduce((sum, { item, quantity }) => sum + (item.price ?? 0) * quantity, 0);
  $("buy").textContent = `Buy ${plural(count, "product")} · ${money(total, entries[0]?.item.currency)}`;
  fill($("cart"), ...entries.map(({ item, quantity }) => {
    const label = `Remove ${nameOf(item)} from the cart`;
    const action = make("button", { className: "plain", type: "button", ariaLabel: label, onclick: () => removeFromCart(item) }, "Remove");
    return line(item, { open: openProduct, note: `${quantity} × ${money(item.price, item.currency)}`, action });
  }));
}

async function loadBasket() {
  const inCart = [...state.cart.keys()];
  $("basket-part").hidden = !inCart.length;
  if (!inCart.length) return;
  const answer = await orNothing(api.basket({ ...shopper(), item_ids: inCart, k: 4, placement: "cart", context: context() }));
  const items = answer?.items ?? [];
  remember(items);
  fill($("basket"), ...items.map((item) => {
    const label = `Add ${nameOf(item)} to cart`;
    const action = make("button", { className: "add", type: "button", ariaLabel: label, onclick: () => addToCart(item) }, "Add");
    return line(item, { open: openProduct, note: said(item.reason?.text), action });
  }));
  $("basket-part").hidden = !items.length;
}

async function buy() {
  const entries = [...state.cart.values()];
  const events = entries.map(({ item, quantity, shown }) =>
    eventOf("purchase", item, {
      quantity, ...shown, ...(item.price !== null && item.currency ? { unit_price: item.price, currency: item.currency } : {}),
    }),
  );
  state.cart.clear();
  showCart();
  $(search.isOn() ? "results-title" : "home-title").focus();
  await Promise.all([happened(`After buying ${plural(entries.length, "product")}`, events), loadBasket()]);
}

// -- who shops

async function shopAs(customer) {
  state.customer = customer || null;
  state.session = newSession();
  state.ranks.clear();
  state.cart.clear();
  showCart();
  $("customer").value = customer || "";
  for (const chip of $("people").children) chip.ariaPressed = String(chip.dataset.customer === (customer || ""));
  const url = new URL(location.href);
  if (customer) url.searchParams.set("customer", customer);
  else url.searchParams.delete("customer");
  history.replaceState(null, "", url);
  fill($("home"));
  await Promise.all([loadAll(search.isOn() ? `As ${customer || "a new visitor"}` : ""), loadBasket()]);
}

const loadAll = (because) => Promise.all([loadShown(because), loadTrending(), loadProfile(), loadVersions()]);

async function loadPeople() {
  const found = await Promise.all(EXAMPLES.map((customer) => orNothing(api.profile(customer))));
  const known = found.filter((profile) => profile?.is_known);
  fill($("customers"), ...known.map((profile) => make("option", { value: profile.user_id })));
  const chips = known.map((profile) => chip(profile.user_id, profile.user_id.replace(/\.0$/, ""), [profile.segment, profile.country]));
  fill($("people"), chip("", "New visitor", ["nothing known"]), ...chips);
  return known[0]?.user_id ?? "";
}

function chip(customer, name, notes) {
  const note = make("span", { className: "chip-note" }, notes.filter(Boolean).join(" · "));
  const button = make("button", { className: "chip", type: "button", ariaPressed: "false", onclick: () => shopAs(customer) }, name, " ", note);
  button.dataset.customer = customer;
  return button;
}

// -- versions

async function loadVersions() {
  const answer = await orNothing(api.versions());
  const rows = answer?.versions ?? [];
  $("switch").hidden = rows.length < 2;
  fill($("version"), ...rows.map(({ version, ...facts }) => {
    const name = String(version);
    const notes = [facts.candidate, facts.until].filter(Boolean).join(", ");
    return make("option", { value: name, selected: name === answer.served }, notes ? `${name} (${notes})` : name);
  }));
}

async function switchVersion(event) {
  event.preventDefault();
  const wanted = $("version").value;
  if (!(await trying(() => api.switchTo(wanted)))) return;
  for (let look = 0; look < 50; look += 1) {
    const served = await orNothing(api.model());
    if (served?.model_version === wanted) break;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  await Promise.all([loadShown(`Served by version ${wanted}`), loadTrending(), loadProfile()]);
}

// -- start

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  shopAs($("customer").value.trim());
});
$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.useKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  await loadPeople();
  await loadAll();
});
$("country").addEventListener("change", async () => {
  state.country = $("country").value;
  await Promise.all([loadShown(state.country ? `Shopping in ${state.country}` : "In the customer's own country"), loadTrending(), loadBasket()]);
});
$("diversity").addEventListener("input", () => {
  $("diversity-value").textContent = $("diversity").value;
});
$("diversity").addEventListener("change", () => loadHome(`With variety ${$("diversity").value}`));
$("product-close").addEventListener("click", () => $("product").close());
$("product").addEventListener("click", (event) => {
  if (event.target === $("product")) $("product").close(); // beside it
});
$("product").addEventListener("close", () => {
  state.opened = null;
  // What was clicked may have left the list.
  if (document.activeElement === document.body) $(search.isOn() ? "results-title" : "home-title").focus();
});
$("product-add").addEventListener("click", () => addToCart(state.opened.item, state.opened.shown));
$("buy").addEventListener("click", buy);
$("switch").addEventListener("submit", switchVersion);

showCart();
const first = await loadPeople();
await shopAs(new URL(location.href).searchParams.get("customer") ?? first);
