"use strict";
// Tables that are wider than the page say so.
(() => {
  const said = new Map();
  function look() {
    for (const box of document.querySelectorAll(".scroll")) {
      const wide = box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0;
      box.classList.toggle("scrolls", wide);
      if (wide && !said.has(box)) {
        const more = document.createElement("p");
        more.className = "more";
        more.textContent = "This table scrolls sideways: more columns are to the right.";
        box.after(more);
        said.set(box, more);
      }
      if (said.has(box)) said.get(box).hidden = !wide;
    }
  }
  addEventListener("resize", look);
  document.addEventListener("toggle", look, true);
  look();
})();
// The sample browser. Texts of models and problems become text nodes and nothing else.
(() => {
  if (!document.getElementById("data")) return;
  const sets = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const [setBox, which, verdict, order, search] = ["set", "which", "verdict", "order", "search"].map(at);
  let chosen = null; // id of the problem on show

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const fractionRight = (side) => side.right / side.count;
  const wanted = (c) => verdict.value === "all" || c.right === (verdict.value === "right");
  const shown = (p) => p.before.some(wanted) || p.after.some(wanted);
  const kinds = {
    all: () => true,
    better: (p) => p.after_all !== null && fractionRight(p.after_all) > fractionRight(p.before_all),
    worse: (p) => p.after_all !== null && fractionRight(p.after_all) < fractionRight(p.before_all),
  };
  const orders = {
    cut: (a, b) => b.cut - a.cut,
    grown: (a, b) => a.cut - b.cut,
    long: (a, b) => b.before_all.mean - a.before_all.mean,
    id: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  };

  function change(p) {
    const cut = Math.round(p.cut);
    return cut > 0 ? `${cut} shorter` : cut < 0 ? `${-cut} longer` : "as long";
  }

  function list() {
    const set = sets[Number(setBox.value)];
    const alone = set.problems.every((p) => p.after_all === null);
    which.parentElement.hidden = alone;
    for (const option of order.options) option.hidden = alone && ["cut", "grown"].includes(option.value);
    if (order.selectedOptions[0].hidden) order.value = "long";
    order.querySelector("[value=long]").textContent = alone ? "longest first" : "longest before first";
    const text = search.value.trim().toLowerCase();
    const found = set.problems.filter(
      (p) => kinds[alone ? "all" : which.value](p) && shown(p) && (p.question + " " + p.id).toLowerCase().includes(text));
    found.sort(orders[order.value]);
    at("list").replaceChildren(...found.map((p) => {
      const button = make("button");
      button.type = "button";
      button.append(make("span", "", p.question));
      const [b, a] = [p.before_all, p.after_all];
      const tokens = a ? `${Math.round(b.mean)} → ${Math.round(a.mean)} tokens, ${change(p)}` : `${Math.round(b.mean)} tokens`;
      button.append(make("small", "", tokens));
      button.append(make("small", "", `right ${b.right} of ${b.count}` + (a ? ` → ${a.right} of ${a.count}` : "")));
      button.addEventListener("click", () => {
        show(p);
        history.replaceState(null, "", address(p));
        at("problem").focus({ preventScroll: wide() });
      });
      button.dataset.id = p.id;
      const item = make("li");
      item.append(button);
      return item;
    }));
    const left = set.total - set.problems.length;
    const taken = alone ? " Taken were some at even distances." : " Taken were, in turn: the longest cut," +
      " one that became right, one that became wrong, one of the others at even distances.";
    at("status").textContent = `${found.length} of ${set.problems.length} problems match.` +
      (left > 0 ? ` Of the test's ${set.total}, ${left} are left out of this page.${taken}` : "");
    if (found.length) show(found.find((p) => p.id === chosen) || found[0]);
    else at("problem").replaceChildren(make("p", "note", "No problem matches. Take back a filter."));
  }

  const address = (p) => `#sample=${setBox.value}/${encodeURIComponent(p.id)}`;

  // The problem that the address names: #sample=SET/ID.
  function follow() {
    const named = /^#sample=(\d+)\/(.*)$/.exec(location.hash);
    if (!named || !sets[Number(named[1])]) return;
    let id = null;
    try { id = decodeURIComponent(named[2]); } catch { return; }
    setBox.value = named[1];
    which.value = verdict.value = "all";
    search.value = "";
    chosen = id;
    list();
    at("samples").scrollIntoView();
  }

  const wide = () => window.matchMedia("(min-width: 52rem)").matches;

  function show(p) {
    chosen = p.id;
    for (const button of at("list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === p.id));
    }
    const longest = Math.max(...[...p.before, ...p.after].map((c) => c.tokens));
    const sides = make("div", "sides");
    for (const [name, all] of [["before", p.before_all], ["after", p.after_all]]) {
      if (!all) continue;
      const side = make("div");
      side.dataset.side = name;
      side.append(make("h4", "", !p.after_all ? "Completions" : name === "before" ? "Before" : "After"));
      const drawn = p[name].filter(wanted);
      let note = `${all.right} of ${all.count} right, mean ${all.mean.toFixed(1)} tokens`;
      if (drawn.length < all.count) note += `; ${drawn.length} on show`;
      side.append(make("p", "note", note));
      side.append(...drawn.map((c) => card(c, longest)));
      sides.append(side);
    }
    const facts = [`answer ${p.answer}`];
    if (p.level) facts.push(`level ${p.level}`);
    if (p.subject) facts.push(p.subject);
    facts.push(p.id);
    const link = make("a", "", "Link to this problem");
    link.href = address(p);
    const note = make("p", "note", facts.join(" · ") + " · ");
    note.append(link);
    at("problem").replaceChildren(make("p", "question", p.question), note, sides);
  }

  function card(c, longest) {
    const card = make("article", c.right ? "completion" : "completion wrong");
    const head = make("header");
    head.append(make("span", "verdict", c.right ? "✓ right" : "✗ wrong"), make("span", "", `${c.tokens} tokens`));
    head.append(make("span", "answer", c.answer === null ? "no answer" : `answer ${c.answer}`));
    if (c.repeated) head.append(make("span", "", `${Math.round(100 * c.repeated)} % repeated`));
    if (c.ran_out) head.append(make("span", "", "ran out of tokens"));
    const bar = make("div", "bar");
    bar.append(make("i"));
    bar.firstChild.style.width = `${(100 * c.tokens) / longest}%`;
    const text = make("div", "text");
    for (const [piece, again] of c.parts) text.append(again ? make("mark", "", piece) : document.createTextNode(piece));
    card.append(head, bar, text);
    if (c.left_out) card.append(make("p", "note", `${c.left_out} more characters are left out.`));
    return card;
  }

  setBox.append(...sets.map((set, i) => {
    const option = make("option", "", set.label);
    option.value = String(i);
    return option;
  }));
  for (const control of [setBox, which, verdict, order]) control.addEventListener("change", list);
  search.addEventListener("input", list);
  at("list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...at("list").querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
    next.click();
    next.focus();
  });
  at("controls").hidden = at("browse").hidden = false;
  list();
  addEventListener("hashchange", follow);
  follow();
})();
