// A picture for a product that has none, drawn from its title: what it is, its colour, its pattern.

const NS = "http://www.w3.org/2000/svg";

// Shapes on a 48 x 48 grid. a: the product's colour, b: a lighter one, c: paper, l: a line.
const PICTURES = {
  mug: [["rect.a", 11, 17, 21, 22, 4], ["path.l", "M32 22h3a5 5 0 0 1 0 10h-3"], ["path.l.thin", "M17 8c-2 2 2 3 0 5M25 8c-2 2 2 3 0 5"]],
  bag: [["path.a", "M12 18h24l3 22H9z"], ["path.l", "M18 22v-6a6 6 0 0 1 12 0v6"], ["path.b", "M10.5 30h27l.7 5H9.8z"]],
  heart: [["path.a", "M24 40C6 28 8 13 17 12c4 0 6 3 7 6 1-3 3-6 7-6 9 1 11 16-7 28z"], ["path.l.thin", "M15 19c1-3 3-3 3-3"]],
  candle: [["rect.a", 19, 20, 10, 20, 2], ["path.b", "M24 6c5 6 4 11 0 12-4-1-5-6 0-12z"], ["rect.b", 12, 38, 24, 4, 2]],
  clock: [["circle.b", 14, 13, 4], ["circle.b", 34, 13, 4], ["circle.a", 24, 26, 15], ["circle.c", 24, 26, 11], ["path.l", "M24 19v7l5 3"]],
  cushion: [["path.a", "M8 10c6 4 26 4 32 0-4 6-4 22 0 28-6-4-26-4-32 0 4-6 4-22 0-28z"], ["path.b", "M24 17l7 7-7 7-7-7z"]],
  cake: [["rect.a", 13, 24, 22, 10, 2], ["rect.b", 17, 15, 14, 9, 2], ["circle.a", 24, 12, 3], ["path.l", "M9 36h30M24 36v6M17 42h14"]],
  gift: [["rect.a", 11, 21, 26, 20, 2], ["rect.b", 8, 15, 32, 7, 2], ["rect.c", 22, 15, 4, 26, 0], ["path.l", "M24 15c-8 0-9-8-4-8 3 0 4 5 4 8 0-3 1-8 4-8 5 0 4 8-4 8"]],
  tin: [["rect.a", 11, 17, 26, 23, 3], ["rect.b", 9, 11, 30, 7, 2], ["rect.c", 17, 24, 14, 9, 2]],
  jar: [["rect.a", 13, 17, 22, 24, 6], ["rect.b", 16, 9, 16, 6, 2], ["rect.c", 17, 25, 14, 8, 2]],
  bottle: [["path.a", "M20 6h8v8c0 3 6 5 6 11v12a4 4 0 0 1-4 4H18a4 4 0 0 1-4-4V25c0-6 6-8 6-11z"], ["rect.c", 14, 26, 20, 8, 0]],
  bird: [["path.a", "M8 27c0-8 7-12 14-12 4-6 13-5 14 1l5 2-5 2c0 12-8 17-16 17-7 0-12-4-12-10z"], ["path.b", "M14 27c4-4 11-3 14 1-3 5-11 5-14-1z"], ["circle.c", 31, 16, 1.6], ["path.l.thin", "M20 37v5M26 36v6"]],
  flower: [["path.l", "M24 24v18"], ["circle.a", 24, 10, 6], ["circle.a", 32, 16, 6], ["circle.a", 29, 25, 6], ["circle.a", 19, 25, 6], ["circle.a", 16, 16, 6], ["circle.b", 24, 18, 5], ["path.b", "M24 38c2-6 8-7 12-6-2 5-6 7-12 6z"]],
  frame: [["rect.a", 8, 10, 32, 28, 2], ["rect.c", 12, 14, 24, 20, 1], ["path.b", "M14 32l7-10 5 6 3-3 5 7z"], ["circle.a", 29, 19, 2]],
  bunting: [["path.l", "M3 14c14 8 28 8 42 0"], ["path.a", "M5 16l11 4-4 14z"], ["path.b", "M18.5 20.2h11L24 35z"], ["path.a", "M32 20l11-4-7 18z"]],
  umbrella: [["path.a", "M6 24a18 17 0 0 1 36 0c-3-3-7-3-9 0-2-3-7-3-9 0-2-3-7-3-9 0-2-3-6-3-9 0z"], ["path.l", "M24 24v13a4 4 0 0 0 8 0M24 7V4"]],
  jewel: [["path.l", "M10 7c0 18 28 18 28 0"], ["path.a", "M24 22l9 8-9 13-9-13z"], ["path.b", "M24 22l9 8H15z"]],
  toy: [["circle.a", 13, 13, 6], ["circle.a", 35, 13, 6], ["circle.a", 24, 26, 15], ["circle.c", 24, 31, 6], ["circle.d", 18, 23, 1.7], ["circle.d", 30, 23, 1.7], ["circle.d", 24, 29, 2]],
  star: [["path.a", "M24 6l5.5 11.5 12.5 1.7-9.2 8.7 2.3 12.6L24 34.3l-11.1 6.2 2.3-12.6L6 19.2l12.5-1.7z"], ["path.b", "M24 14v15l-8 5 2-9-6-5z"]],
  key: [["circle.a", 15, 17, 9], ["circle.c", 15, 17, 4], ["path.l.wide", "M22 23l16 15M31 31l4-4M36 36l4-4"]],
  bowl: [["path.a", "M6 20h36c0 11-7 18-18 18S6 31 6 20z"], ["rect.b", 16, 37, 16, 4, 2], ["path.b", "M9 26h30l-2 4H11z"]],
  book: [["rect.a", 11, 8, 26, 32, 3], ["rect.b", 11, 8, 6, 32, 2], ["rect.c", 21, 14, 12, 8, 1]],
  lamp: [["path.a", "M15 8h18l7 18H8z"], ["path.l", "M24 26v14"], ["rect.b", 14, 39, 20, 4, 2]],
  tree: [["path.a", "M24 4l10 13h-5l8 10h-6l8 10H9l8-10h-6l8-10h-5z"], ["rect.b", 21, 37, 6, 6, 0]],
  box: [["path.a", "M6 16l18 8v20L6 35z"], ["path.b", "M42 16l-18 8v20l18-9z"], ["path.d", "M6 16l18-8 18 8-18 8z"], ["path.c", "M14 12.5l18 8v6l-4 2v-6l-18-8z"]],
};

