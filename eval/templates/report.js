"use strict";
// Browsing: every pair is a line of HTML in the page, and those that are wanted become elements.
(() => {
  const $ = (id) => document.getElementById(id);
  const [form, grid, draw, turn, of, page] = ["browse", "grid", "draw", "turn", "of", "page"].map($);
  const each = Number(grid.dataset.pairs);
  let lines, found = [], at = 0;

  const read = () => lines ??= $("rows").textContent.trim().split("\n").map((line) => {
    const first = line.indexOf("|"), second = line.indexOf("|", first + 1);
    return {
      filters: Number(line.slice(0, first)),
      labels: line.slice(first + 1, second).split(" "),
      html: line.slice(second + 1),
    };
  });

  const show = () => {
    const last = Math.max(0, Math.ceil(found.length / each) - 1);
    at = Math.min(Math.max(at, 0), last);
    const some = found.slice(at * each, (at + 1) * each);
    grid.innerHTML = some.map((row) => row.html).join("");
    page.value = at + 1;
    page.max = last + 1;
    $("pages").textContent = `of ${last + 1}`;
    $("first").disabled = $("before").disabled = at === 0;
    $("after").disabled = $("last").disabled = at === last;
    $("where").textContent = some.length
      ? `Pairs ${at * each + 1} to ${at * each + some.length} of ${found.length}`
      : "No such pair";
  };

  const choose = () => {
    const filter = form.elements.show.value;
    const drawn = filter === "draw";
    draw.hidden = !drawn;
    grid.hidden = turn.hidden = drawn;
    if (drawn) return;
    const bit = 2 ** Number(filter), label = of.value;
    found = read().filter((row) => (row.filters & bit) && (!label || row.labels.includes(label)));
    at = 0;
    show();
  };

  const go = (to) => {
    at = to;
    show();
    if (grid.getBoundingClientRect().top < 0) turn.scrollIntoView();
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    // A concept is looked for among all pairs
    if (event.target === of && form.elements.show.value === "draw") form.elements.show.value = "0";
    // The draw is of every concept
    if (event.target !== of && form.elements.show.value === "draw") of.value = "";
    choose();
  });
  $("first").addEventListener("click", () => go(0));
  $("before").addEventListener("click", () => go(at - 1));
  $("after").addEventListener("click", () => go(at + 1));
  $("last").addEventListener("click", () => go(Infinity));
  page.addEventListener("change", () => go((Number(page.value) || 1) - 1));
  for (const link of document.querySelectorAll("a[data-of]")) {
    link.addEventListener("click", () => {
      form.elements.show.value = "0";
      of.value = link.dataset.of;
      choose();
    });
  }
  // Errors do not bubble. What was not copied along with the page is said, not shown as broken.
  grid.addEventListener("error", (event) => {
    const none = document.createElement("span");
    none.className = "none";
    none.textContent = "not beside the page";
    event.target.replaceWith(none);
    $("lacking").hidden = false;
  }, true);
  // Browsers bring a form's state back, and that of a page left behind
  window.addEventListener("pageshow", choose);
  form.hidden = false;
  choose();
})();
