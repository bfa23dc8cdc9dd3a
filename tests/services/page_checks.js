// What is wrong for people who listen, tap or see little, in what is shown: the elements, by check.
() => {
  const front = document.querySelector("dialog[open]") ?? document.body;
  const shown = (selector) =>
    [...front.querySelectorAll(selector)].filter(
      (element) => element.checkVisibility({ visibilityProperty: true }) && getComputedStyle(element).clipPath === "none",
    );
  const html = (elements) => elements.map((element) => element.outerHTML);
  const controls = "button, input, select, a[href], summary";

  const hasName = (element) =>
    (element.getAttribute("aria-label") || element.innerText || element.labels?.[0]?.textContent || "").trim();

  // WCAG 2.2, 2.5.8: targets of at least 24 x 24 CSS pixels. Titles are links in a text, and the card around is one.
  const isSmall = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return (width < 24 || height < 24) && !element.matches(".skip, .card-title, .line-title");
  };

  // WCAG 2.2, 1.4.3: contrast of text, 4.5 to 1, on whatever is behind it.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([red, green, blue]) => {
    const linear = (value) => (value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 255];
  };
  const contrast = (element) => {
    const background = behind(element);
    if (background[3] < 255) return 0; // half transparent: nobody knows
    const two = [luminance(rgba(getComputedStyle(element).color)), luminance(background)];
    return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
  };
  const hasText = (element) =>
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());

  return {
    nameless: html(shown(controls).filter((element) => !hasName(element))),
    small: html(shown(controls).filter(isSmall)),
    pale: html(shown("*").filter((element) => hasText(element) && contrast(element) < 4.5)),
  };
};
