// A box that says how what was typed may go on: WAI-ARIA's combobox with a listbox, filled by the endpoint.

import { fill, make, markedName, nameOf, plural } from "./parts.js";

const WAIT = 120; // milliseconds without a key until it asks
const KINDS = { query: "", category: "category", product: "product" };

// ask(typed) -> suggestions, or null where there is no answer; choose(suggestion) takes one.
export function suggestions({ box, list, status }, { ask, choose }) {
  let shown = []; // the suggestions in the list
  let active = -1; // the one that Enter takes; -1: what was typed
  let typed = ""; // what they go on from
  let asks = 0;
  let timer = 0;

  function show(found) {
    shown = found;
    active = -1;
    list.hidden = !found.length;
    box.setAttribute("aria-expanded", String(found.length > 0));
    box.removeAttribute("aria-activedescendant");
    status.textContent = found.length ? `${plural(found.length, "suggestion")}; arrow keys choose.` : "";
    fill(list, ...found.map(option));
  }

  function option(suggestion, place) {
    const kind = make("span", { className: "option-kind" }, KINDS[suggestion.kind] ?? "");
    const text = make("span", { className: "option-text" }, ...markedName({ ...suggestion, title: suggestion.text }));
    const element = make("li", { id: `${list.id}-${place}`, role: "option", ariaSelected: "false" }, text, kind);
    element.addEventListener("pointerdown", (event) => event.preventDefault()); // the box keeps the focus
    element.addEventListener("click", () => take(suggestion));
    return element;
  }

  function close() {
    clearTimeout(timer);
    asks += 1; // what is still on its way comes too late
    show([]);
  }

  function take(suggestion) {
    close();
    choose(suggestion);
  }

  async function open() {
    const asked = ++asks;
    typed = box.value;
    const found = await ask(typed);
    if (asked === asks && document.activeElement === box) show(found ?? []);
  }

  function activate(place) {
    active = place;
    [...list.children].forEach((element, at) => {
      element.ariaSelected = String(at === active);
    });
    if (active < 0) box.removeAttribute("aria-activedescendant");
    else box.setAttribute("aria-activedescendant", list.children[active].id);
    list.children[active]?.scrollIntoView({ block: "nearest" });
  }

  // Behind the last one stands what was typed, and then the first one again.
  function step(by) {
    activate(((active + 1 + by + shown.length + 1) % (shown.length + 1)) - 1);
    box.value = active < 0 ? typed : nameOf({ title: shown[active].text });
  }

  box.addEventListener("input", () => {
    clearTimeout(timer);
    asks += 1;
    activate(-1); // Enter takes what was typed, though an older list is still shown
    if (box.value.trim()) timer = setTimeout(open, WAIT);
    else show([]);
  });
  box.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // Enter and the arrows belong to what writes Japanese
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (shown.length) step(event.key === "ArrowDown" ? 1 : -1);
      else open(); // in an empty box: what is popular
    } else if (event.key === "Escape" && shown.length) {
      event.preventDefault(); // the next one empties the box
      box.value = typed;
      close();
    } else if (event.key === "Enter" && active >= 0) {
      event.preventDefault();
      take(shown[active]);
    }
  });
  box.addEventListener("blur", close);
  return { close };
}
