"use strict";
(function () {
  var root = document.documentElement, media = window.matchMedia("(prefers-color-scheme: dark)");
  function stored(value) {
    try { if (value === undefined) { return localStorage.getItem("speedclaim-theme"); } localStorage.setItem("speedclaim-theme", value); } catch (e) { /* storage is closed for this page */ }
    return null;
  }
  var chosen = stored();
  if (chosen === "light" || chosen === "dark") { root.dataset.theme = chosen; }
  function all(selector, from) { return Array.prototype.slice.call((from || document).querySelectorAll(selector)); }
  function say(text) { document.getElementById("said").textContent = text; }
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : media.matches; }

  function themeButton() {
    var button = document.getElementById("theme");
    function show() { var dark = isDark(); button.textContent = dark ? "Light theme" : "Dark theme"; button.setAttribute("aria-pressed", String(dark)); }
    button.addEventListener("click", function () { root.dataset.theme = isDark() ? "light" : "dark"; stored(root.dataset.theme); show(); });
    media.addEventListener("change", show);
    show();
  }

  function shown(cell) {
    if (!cell) { return null; }
    var table = cell.closest("table");
    return table.dataset.view === undefined ? cell : (cell.querySelector(".v" + table.dataset.view) || cell);
  }
  function plain(node) {
    var copy = node.cloneNode(true);
    all("button[data-copy]", copy).forEach(function (x) { if (!x.parentNode.querySelector("code")) { x.replaceWith(x.dataset.copy); } });
    all(".hide, .permalink, button, svg", copy).forEach(function (x) { x.remove(); });
    all("small", copy).forEach(function (x) { x.textContent = " " + x.textContent; });
    return copy.textContent.replace(/\s+/g, " ").trim();
  }
  function key(cell) {
    var node = shown(cell);
    if (!node) { return ""; }
    var text = node.dataset.s !== undefined ? node.dataset.s : (node.classList.contains("v") ? "" : plain(node)), value = Number(text);
    return text !== "" && !isNaN(value) ? value : text;
  }
  function sortBy(table, index, heading) {
    var up = heading.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0], rows = all("tr", body);
    rows = rows.map(function (row, place) { return [key(row.cells[index]), place, row]; });
    rows.sort(function (a, b) {
      var x = a[0], y = b[0];
      if (x === y) { return a[1] - b[1]; }
      if (x === "") { return 1; }
      if (y === "") { return -1; }
      if (typeof x !== typeof y) { return typeof x === "number" ? -1 : 1; }
      return ((typeof x === "number" ? x - y : x.localeCompare(y)) || a[1] - b[1]) * (up ? 1 : -1);
    });
    rows.forEach(function (row) { body.appendChild(row[2]); });
    all("thead th", table).forEach(function (th) { th.removeAttribute("aria-sort"); });
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    say("sorted by " + plain(heading) + (up ? ", ascending" : ", descending"));
  }
  function sortable(table) {
    all("thead th", table).forEach(function (heading, index) {
      if (heading.dataset.nosort !== undefined) { return; }
      var button = document.createElement("button");
      button.type = "button"; button.className = "sort";
      while (heading.firstChild) { button.appendChild(heading.firstChild); }
      heading.appendChild(button);
      button.addEventListener("click", function () { sortBy(table, index, heading); });
    });
  }

  function applyFilter(items, text, word, found, changed) {
    var wanted = text.toLowerCase(), left = 0;
    items.forEach(function (item) {
      var match = (!wanted || item.textContent.toLowerCase().indexOf(wanted) >= 0) && (!word || item.dataset.word === word) && (!changed || item.dataset.changed === "yes");
      item.hidden = !match;
      left += match ? 1 : 0;
    });
    if (found) { found.textContent = wanted || word || changed ? left + " of " + items.length + " shown" : ""; }
  }
  function filters() {
    var word = "";
    function claims() {
      var table = document.getElementById("claims-table"), input = document.querySelector("[data-filter='claims-table']");
      if (table) { applyFilter(all("tbody tr", table), input.value, word, input.closest(".tools").querySelector(".found")); }
    }
    all("input[data-filter]").forEach(function (input) {
      var table = document.getElementById(input.dataset.filter);
      input.addEventListener("input", function () {
        if (table.id === "claims-table") { claims(); } else { rows(table, input); }
      });
    });
    function rows(table, input) {
      var box = document.querySelector("[data-changed='" + table.id + "']");
      applyFilter(all("tbody tr", table), input.value, "", input.closest(".tools").querySelector(".found"), box && box.checked);
    }
    all("input[data-changed]").forEach(function (box) {
      var id = box.dataset.changed;
      box.addEventListener("change", function () { rows(document.getElementById(id), document.querySelector("[data-filter='" + id + "']")); });
    });
    all("input[data-filter-cards]").forEach(function (input) {
      input.addEventListener("input", function () { applyFilter(all("article", document.getElementById(input.dataset.filterCards)), input.value, "", input.closest(".tools").querySelector(".found")); });
    });
    all(".tile").forEach(function (tile) {
      tile.addEventListener("click", function () {
        word = word === tile.dataset.word ? "" : tile.dataset.word;
        all(".tile").forEach(function (other) { other.setAttribute("aria-pressed", String(other.dataset.word === word)); });
        all("details.untested").forEach(function (fold) { fold.open = word === fold.dataset.word; });
        claims();
      });
    });
  }

  function copyText(text, button) {
    function done() { var before = button.firstChild.textContent; button.firstChild.textContent = "Copied"; say("copied"); setTimeout(function () { button.firstChild.textContent = before; }, 1200); }
    function byHand() {
      var area = document.createElement("textarea");
      area.value = text; area.className = "hide"; document.body.appendChild(area); area.select();
      try { document.execCommand("copy"); done(); } catch (e) { window.prompt("Copy:", text); }
      area.remove(); button.focus();
    }
    if (navigator.clipboard && window.isSecureContext) { navigator.clipboard.writeText(text).then(done, byHand); } else { byHand(); }
  }
  function save(name, type, text) {
    var link = document.createElement("a"), url = URL.createObjectURL(new Blob([text], { type: type }));
    link.href = url; link.download = name; document.body.appendChild(link); link.click(); link.remove();
    setTimeout(function () { URL.revokeObjectURL(url); }, 1000);
  }
  function grid(table) {
    var rows = [all("thead th", table).map(plain)];
    all("tbody tr", table).forEach(function (row) { if (!row.hidden) { rows.push(all("th, td", row).map(function (cell) { return plain(shown(cell)); })); } });
    return rows;
  }
  function quoted(value) {
    var text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }
  function csv(rows) { return rows.map(function (row) { return row.map(quoted).join(","); }).join("\r\n") + "\r\n"; }
  function markdown(rows) {
    function line(row) { return "| " + row.map(function (text) { return text.replace(/\\/g, "\\\\").replace(/\|/g, "\\|").replace(/</g, "&lt;"); }).join(" | ") + " |"; }
    return [line(rows[0]), "|" + rows[0].map(function () { return " --- |"; }).join("")].concat(rows.slice(1).map(line)).join("\n") + "\n";
  }
  function svgText(svg) {
    var style = getComputedStyle(root), text = new XMLSerializer().serializeToString(svg);
    text = text.replace(/var\(--([a-z0-9-]+)\)/g, function (_, name) { return style.getPropertyValue("--" + name).trim(); });
    return text.replace(/(<svg[^>]*>(?:<title[^>]*>[^<]*<\/title>)?)/, "$1<rect width=\"100%\" height=\"100%\" fill=\"" + style.getPropertyValue("--paper").trim() + "\"/>");
  }
  function exports() {
    all("[data-copy]").forEach(function (b) { b.addEventListener("click", function () { copyText(b.dataset.copy, b); }); });
    all("[data-markdown]").forEach(function (b) { b.addEventListener("click", function () { copyText(markdown(grid(document.getElementById(b.dataset.markdown))), b); }); });
    all("[data-csv]").forEach(function (b) { b.addEventListener("click", function () { save(b.dataset.csv + ".csv", "text/csv", csv(grid(document.getElementById(b.dataset.csv)))); }); });
    all("[data-save]").forEach(function (b) {
      b.addEventListener("click", function () {
        var figure = b.closest("figure");
        if (b.dataset.save === "svg") { save(figure.id + ".svg", "image/svg+xml", svgText(figure.querySelector("svg"))); return; }
        var rows = JSON.parse(figure.querySelector("script.rows").textContent), names = Object.keys(rows[0] || {});
        save(figure.id + ".csv", "text/csv", csv([names].concat(rows.map(function (row) { return names.map(function (name) { return row[name]; }); }))));
      });
    });
  }

  function views() {
    all("[data-views]").forEach(function (group) {
      var table = document.getElementById(group.dataset.views);
      all("button", group).forEach(function (button) {
        button.addEventListener("click", function () {
          table.dataset.view = button.dataset.view;
          all("button", group).forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
          all("thead th", table).forEach(function (th) { th.removeAttribute("aria-sort"); });
          say("the matrix shows " + button.textContent);
        });
      });
    });
  }
  function tabs() {
    var list = all("[role=tab]");
    function open(tab, focus) {
      list.forEach(function (other) {
        var on = other === tab;
        other.setAttribute("aria-selected", String(on)); other.tabIndex = on ? 0 : -1;
        document.getElementById(other.getAttribute("aria-controls")).hidden = !on;
      });
      if (focus) { tab.focus(); }
    }
    list.forEach(function (tab, place) {
      tab.addEventListener("click", function () { open(tab); });
      tab.addEventListener("keydown", function (event) {
        var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) { open(list[(place + step + list.length) % list.length], true); event.preventDefault(); }
      });
    });
    if (list.length) { open(list[0]); }
    function reveal() {
      var target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1))), panel = target && target.closest("[role=tabpanel]");
      for (var fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) { fold.open = true; }
      if (panel && panel.hidden) { open(document.getElementById(panel.getAttribute("aria-labelledby"))); target.scrollIntoView(); }
    }
    window.addEventListener("hashchange", reveal);
    reveal();
  }
  function prices() {
    all("input[data-price]").forEach(function (input) {
      input.addEventListener("input", function () {
        var price = parseFloat(input.value);
        all("[data-gpu-hours]").forEach(function (cell) {
          var money = price >= 0 ? cell.dataset.gpuHours * price : NaN;
          cell.textContent = isNaN(money) ? "\u2014" : money < 1 ? money.toPrecision(2) : money.toFixed(2);
          cell.dataset.s = isNaN(money) ? "" : money;
        });
      });
    });
  }
  document.addEventListener("DOMContentLoaded", function () { themeButton(); all("table.sortable").forEach(sortable); filters(); exports(); views(); tabs(); prices(); });
  window.addEventListener("beforeprint", function () { all("main details").forEach(function (fold) { fold.open = true; }); });
})();
