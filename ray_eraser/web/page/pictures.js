// Draws the page's pictures as inline SVG. Elements get classes and attributes only: the policy of the page forbids inline styles.

const SVG = "http://www.w3.org/2000/svg";
const STAGES = [["received", "received"], ["excised", "out of service"], ["restored", "restored"]];
const STEPS = [1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];
const DAY = 86400;

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function picture(place, title, height, draw) {
  const width = Math.max(260, place.clientWidth);
  const parts = draw(width);
  const made = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, ...parts);
  if (place.firstChild?.outerHTML !== made.outerHTML) place.replaceChildren(made);
}

const text = (x, y, said, attributes = {}) => shape("text", { x, y, ...attributes }, said);
const line = (x1, y1, x2, y2, kind) => shape("line", { x1, y1, x2, y2, class: kind });
const bar = (x, y, width, height, kind, said) =>
  shape("rect", { x: x.toFixed(1), y: y.toFixed(1), width: Math.max(1, width).toFixed(1), height: height.toFixed(1), rx: 1, class: kind }, shape("title", {}, said));

function stamp(seconds, step) {
  const when = new Date(seconds * 1000);
  if (step >= DAY) return when.toLocaleDateString(undefined, step >= 365 * DAY ? { year: "numeric" } : { day: "numeric", month: "short" });
  return when.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}) });
}

/** The times of ticks between two times, at round local times, at most `most` of them; and the step between them. */
function ticks(from, to, most) {
  const step = STEPS.find((each) => (to - from) / each <= most) ?? STEPS.at(-1) * Math.ceil((to - from) / STEPS.at(-1) / most);
  const offset = new Date(to * 1000).getTimezoneOffset() * 60;
  const times = [];
  for (let time = Math.ceil((from - offset) / step) * step + offset; time <= to; time += step) times.push(time);
  return { step, times };
}

/**
 * Counts of erasures received, taken out of service and restored over time: a strip for each, on the same axes.
 *
 * @param rows erasures with `received_at`, `excised_at`, `restored_at`, in seconds since 1970
 * @param now the right end of the axis
 */
export function drawRequests(place, rows, now) {
  const events = STAGES.map(([stage]) => rows.map((row) => row[`${stage}_at`]).filter((at) => at != null));
  const from = Math.min(now - 60, ...events.flat());
  const title = `Erasures over time: ${STAGES.map(([, name], k) => `${events[k].length} ${name}`).join(", ")}`;
  const strip = 46, gap = 26, left = 30, bottom = 22;
  const height = STAGES.length * (strip + gap) + bottom;
  picture(place, title, height, (width) => {
    const right = width - 4, bins = Math.max(12, Math.min(60, Math.floor((right - left) / 9)));
    const counts = events.map((times) => {
      const found = Array(bins).fill(0);
      for (const at of times) found[Math.min(bins - 1, Math.max(0, Math.floor((at - from) / (now - from) * bins)))] += 1;
      return found;
    });
    const most = Math.max(1, ...counts.flat());
    const each = (right - left) / bins;
    const at = (time) => left + (time - from) / (now - from) * (right - left);
    const { step, times } = ticks(from, now, Math.max(2, Math.floor((right - left) / 90)));
    const parts = times.map((time) => line(at(time), gap - 6, at(time), height - bottom, "grid"));
    STAGES.forEach(([stage, name], k) => {
      const base = (k + 1) * (strip + gap);
      parts.push(text(left, base - strip - 8, `${name}: ${events[k].length}`, { class: "name" }));
      parts.push(text(left - 6, base - strip + 9, String(most), { "text-anchor": "end" }), text(left - 6, base, "0", { "text-anchor": "end" }));
      counts[k].forEach((count, bin) => {
        const tall = strip * count / most;
        if (count) parts.push(bar(left + bin * each + 0.5, base - tall, each - 1, tall, stage, `${count} ${name}`));
      });
      parts.push(line(left, base, right, base, "axis"));
    });
    for (const time of times) {
      const anchor = at(time) < left + 30 ? "start" : at(time) > right - 30 ? "end" : "middle";
      parts.push(text(at(time), height - 5, stamp(time, step), { "text-anchor": anchor }));
    }
    return parts;
  });
}

/**
 * How many shards were left out of service before each generation, and how many are now.
 *
 * @param bars pairs of a label and a count, the last one of today
 * @param most how many shards there are
 */
export function drawShards(place, bars, most) {
  const height = 3 * 72 + 22, bottom = 36, left = 30, top = 20;
  const title = `Shards left out: ${bars.map(([name, count]) => `${count} (${name === "now" ? name : `generation ${name}`})`).join(", ")}`;
  picture(place, title, height, (width) => {
    const right = width - 4, base = height - bottom;
    const shown = bars.slice(-Math.max(4, Math.floor((right - left) / 16)));
    const highest = Math.max(most, 1, ...shown.map(([, count]) => count));
    const each = Math.min(48, (right - left) / shown.length);
    const at = (count) => base - (base - top) * count / highest;
    const marks = [...new Set([0, Math.round(highest / 2), highest])];
    const parts = marks.flatMap((mark) => [
      line(left, at(mark), right, at(mark), mark ? "grid" : "axis"),
      text(left - 6, at(mark) + 4, String(mark), { "text-anchor": "end" }),
    ]);
    parts.push(text(left, 11, `of ${most} shards`, { class: "name" }));
    const every = Math.ceil(34 / each); // labels of so many bars would touch
    shown.forEach(([name, count], k) => {
      const middle = left + (k + 0.5) * each, last = k === shown.length - 1;
      const said = `${name === "now" ? "now" : `generation ${name}`}: ${count} of ${most} shards left out`;
      parts.push(bar(middle - each * 0.36, at(count), each * 0.72, base - at(count), "left-out", said));
      if (last || ((shown.length - 1 - k) % every === 0)) parts.push(text(middle, base + 15, name, { "text-anchor": "middle" }));
    });
    parts.push(text(left, height - 4, "generation", { class: "name" }));
    return parts;
  });
}
