// Controls are not drawn unasked: they are so far away that they would press the architectures together.
function archBoxes(place, changed) {
  for (const [label, look] of Object.entries(data.looks).sort(([a], [b]) => data.controls.includes(a) - data.controls.includes(b))) {
    const box = el("input", { type: "checkbox" }), control = data.controls.includes(label);
    box.checked = !control;
    box.dataset.label = label;
    box.addEventListener("change", changed);
    const swatch = sv("svg", { viewBox: "0 0 36 16", "aria-hidden": "true" },
      sv("line", { x1: 0, x2: 36, y1: 8, y2: 8, stroke: ink(look), "stroke-width": 2, "stroke-dasharray": look.dashes.join(" ") }),
      shape(look, 18, 8, 5, true));
    place.append(el("label", { class: "check" }, box, swatch, el("bdi", {}, label), control ? " (control)" : null));
  }
}
const chosen = (place) => new Set([...place.querySelectorAll("input:checked")].map((box) => box.dataset.label));

// --- plots

let WIDTH = 760; // as wide as the page: what is drawn smaller has letters that nobody can read
const HEIGHT = 430, LEFT = 66, RIGHT = 14, TOP = 14, BOTTOM = 46;

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function axes(svg, x, y, xTicks, yTicks, xName, yName) {
  for (const tick of yTicks) {
    svg.append(sv("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }),
      sv("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of xTicks) {
    svg.append(sv("line", { class: "rule", x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM }),
      sv("text", { x: x(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, number(tick)));
  }
  svg.append(sv("path", { class: "axis", d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }),
    sv("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, xName),
    sv("text", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` }, yName));
}
function drawPlot() {
  const metric = $("plot-metric").value, place = Number($("plot-setting").value);
  const archs = chosen($("plot-archs")), about = data.metrics[metric];
  const shown = data.saes.filter((sae) => sae.place === place && archs.has(sae.label) && sae.scores[metric] && sae.scores.l0
    && sae.scores[metric].value !== null && sae.scores.l0.value > 0);
  WIDTH = Math.min(900, Math.max(320, $("plot").clientWidth || 760));
  $("plot").replaceChildren();
  if (!shown.length) { $("plot").append(el("p", {}, "Nothing to draw: no SAE here has this metric and an L0.")); return; }
  const l0s = shown.map((sae) => sae.scores.l0.value);
  const ends = shown.flatMap((sae) => { const s = sae.scores[metric]; return [s.value - (s.stderr || 0), s.value + (s.stderr || 0)]; });
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  low -= room; high += room;
  const [first, last] = [Math.log(Math.min(...l0s) / 1.15), Math.log(Math.max(...l0s) * 1.15)];
  const x = (l0) => LEFT + ((Math.log(l0) - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const arrow = { up: " ↑", down: " ↓" }[about.better] || "";
  const title = `${metric}${about.unit ? ` (${about.unit})` : ""}${arrow}`;
  const svg = sv("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${title} against L0, ${shown.length} SAEs` });
  const marks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((t) => Math.log(t) >= first && Math.log(t) <= last);
  axes(svg, x, y, marks.length > 1 ? marks : ticks(Math.exp(first), Math.exp(last), 4), ticks(low, high, 8), "L0", title);
  const front = (data.fronts[place][metric] || []).map((i) => data.saes[i]);
  const onFront = new Set(front);
  const visibleFront = front.filter((sae) => shown.includes(sae));
  if ($("plot-front").checked && visibleFront.length > 1) {
    svg.append(sv("polyline", { class: "axis", "stroke-width": 1.2, "stroke-dasharray": "2 4",
      points: visibleFront.map((sae) => `${x(sae.scores.l0.value)},${y(sae.scores[metric].value)}`).join(" ") }));
  }
  for (const [label, look] of Object.entries(data.looks)) {
    for (const seed of new Set(shown.filter((sae) => sae.label === label).map((sae) => sae.seed))) {
      const line = shown.filter((sae) => sae.label === label && sae.seed === seed).sort((a, b) => a.scores.l0.value - b.scores.l0.value);
      svg.append(sv("polyline", { fill: "none", stroke: ink(look), "stroke-width": 1.4, "stroke-opacity": .65, "stroke-dasharray": look.dashes.join(" "),
        points: line.map((sae) => `${x(sae.scores.l0.value)},${y(sae.scores[metric].value)}`).join(" ") }));
    }
  }
  for (const sae of shown) {
    const score = sae.scores[metric], look = data.looks[sae.label], [cx, cy] = [x(sae.scores.l0.value), y(score.value)];
    const text = `${nameOf(sae)}: L0 ${number(sae.scores.l0.value)}, ${metric} ${withError(score.value, score.stderr)}`
       + (onFront.has(sae) ? ", on the Pareto front" : "");
    const link = sv("a", { href: saeLink(sae), "aria-label": text });
    if (score.stderr) link.append(sv("line", { x1: cx, x2: cx, y1: y(score.value - score.stderr), y2: y(score.value + score.stderr), stroke: ink(look), "stroke-width": 1.5 }));
    link.append(sv("circle", { cx, cy, r: 14, fill: "transparent" }), shape(look, cx, cy, 5.5, onFront.has(sae)));
    for (const event of ["pointerenter", "focus"]) link.addEventListener(event, () => { $("plot-hint").textContent = text; });
    svg.append(link);
  }
  $("plot").append(svg);
  $("plot-hint").textContent = `${metric}: ${about.description}.`;
}

function bars(edges, counts, xName, label, tickText) {
  const [width, height, left, bottom] = [420, 170, 44, 36];
  const most = Math.max(...counts, 1), span = edges[edges.length - 1] - edges[0] || 1;
  const x = (edge) => left + ((edge - edges[0]) / span) * (width - left - 6);
  const y = (count) => height - bottom - (count / most) * (height - bottom - 10);
  const svg = sv("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  counts.forEach((count, i) => svg.append(sv("rect", { x: x(edges[i]) + .5, y: y(count), width: Math.max(.5, x(edges[i + 1]) - x(edges[i]) - 1), height: height - bottom - y(count) },
    sv("title", {}, `${tickText(edges[i])} to ${tickText(edges[i + 1])}: ${count}`))));
  svg.append(sv("path", { class: "axis", d: `M${left},10V${height - bottom}H${width - 6}` }),
    sv("text", { x: left - 6, y: 16, "text-anchor": "end" }, String(most)), sv("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, "0"),
    sv("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  const every = Math.ceil(edges.length / 5);
  edges.forEach((edge, i) => { if (i % every === 0) svg.append(sv("text", { x: x(edge), y: height - bottom + 15, "text-anchor": x(edge) > width - 30 ? "end" : "middle" }, tickText(edge))); });
  return svg;
}
function curve(tokens, values, name) {
  const points = tokens.map((t, i) => [t, values[i]]).filter(([, value]) => value !== null);
  if (points.length < 2) return null;
  const [width, height, left, bottom] = [420, 170, 52, 36];
  const all = points.map(([, value]) => value), [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (t) => left + (t / tokens[tokens.length - 1]) * (width - left - 6);
  const y = (v) => height - bottom - ((v - low) / (high - low || 1)) * (height - bottom - 10);
  return sv("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} in training, from ${number(all[0])} to ${number(all[all.length - 1])}` },
    sv("path", { class: "axis", d: `M${left},10V${height - bottom}H${width - 6}` }),
    sv("polyline", { fill: "none", stroke: "var(--bar)", "stroke-width": 1.6, points: points.map(([t, v]) => `${x(t)},${y(v)}`).join(" ") }),
    sv("text", { x: left - 6, y: 16, "text-anchor": "end" }, number(high)), sv("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, number(low)),
    sv("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, `${name} over ${number(tokens[tokens.length - 1] / 1e6)} million tokens`));
}
function startPlot() {
  $("figure").hidden = !data.plotted.length;
  archBoxes($("plot-archs"), drawPlot);
  for (const name of data.plotted) $("plot-metric").append(el("option", { value: name }, name));
  data.settings.forEach(([model, site, width], i) => $("plot-setting").append(el("option", { value: i }, `${site}, width ${width}, ${model}`)));
  $("plot-setting-label").hidden = data.settings.length < 2;
  for (const id of ["plot-metric", "plot-setting", "plot-front"]) $(id).addEventListener("change", drawPlot);
}
