// Comfort only: every page reads well without it.
(function () {
  "use strict";
  var html = document.documentElement;
  html.classList.add("js");

  function stored(value) {
    try {
      if (value === undefined) return localStorage.getItem("penlight-theme");
      localStorage.setItem("penlight-theme", value);
    } catch (e) { /* no storage here: the choice lasts for the page */ }
    return null;
  }
  var wish = stored();
  if (wish === "light" || wish === "dark") html.dataset.theme = wish;

  function isDark() {
    return html.dataset.theme ? html.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function theme(button) {
    function tell() { button.setAttribute("aria-pressed", String(isDark())); }
    button.setAttribute("aria-label", "Dark colours");
    button.addEventListener("click", function () {
      html.dataset.theme = isDark() ? "light" : "dark";
      stored(html.dataset.theme);
      tell();
    });
    tell();
  }

  function copying(button) {
    button.addEventListener("click", function () {
      var text = button.dataset.copy;
      function said() {
        button.textContent = "copied";
        setTimeout(function () { button.textContent = "copy"; }, 1500);
      }
      function select() {
        var range = document.createRange();
        range.selectNodeContents(document.getElementById("unit"));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        if (document.execCommand("copy")) said();
      }
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(said, select);
      else select();
    });
  }

  function arrows(event) {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest && event.target.closest("input, select, textarea")) return;
    var way = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    var link = way && document.querySelector('head link[rel="' + way + '"]');
    if (link) location.href = link.href;
  }

  function find(input) {
    var all = Array.prototype.slice.call(document.querySelectorAll(".class"));
    input.addEventListener("input", function () {
      var text = input.value.trim().toLowerCase(), count = 0;
      all.forEach(function (one) {
        one.hidden = one.dataset.label.toLowerCase().indexOf(text) < 0;
        count += one.hidden ? 0 : 1;
      });
      document.getElementById("found").textContent = count + " of " + all.length;
    });
  }

  // ------------------------------------------------------------------ the wall of a layer

  function number(x) {
    if (x === null || x === undefined) return "–";
    var size = Math.abs(x);
    return (size && (size < 1e-3 || size >= 1e6) ? x.toExponential(2) : String(Number(x.toPrecision(3)))).replace("-", "−");
  }

  function share(x) {
    if (x > 0 && x < 0.001) return "<0.1 %";
    return (x > 0 && x < 0.1 ? (100 * x).toFixed(1) : (100 * x).toFixed(0)) + " %";
  }

  function wall(list) {
    var data = JSON.parse(document.getElementById("columns").textContent);
    var form = document.getElementById("controls");
    var cards = Array.prototype.slice.call(list.children);
    var first = form.elements.pic ? form.elements.pic.value : null, shown = first;
    var fields = { pic: first, sort: "index", up: "", only: "", best: "", low: "0", high: "100" };

    function field(name) {
      var control = form.elements[name];
      if (!control) return fields[name];
      return control.type === "checkbox" ? (control.checked ? "1" : "") : control.value;
    }

    function words(text, kind) {
      var outer = document.createElement("span"), inner = document.createElement("span");
      outer.className = kind;
      inner.textContent = text;
      outer.appendChild(inner);
      return outer;
    }

    function image(file, width, height, alt) {
      var img = document.createElement("img");
      img.loading = "lazy";
      img.decoding = "async";
      if (width) { img.width = width; img.height = height; }
      img.alt = alt;
      img.src = data.root + file;
      return img;
    }

    function picture(kind, u) {
      var one = (data[kind] || [])[u], unit = data.path + ":" + u, img;
      if (one === 0) return words("no gradient reached the input", "hatched");
      if (!one) return words(kind === "top" ? "no example" : data.missing, "absent");
      if (kind === "filter") {
        img = image(one[0], one[1], one[2], "filter of " + unit);
        if (Math.max(one[1], one[2]) < 64) img.className = "px";
        return img;
      }
      if (kind !== "top") {
        img = image(one[0], 0, 0, (kind === "sad" ? "least preferred" : "preferred") + " input of " + unit +
          ", start " + one[1] + ", activation " + number(one[2]));
        img.addEventListener("load", function () { if (Math.max(img.naturalWidth, img.naturalHeight) < 64) img.className = "px"; });
        return img;
      }
      var w = one[6] - one[4], h = one[5] - one[3], part = w !== one[1] || h !== one[2];
      img = image(one[0], one[1], one[2], "top example of " + unit + ": " + one[8] + ", activation " + number(one[7]));
      if (Math.max(w, h) < 64) img.className = "px";
      if (!part) return img;
      var crop = document.createElement("span");
      crop.className = "crop";
      crop.style.aspectRatio = w + "/" + h;
      img.style.width = 100 * one[1] / w + "%";
      img.style.left = -100 * one[4] / w + "%";
      img.style.top = -100 * one[3] / h + "%";
      crop.appendChild(img);
      return crop;
    }

    function stat(u, sort) {
      if (data.fires && data.fires[u] === 0) return null;
      if (sort === "fires") return "fires " + share(data.fires[u]);
      if (sort === "mean") return "mean " + number(data.mean[u]);
      if (sort === "sel") return "sel " + number(data.sel[u]);
      return data.max ? "max " + number(data.max[u]) : "";
    }

    function fits(u, s) {
      var fires = data.fires ? data.fires[u] : null;
      if (s.only === "fires" && !(fires > 0) || s.only === "never" && fires !== 0) return false;
      if (s.only === "dark" && (data.happy || [])[u] !== 0) return false;
      if (s.only.indexOf("is:") === 0 && ((data.verdict || [])[u] || []).indexOf(s.only.slice(3)) < 0) return false;
      if (s.best !== "" && (data.best || [])[u] !== Number(s.best)) return false;
      return fires === null || 100 * fires >= Number(s.low) && 100 * fires <= Number(s.high);
    }

    function state() {
      var s = {};
      Object.keys(fields).forEach(function (name) { s[name] = field(name); });
      return s;
    }

    function show() {
      var s = state(), column = data[s.sort], count = 0, order = cards.map(function (_, u) { return u; });
      if (column) {
        order.sort(function (a, b) {
          var x = column[a], y = column[b];
          if (x === null || y === null) return (x === null) - (y === null) || a - b;
          return (s.up ? x - y : y - x) || a - b;
        });
      }
      var all = document.createDocumentFragment();
      order.forEach(function (u) {
        var card = cards[u], text = stat(u, s.sort), place = card.querySelector(".stat");
        card.hidden = !fits(u, s);
        count += card.hidden ? 0 : 1;
        if (text !== null) place.textContent = text;
        if (s.pic !== shown) card.querySelector(".pic").replaceChildren(picture(s.pic, u));
        all.appendChild(card);
      });
      var active = document.activeElement;
      list.appendChild(all);
      if (active && list.contains(active)) active.focus();
      shown = s.pic;
      document.getElementById("count-out").textContent = count === data.n ? data.n + (data.n === 1 ? " unit" : " units") : count + " of " + data.n + " units";
      document.getElementById("empty").hidden = count > 0;
      if (form.elements.low) {
        document.getElementById("low-out").textContent = s.low + " %";
        document.getElementById("high-out").textContent = s.high + " %";
      }
      if (form.elements.up) form.elements.up.disabled = s.sort === "index";
      var hash = new URLSearchParams();
      Object.keys(fields).forEach(function (name) { if (s[name] !== fields[name] && s[name] !== null) hash.set(name, s[name]); });
      var text = hash.toString();
      if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
    }

    function restore() {
      var hash = new URLSearchParams(location.hash.slice(1));
      Object.keys(fields).forEach(function (name) {
        var control = form.elements[name], value = hash.has(name) ? hash.get(name) : fields[name], old;
        if (!control) return;
        if (control.type === "checkbox") { control.checked = value === "1"; return; }
        old = control.value;
        control.value = value;
        if (control.value === "" && value !== "") control.value = fields[name] === null ? old : fields[name];
      });
      show();
    }

    form.addEventListener("input", show);
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    form.addEventListener("reset", function () { setTimeout(show); });
    document.getElementById("again").addEventListener("click", function () { form.reset(); });
    addEventListener("hashchange", function () { if (location.hash !== "#main") restore(); });
    restore();
  }

  document.addEventListener("DOMContentLoaded", function () {
    var one = document.getElementById("theme");
    if (one) theme(one);
    document.querySelectorAll("[data-copy]").forEach(copying);
    document.addEventListener("keydown", arrows);
    one = document.getElementById("find");
    if (one) find(one);
    one = document.getElementById("wall");
    if (one) wall(one);
  });
})();