// The first that a title has decides, so what an item is comes before what is on it.
const THINGS = [
  ["cushion", "cushion|pillow|throw|blanket"], ["cake", "cake\\w*|baking|cookie|muffin|cupcakes?|biscuit"], ["clock", "clock|alarm|watch"],
  ["mug", "mug|cup|teacup|tea set|coffee"], ["bottle", "bottle|flask|perfume|vase"], ["bag", "bags?|shopper|tote|purse|wallet|backpack|satchel"],
  ["umbrella", "umbrella|parasol|rain"], ["lamp", "lamp|chandelier|shade"], ["candle", "candles?|t-?light|lantern|light|incense"],
  ["jewel", "necklace|earrings?|bracelet|bangle|brooch|ring|jewel|crystal|diamante|bead"], ["bunting", "bunting|party|garland|banner|balloons?"],
  ["jar", "jars?|jam|spice|preserves|canister|sugar"], ["tin", "tins?|box(es)?|storage|drawer|cabinet|chest|case|crate|basket"],
  ["book", "book|notebook|journal|diary|album|sketch|pencils?|pens?|stationery|calendar|passport"],
  ["frame", "frame|picture|signs?|poster|chalkboard|blackboard|memo|notice|mirror|doormat|wall|metal sign|canvas|photo"],
  ["gift", "gift|wrap|ribbons?|paper|tags?|cards?|tissues?|napkins?|stickers?|postcard"], ["bowl", "bowl|plates?|dish|tray|jug|pan|saucer|napkin|egg|spoon|cutlery|kitchen|apron|tea towel"],
  ["toy", "doll|toy|bear|rabbit|dinosaur|puppet|game|skittles|ludo|dominoes|playhouse|children|kids|cat|dog|soldier|circus|spaceboy|dolly"],
  ["bird", "bird|owl|duck|hen|chick|robin|dovecote|feather|cockerel|peacock"], ["key", "keys?|hooks?|hanger|door|knob|handle|padlock"],
  ["tree", "tree|christmas|xmas|advent|reindeer|santa|snow"], ["flower", "flower|floral|rose|daisy|garden|plant|pot|seed|herb|lavender|watering|butterfly"],
  ["star", "stars?|magic|wand|fairy|glitter"], ["heart", "hearts?|love|valentine"],
].map(([name, words]) => [name, new RegExp(`\\b(${words})e?s?\\b`, "i")]);

const COLOURS = [
  ["red", 4, 62], ["cherry", 350, 58], ["strawberry", 350, 62], ["pink", 335, 55], ["rose", 345, 45], ["fu\\w*ia", 320, 60], ["purple", 275, 40], ["lavender", 262, 38],
  ["blue", 212, 50], ["navy", 222, 45], ["turquoise", 182, 50], ["teal", 178, 48], ["mint", 158, 38], ["green", 140, 34], ["yellow", 46, 72], ["gold", 42, 58],
  ["orange", 24, 72], ["chocolate", 20, 36], ["brown", 24, 30], ["wood(en)?", 28, 36], ["ivory", 42, 28], ["cream", 42, 32], ["white", 210, 14], ["silver", 215, 10],
  ["black", 225, 12], ["grey", 220, 8], ["zinc", 205, 10], ["vintage", 30, 34], ["regency", 350, 30], ["retrospot", 2, 60], ["christmas", 356, 52],
].map(([word, hue, saturation]) => [new RegExp(`\\b${word}\\b`, "i"), hue, saturation]);

const PATTERNS = [
  ["spots", /spot|polka|dot/i], ["stripes", /strip|candy|deck/i], ["checks", /gingham|check|tartan|union jack/i],
];

function hash(text) {
  let value = 7;
  for (const letter of text) value = (value * 31 + letter.codePointAt(0)) >>> 0;
  return value;
}

function shape([kind, ...values]) {
  const [tag, ...classes] = kind.split(".");
  const names = { rect: ["x", "y", "width", "height", "rx"], circle: ["cx", "cy", "r"], path: ["d"] }[tag];
  const element = document.createElementNS(NS, tag);
  element.setAttribute("class", classes.join(" "));
  names.forEach((name, place) => element.setAttribute(name, values[place]));
  return element;
}

export function picture(itemId, title) {
  const text = title || "";
  const thing = THINGS.find(([, words]) => words.test(text))?.[0] ?? "box";
  const [, hue, saturation] = COLOURS.find(([word]) => word.test(text)) ?? [null, hash(itemId) % 360, 34];
  const pattern = PATTERNS.find(([, words]) => words.test(text))?.[0];
  const tile = document.createElement("div");
  tile.className = `art${pattern ? ` ${pattern}` : ""}`;
  tile.style.setProperty("--hue", hue);
  tile.style.setProperty("--sat", `${saturation}%`);
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 48 48");
  svg.setAttribute("aria-hidden", "true");
  svg.append(...PICTURES[thing].map(shape));
  tile.append(svg);
  return tile;
}
