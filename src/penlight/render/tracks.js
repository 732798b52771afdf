// Cells over a text: the list, the coloured text, and which cells are on in a stretch of it.
(function () {
  "use strict";
  const ROW = 52, CLIPPED = 0.995, HALF = 32;
  const DEVIATIONS = 0.5, NEAREST = 8, FARTHEST = 64; // as results/tracks.py has them
  const SELECTED = "selected", NUMBER = "number", SPREAD = "spread", SURPRISE = "surprise";

  function make(tag, name, text) {
    const one = document.createElement(tag);
    if (name) one.className = name;
    if (text !== undefined) one.textContent = text;
    return one;
  }
  function figure(value) {
    if (!isFinite(value)) return "–";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : size >= 1000 ? value.toFixed(0) : String(+value.toPrecision(3));
    return text.replace("-", "\u2212");
  }
  function percent(share) { if (share > 0.999 && share < 1) return ">99.9\u202f%";
    return share > 0 && share < 0.001 ? "<0.1\u202f%" : (100 * share).toFixed(share < 0.1 ? 1 : 0) + "\u202f%"; }
  function visible(token) {
    return token.replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192").replace(/^ $/, "\u2423");
  }

  async function opened(text) {
    const raw = Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); });
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // The levels of a layer: units × tokens, with mean and spread of each unit.
  function Layer(about, levels, count, steps) {
    this.path = about.path;
    this.tops = about.tops;
    this.units = about.tops.length;
    this.count = count;
    this.levels = levels;
    this.means = new Float64Array(this.units);
    this.spreads = new Float64Array(this.units);
    this.clips = new Uint8Array(this.units); // the level that takes the strongest colour
    for (let u = 0; u < this.units; u++) {
      const own = this.of(u), held = new Uint32Array(steps + 2);
      let sum = 0, squares = 0;
      for (let n = 0; n < count; n++) {
        const v = own[n];
        sum += v;
        squares += v * v;
        held[v < 0 ? -v : v]++;
      }
      const mean = sum / count;
      this.means[u] = mean;
      this.spreads[u] = Math.sqrt(Math.max(squares / count - mean * mean, 0));
      let clip = 0, below = held[0];
      while (clip < steps && below < CLIPPED * count) below += held[++clip];
      this.clips[u] = Math.max(clip, 1);
    }
  }
  Layer.prototype.of = function (u) { return this.levels.subarray(u * this.count, (u + 1) * this.count); };
  Layer.prototype.on = function (start, stop, edges) {
    const count = this.count, length = stop - start, found = [];
    const margin = Math.min(Math.max(length, NEAREST), FARTHEST);
    const first = Math.max(0, start - margin), last = Math.min(count, stop + margin);
    for (let u = 0; u < this.units; u++) {
      const own = this.of(u), spread = DEVIATIONS * this.spreads[u];
      const over = Math.floor(this.means[u] + spread), under = Math.ceil(this.means[u] - spread);
      const up = [0, 0, 0], down = [0, 0, 0];
      for (let n = 0; n < count; n++) {
        const v = own[n];
        if (v <= over && v >= under) continue;
        const place = n >= start && n < stop ? 0 : n >= first && n < last ? 1 : 2;
        if (v > over) up[place]++;
        if (v < under) down[place]++;
      }
      const both = [up, down].map(function (held) {
        const inside = held[0] / length;
        const around = held[1] / Math.max(last - first - length, 1);
        const elsewhere = held[2] / Math.max(count - (last - first), 1);
        return { score: inside * (1 - elsewhere) * (1 - (edges ? around : 0)), inside: inside, around: around, elsewhere: elsewhere };
      });
      const way = both[1].score > both[0].score ? 1 : 0;
      found.push(Object.assign({ unit: this.path + ":" + u, way: way ? "down" : "up" }, both[way]));
    }
    return found;
  };

  function Tracks(root) {
    const self = this;
    this.root = root;
    this.find = function (name) { return root.querySelector(".tracks-" + name); };
    this.about = JSON.parse(this.find("about").textContent);
    this.count = this.about.tokens.length;
    this.layers = new Map(); // path → Layer
    this.order = []; // units in the order of the list: {unit, path, index, said, title}
    this.unit = null;
    this.stretch = null; // [start, stop] of what is selected
    this.rows = [];
    this.scores = {};
    root.classList.add("ready");
    this.write();
    this.controls();
    this.ready = this.begin().then(function () { root.dataset.ready = "yes"; return self; });
  }

  Tracks.prototype.part = function (name) {
    return Array.from(this.root.querySelectorAll("script[data-part]")).find(function (s) { return s.dataset.part === name; });
  };
  Tracks.prototype.bytes = function (name) { return opened(this.part(name).textContent); };
  Tracks.prototype.layer = async function (path) {
    if (!this.layers.has(path)) {
      const n = this.about.layers.findIndex(function (one) { return one.path === path; });
      const read = this.bytes("layer-" + n), about = this.about, count = this.count, stepped = "steps" in this.part("layer-" + n).dataset;
      this.layers.set(path, read.then(function (buffer) {
        const levels = new Int8Array(buffer);
        if (stepped) for (let k = 0; k < levels.length; k++) if (k % count) levels[k] += levels[k - 1];
        return new Layer(about.layers[n], levels, count, about.steps);
      }));
    }
    return this.layers.get(path);
  };
  Tracks.prototype.begin = async function () {
    this.known = new Float32Array(await this.bytes("known"));
    this.given = new Float32Array(await this.bytes("probability"));
    for (const [n, one] of this.about.layers.entries()) {
      this.scores[one.path] = new Float32Array(await this.bytes("scores-" + n)); // units × properties
    }
    await this.restore();
    if (this.own && !this.stretch) {
      const self = this, lit = this.own.findIndex(function (v) { return Math.abs(v) > 0.6 * self.clip; });
      if (lit >= this.seen(this.find("text"))[1]) this.show(lit);
    }
  };

  // ---- the text -------------------------------------------------------------------------------------------------------------------
  Tracks.prototype.write = function () {
    const text = this.find("text"), tokens = this.about.tokens, gaps = this.about.gaps || {};
    this.spots = [];
    this.lines = []; // the line of every token, and its column there
    let line = make("div", "tracks-line"), number = 1, column = 0;
    text.textContent = "";
    for (let n = 0; n < tokens.length; n++) {
      const gap = gaps[n] || "";
      const before = gap.split("\n");
      before.forEach(function (part, k) {
        if (k) { text.append(line); line = make("div", "tracks-line"); number++; column = 0; }
        if (part) { line.append(part); column += part.length; }
      });
      const ends = tokens[n].endsWith("\n");
      const spot = make("i", "t", ends ? tokens[n].slice(0, -1) : tokens[n]);
      spot.dataset.n = n;
      this.spots.push(spot);
      this.lines.push([number, column + 1]);
      line.append(spot);
      column += tokens[n].length;
      if (ends) { text.append(line); line = make("div", "tracks-line"); number++; column = 0; }
    }
    if (line.childNodes.length) text.append(line);
  };

  Tracks.prototype.paint = function () {
    const mark = this.marking(), own = this.own, clip = this.clip, stretch = this.stretch;
    for (let n = 0; n < this.count; n++) {
      const v = own ? Math.max(-clip, Math.min(clip, own[n])) / clip : 0;
      let name = "t c" + (HALF + Math.round(v * HALF));
      if (this.about.tokens[n].endsWith("\n")) name += " end";
      if (stretch && n >= stretch[0] && n < stretch[1]) name += " on";
      const spot = this.spots[n];
      if (spot.className !== name) spot.className = name;
      const strength = mark ? mark(n) : 0;
      spot.style.borderBottomColor = strength > 0 ? "rgba(208, 120, 0, " + strength.toFixed(2) + ")" : "";
    }
  };

  // Strength in [0, 1] of what is underlined at a token, or null where nothing is.
  Tracks.prototype.marking = function () {
    const asked = this.find("mark").value, self = this;
    if (!asked) return null;
    if (asked === SURPRISE) return function (n) { return Math.min(1, -Math.log2(Math.max(self.given[n], 1e-9)) / 8) || 0; };
    const p = this.about.known.findIndex(function (one) { return one.name === asked; });
    const track = this.known.subarray(p * this.count, (p + 1) * this.count);
    let top = 0;
    for (const v of track) if (v > top) top = v;
    return function (n) { return top > 0 ? Math.max(0, track[n] / top) || 0 : 0; };
  };

  // ---- what is asked --------------------------------------------------------------------------------------------------------------
  Tracks.prototype.controls = function () {
    const self = this, layer = this.find("layer"), order = this.find("order"), mark = this.find("mark"), list = this.find("list");
    layer.addEventListener("change", function () { self.sorted(true); });
    order.addEventListener("change", function () { self.sorted(true); });
    mark.addEventListener("change", function () { self.paint(); self.overview(); self.follows(); self.remember(); });
    this.find("number").addEventListener("input", function () { self.sorted(true); });
    list.addEventListener("scroll", function () { self.shown(); });
    list.addEventListener("click", function (event) {
      const row = event.target.closest(".tracks-row");
      if (row) self.choose(row.dataset.unit);
    });
    document.addEventListener("keydown", function (event) {
      if (event.target === document.body || self.root.contains(event.target)) self.key(event);
    });
    this.find("edges").addEventListener("change", function () { self.sorted(true); });
    this.find("drop").addEventListener("click", function () { self.select(null); });
    const text = this.find("text");
    text.addEventListener("mousemove", function (event) {
      const spot = event.target.closest("i.t");
      self.say(spot ? +spot.dataset.n : null);
    });
    text.addEventListener("scroll", function () { self.overview(); });
    document.addEventListener("mouseup", function () { setTimeout(function () { self.marked(); }, 0); });
    this.find("over").addEventListener("click", function (event) {
      const box = event.currentTarget.getBoundingClientRect();
      self.show(Math.floor((event.clientX - box.left) / box.width * self.count));
    });
    addEventListener("resize", function () { self.overview(); self.shown(); });
    addEventListener("hashchange", function () { if (decodeURIComponent(location.hash.slice(1)) !== self.told) self.restore(); });
  };

  Tracks.prototype.key = function (event) {
    if (event.key === "Escape") this.select(null);
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input, .tracks-text")) return;
    const way = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (way === undefined || !this.order.length) return;
    event.preventDefault();
    const self = this, at = this.order.findIndex(function (one) { return one.unit === self.unit; });
    const next = Math.max(0, Math.min(this.order.length - 1, (at < 0 ? -1 : at) + way));
    this.choose(this.order[next].unit);
    const list = this.find("list"), top = next * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  };

  // What the user has selected in the text, as tokens.
  Tracks.prototype.marked = function () {
    const picked = getSelection(), text = this.find("text");
    if (!picked || picked.isCollapsed || !picked.rangeCount) return;
    const range = picked.getRangeAt(0);
    if (!text.contains(range.commonAncestorContainer)) return;
    let start = -1, stop = -1;
    this.spots.forEach(function (spot, n) {
      if (!range.intersectsNode(spot)) return;
      const whole = document.createRange();
      whole.selectNodeContents(spot.firstChild || spot);
      if (spot.firstChild && (range.compareBoundaryPoints(Range.END_TO_START, whole) >= 0 || range.compareBoundaryPoints(Range.START_TO_END, whole) <= 0)) return;
      if (start < 0) start = n;
      stop = n + 1;
    });
    if (start >= 0 && !(this.stretch && this.stretch[0] === start && this.stretch[1] === stop)) this.select([start, stop]);
  };

  Tracks.prototype.select = function (stretch) {
    const order = this.find("order"), asked = this.find("stretch");
    if (!stretch && !this.stretch) return;
    this.stretch = stretch;
    asked.hidden = !stretch;
    let choice = order.querySelector('option[value="' + SELECTED + '"]');
    choice.hidden = choice.disabled = !stretch;
    if (stretch) {
      if (order.value !== SELECTED) this.before = order.value;
      const words = this.about.tokens.slice(stretch[0], stretch[1]);
      asked.querySelector("code").textContent = visible(words.join(this.about.gaps ? " " : ""));
      order.value = SELECTED;
    } else {
      order.value = this.before || NUMBER;
      if (getSelection()) getSelection().removeAllRanges();
    }
    this.paint();
    this.overview();
    this.sorted(true);
  };

  // ---- the list -------------------------------------------------------------------------------------------------------------------
  Tracks.prototype.strength = function (score, p) {
    return this.about.known[p].kind === "yes/no" ? Math.abs(2 * score - 1) : Math.abs(score);
  };
  Tracks.prototype.toldScore = function (score, p) {
    const yes = this.about.known[p].kind === "yes/no", down = score < (yes ? 0.5 : 0);
    return (down ? (yes ? 1 - score : -score) : score).toFixed(3) + (down ? " \u2193" : " \u2191");
  };
  Tracks.prototype.best = function (path, index, count) {
    const known = this.about.known.length, own = this.scores[path].subarray(index * known, (index + 1) * known), self = this;
    return Array.from(own, function (score, p) { return { p: p, score: score, strength: self.strength(score, p) }; })
      .filter(function (one) { return isFinite(one.score); })
      .sort(function (a, b) { return b.strength - a.strength; }).slice(0, count);
  };
  Tracks.prototype.asked = function () {
    const wanted = this.find("layer").value;
    return wanted ? [wanted] : this.about.layers.map(function (one) { return one.path; });
  };
  // The cells on from start to stop and off elsewhere, best first: as TracksResult.on gives them.
  Tracks.prototype.on = async function (start, stop, paths, edges) {
    let found = [];
    for (const path of paths || this.asked()) found = found.concat((await this.layer(path)).on(start, stop, edges));
    return found.sort(function (a, b) { return b.score - a.score; });
  };

  Tracks.prototype.sorted = async function (top) {
    const order = this.find("order").value, paths = this.asked(), self = this, round = this.round = (this.round || 0) + 1;
    let rows = [], told = "";
    const edges = this.find("edges").checked;
    if (order === SELECTED && this.stretch) {
      const found = await this.on(this.stretch[0], this.stretch[1], paths, edges);
      rows = found.map(function (one) {
        return {
          unit: one.unit, value: -one.score, said: one.score.toFixed(2) + (one.way === "up" ? " \u2191" : " \u2193"),
          title: "on at " + percent(one.inside) + " of the stretch, " + percent(one.around) + " around it, " + percent(one.elsewhere) + " elsewhere",
        };
      });
      told = "Score: share of the stretch where the cell is on × share elsewhere where it is off" + (edges ? " × share right before and after where it is off" : "") + ". ↑ on is high, ↓ on is low.";
    } else {
      const p = this.about.known.findIndex(function (one) { return "p:" + one.name === order; });
      for (const path of paths) {
        const units = this.about.layers.find(function (one) { return one.path === path; }).tops.length;
        const layer = order === SPREAD ? await this.layer(path) : null;
        for (let u = 0; u < units; u++) {
          const one = { unit: path + ":" + u, value: 0, said: "", title: "" };
          if (p >= 0) {
            const score = this.scores[path][u * this.about.known.length + p];
            one.value = isFinite(score) ? -this.strength(score, p) : 1;
            one.said = isFinite(score) ? this.toldScore(score, p) : "–";
          } else if (layer) {
            one.value = -layer.spreads[u] * layer.tops[u] / this.about.steps;
            one.said = "σ " + figure(-one.value);
          } else {
            const first = this.best(path, u, 1)[0];
            one.said = first ? this.about.known[first.p].name + " " + this.toldScore(first.score, first.p) : "";
          }
          rows.push(one);
        }
      }
      if (p >= 0) {
        const known = this.about.known[p];
        told = known.measure + " with “" + known.name + "”: " + known.help + ". ↑ the cell goes up with it, ↓ down." + (known.stretches < this.about.few ? " It comes " + known.stretches + "× here: too seldom to say much." : "") + (this.about.cut ? " Over all of what was read." : "");
      }
      if (order === SPREAD) told = "By standard deviation along this text.";
      if (order === NUMBER) told = "Beside each cell the property that it follows best.";
      rows.sort(function (a, b) { return a.value - b.value; });
    }
    if (round !== this.round) return;
    const only = this.find("number").value.trim();
    if (only) rows = rows.filter(function (one) { return one.unit.endsWith(":" + only) || one.unit.indexOf(only) >= 0 && !/^\d+$/.test(only); });
    this.order = rows;
    this.find("told").textContent = (rows.length === 1 ? "1 cell. " : rows.length.toLocaleString("en") + " cells. ") + told;
    const list = this.find("list");
    this.find("room").style.height = rows.length * ROW + "px";
    if (top) list.scrollTop = 0;
    this.shown(true);
    this.remember();
    if (!this.unit && rows.length) await this.choose(rows[0].unit);
    return self;
  };

  // Only the rows that can be seen exist.
  Tracks.prototype.shown = function (anew) {
    const list = this.find("list"), room = this.find("room"), self = this;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 2);
    const last = Math.min(this.order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 2);
    this.rows = this.rows.filter(function (row) {
      const keep = !anew && +row.dataset.at >= first && +row.dataset.at < last;
      if (!keep) row.remove();
      return keep;
    });
    const held = new Set(this.rows.map(function (row) { return +row.dataset.at; }));
    for (let at = first; at < last; at++) {
      if (held.has(at)) continue;
      const one = this.order[at], row = make("div", "tracks-row"), line = make("p");
      row.id = this.root.id + "-row-" + at;
      row.setAttribute("role", "option");
      row.setAttribute("aria-posinset", at + 1);
      row.setAttribute("aria-setsize", this.order.length);
      row.dataset.at = at;
      row.dataset.unit = one.unit;
      row.title = one.title;
      row.style.top = at * ROW + "px";
      line.append(make("b", "", one.unit), make("span", "", one.said));
      const strip = make("canvas");
      strip.setAttribute("aria-hidden", "true");
      row.append(line, strip);
      room.append(row);
      this.rows.push(row);
      this.strip(strip, one.unit);
    }
    let active = "";
    this.rows.forEach(function (row) {
      const chosen = row.dataset.unit === self.unit;
      row.setAttribute("aria-selected", String(chosen));
      if (chosen) active = row.id;
    });
    if (active) list.setAttribute("aria-activedescendant", active); else list.removeAttribute("aria-activedescendant");
  };

  function apart(unit) {
    const at = unit.lastIndexOf(":");
    return [unit.slice(0, at), +unit.slice(at + 1)];
  }
  Tracks.prototype.strip = async function (canvas, unit) {
    const [path, index] = apart(unit), layer = await this.layer(path);
    if (canvas.isConnected) this.draw(canvas, layer.of(index), layer.clips[index], this.stretch);
  };
  // The values along the text: a column holds the range of the tokens it stands for.
  Tracks.prototype.draw = function (canvas, own, clip, stretch, floor) {
    const scale = devicePixelRatio || 1, wide = Math.round(canvas.clientWidth * scale), tall = Math.round(canvas.clientHeight * scale);
    if (!wide || !tall) return null;
    canvas.width = wide;
    canvas.height = tall;
    const pen = canvas.getContext("2d"), count = own.length, high = tall - (floor || 0) * scale;
    let least = 0, most = 0;
    for (let n = 0; n < count; n++) { if (own[n] < least) least = own[n]; if (own[n] > most) most = own[n]; }
    least = Math.max(least, -clip);
    most = Math.min(most, clip);
    const room = most - least || 1, at = function (v) { return (1 - (Math.max(least, Math.min(most, v)) - least) / room) * (high - 2) + 1; };
    if (stretch) {
      pen.fillStyle = "#ffd98a";
      pen.fillRect(stretch[0] / count * wide, 0, Math.max(2 * scale, (stretch[1] - stretch[0]) / count * wide), high);
    }
    const zero = at(0), colours = this.about.colours;
    for (let x = 0; x < wide; x++) {
      const first = Math.floor(x * count / wide), last = Math.max(first + 1, Math.floor((x + 1) * count / wide));
      let low = 128, top = -128, sum = 0;
      for (let n = first; n < last; n++) { const v = own[n]; if (v < low) low = v; if (v > top) top = v; sum += v; }
      const v = Math.max(-clip, Math.min(clip, sum / (last - first))) / clip;
      // the palest colours would not be seen on paper
      const shade = v < 0 ? Math.min(HALF - 10, Math.round(HALF + v * HALF)) : Math.max(HALF + 10, Math.round(HALF + v * HALF));
      pen.fillStyle = colours[shade];
      const y = Math.min(at(top), zero), end = Math.max(at(low), zero);
      pen.fillRect(x, y, 1, Math.max(1, end - y));
    }
    pen.fillStyle = "#b3a791";
    pen.fillRect(0, Math.round(zero), wide, 1);
    return { pen: pen, wide: wide, high: high, tall: tall, scale: scale };
  };

  // ---- the chosen cell ------------------------------------------------------------------------------------------------------------
  Tracks.prototype.choose = async function (unit) {
    const [path, index] = apart(unit);
    if (!this.about.layers.some(function (one) { return one.path === path && index >= 0 && index < one.tops.length; })) return;
    this.unit = unit;
    const layer = await this.layer(path);
    if (this.unit !== unit) return;
    this.own = layer.of(index);
    this.clip = layer.clips[index];
    this.step = layer.tops[index] / this.about.steps;
    this.find("name").textContent = unit;
    const legend = this.find("legend").querySelectorAll("span"), most = this.clip * this.step;
    legend[0].textContent = "\u2212" + figure(most);
    legend[1].textContent = "+" + figure(most);
    this.follows();
    this.paint();
    this.overview();
    this.shown();
    this.say(this.at === undefined ? null : this.at);
    this.remember();
  };

  Tracks.prototype.follows = function () {
    if (!this.unit) return;
    const box = this.find("best"), [path, index] = apart(this.unit), self = this, mark = this.find("mark");
    box.textContent = "";
    const found = this.best(path, index, 3);
    if (found.length) box.append("follows");
    found.forEach(function (one) {
      const known = self.about.known[one.p], button = make("button");
      button.type = "button";
      button.append(known.name + " ", make("em", "", known.measure + " " + self.toldScore(one.score, one.p)));
      button.title = "Underline it in the text";
      button.setAttribute("aria-pressed", String(mark.value === known.name));
      button.addEventListener("click", function () {
        mark.value = mark.value === known.name ? "" : known.name;
        mark.dispatchEvent(new Event("change"));
      });
      box.append(button);
    });
  };

  Tracks.prototype.overview = function () {
    if (!this.own) return;
    const drawn = this.draw(this.find("over"), this.own, this.clip, this.stretch, 9), mark = this.marking();
    if (!drawn) return;
    const pen = drawn.pen, text = this.find("text"), count = this.count;
    if (mark) {
      for (let x = 0; x < drawn.wide; x++) {
        const first = Math.floor(x * count / drawn.wide), last = Math.max(first + 1, Math.floor((x + 1) * count / drawn.wide));
        let most = 0;
        for (let n = first; n < last; n++) most = Math.max(most, mark(n));
        if (most > 0) { pen.fillStyle = "rgba(208, 120, 0, " + most.toFixed(2) + ")"; pen.fillRect(x, drawn.high + 4 * drawn.scale, 1, 5 * drawn.scale); }
      }
    }
    const seen = this.seen(text);
    pen.strokeStyle = "#241f18";
    pen.lineWidth = 1.5 * drawn.scale;
    pen.strokeRect(seen[0] / count * drawn.wide + 1, 1, Math.max(3, (seen[1] - seen[0]) / count * drawn.wide) - 2, drawn.high - 2);
  };
  // Tokens at the upper and lower edge of what can be seen of the text.
  Tracks.prototype.seen = function (text) {
    const spots = this.spots, box = text.getBoundingClientRect();
    function after(y) {
      let low = 0, high = spots.length;
      while (low < high) { const middle = (low + high) >> 1; if (spots[middle].getBoundingClientRect().bottom < y) low = middle + 1; else high = middle; }
      return low;
    }
    return [after(box.top), after(box.bottom)];
  };
  Tracks.prototype.show = function (n) {
    const spot = this.spots[Math.max(0, Math.min(this.count - 1, n))], text = this.find("text");
    text.scrollTop += spot.getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 3;
  };

  Tracks.prototype.say = function (n) {
    const box = this.find("said"), self = this;
    if (n === null || !this.own) return;
    this.at = n;
    const first = make("span"), line = this.lines[n];
    first.append(make("code", "", visible(this.about.tokens[n])), " " + this.about.unit + " " + n + ", line " + line[0] + ", column " + line[1]);
    const value = make("span");
    value.append("value ", make("b", "", figure(this.own[n] * this.step)));
    box.textContent = "";
    box.append(first, value);
    if (this.given.length && isFinite(this.given[n])) {
      const said = make("span");
      said.append("the network gave it ", make("b", "", percent(this.given[n])), " (" + figure(-Math.log2(Math.max(this.given[n], 1e-30))) + " bits)");
      box.append(said);
    }
    const holds = this.about.known.filter(function (one, p) { return one.kind === "yes/no" && self.known[p * self.count + n] === 1; });
    if (holds.length) box.append(make("span", "", holds.map(function (one) { return one.name; }).join(", ")));
  };

  // ---- the address ----------------------------------------------------------------------------------------------------------------
  Tracks.prototype.remember = function () {
    if (!this.unit || this.restoring) return;
    const order = this.find("order").value, layer = this.find("layer").value, mark = this.find("mark").value, parts = [this.unit];
    if (layer) parts.push("layer=" + layer);
    if (order !== this.about.order && order !== SELECTED) parts.push("by=" + order.replace(/^p:/, ""));
    if (mark !== this.about.mark) parts.push("mark=" + mark);
    if (this.stretch) parts.push("on=" + this.stretch.join("-"));
    if (this.stretch && !this.find("edges").checked) parts.push("edges=no");
    this.told = parts.join("&");
    const hash = "#" + parts.map(function (part) { return encodeURIComponent(part).replace(/%3A/g, ":").replace("%3D", "="); }).join("&");
    if (location.hash !== hash) history.replaceState(null, "", hash);
  };
  Tracks.prototype.restore = async function () {
    const parts = location.hash.slice(1).split("&").map(decodeURIComponent), asked = {};
    parts.slice(1).forEach(function (part) { const at = part.indexOf("="); if (at > 0) asked[part.slice(0, at)] = part.slice(at + 1); });
    this.restoring = true;
    const order = this.find("order"), layer = this.find("layer"), mark = this.find("mark");
    function set(choice, value, fallback) {
      choice.value = value;
      if (choice.selectedIndex < 0) choice.value = fallback;
    }
    set(layer, asked.layer || "", "");
    const by = asked.by === NUMBER || asked.by === SPREAD ? asked.by : asked.by ? "p:" + asked.by : this.about.order;
    set(order, by, this.about.order);
    set(mark, "mark" in asked ? asked.mark : this.about.mark, "");
    const stretch = (asked.on || "").split("-").map(Number);
    this.find("edges").checked = asked.edges !== "no";
    this.unit = null;
    const wanted = parts[0] && apart(parts[0]);
    if (wanted && this.about.layers.some(function (one) { return one.path === wanted[0] && wanted[1] >= 0 && wanted[1] < one.tops.length; })) this.unit = parts[0];
    if (stretch.length === 2 && stretch[0] >= 0 && stretch[0] < stretch[1] && stretch[1] <= this.count) this.select(stretch);
    else this.select(null);
    await this.sorted(true);
    if (this.unit) await this.choose(this.unit);
    if (this.stretch) this.show(this.stretch[0]);
    this.restoring = false;
    this.remember();
  };

  function start() {
    if (typeof DecompressionStream === "undefined") return; // the coloured text below stays
    window.penlightTracks = Array.from(document.querySelectorAll(".tracks:not(.ready)"), function (root) { return new Tracks(root); });
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
